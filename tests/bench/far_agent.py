"""A provider's agent in a network of its own. Its UDP port is reached through the socket that is passed to the caller,
its ledger through a socket in the file system.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

from jupyter_depin.protocol.identity import Ticket
from tests.udp_proxy import hand_over, udp_to

LEDGER = "ledger.sock"

Other = Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: Other) -> None:
    """Pass bytes both ways between a connection and another, which is opened now."""
    there, back = await other

    async def one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    await asyncio.gather(one_way(reader, back), one_way(there, writer))


async def serve(door: socket.socket, node: str, folder: Path) -> None:
    """Start the agent for `node` and serve until the input ends."""
    command = [
        sys.executable,
        "-m",
        "provider_kernel",
        "start",
        "--loopback",
        node,
        "--home",
        str(folder / "agent"),
    ]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin is not None
    assert agent.stdout is not None
    ready = json.loads(await asyncio.to_thread(agent.stdout.readline))
    ledger_port = ready["ledger"]["port"]
    server = await asyncio.start_unix_server(
        lambda reader, writer: pass_on(reader, writer, asyncio.open_connection("127.0.0.1", ledger_port)),
        folder / LEDGER,
    )
    places = Ticket.parse(ready["ticket"]).address.direct
    port = next(place.rpartition(":")[2] for place in places if place.startswith("127.0.0.1:"))
    hand_over(door, [udp_to(int(port))], ready)
    await asyncio.to_thread(sys.stdin.read)
    agent.stdin.close()
    await asyncio.to_thread(agent.wait)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], Path(sys.argv[3])))
