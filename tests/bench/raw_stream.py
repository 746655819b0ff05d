"""Two nodes on one stream of the transport adapter, without channels, tunnel or lease: the floor under everything.

Run as two programs: `serve` prints its address; `dial ADDRESS` obeys `ping COUNT` (300 bytes there and back, seconds of
each) and `bulk BYTES` (seconds until the other end's bytes are here, from asking for them). `tcp COUNT` pings a plain
TCP echo at the other program, as a floor under the floor.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from contextlib import suppress

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.transport import Connection, Stream
from jupyter_depin.transport.iroh import bind

PING = bytes(300)
_READ = 1 << 20
_ORDER = struct.Struct(">Q")
"""What the dialling side asks for: 0 for one ping, else so many bytes."""


async def _read(stream: Stream, size: int) -> None:
    while size > 0:
        size -= len(await stream.read(min(size, _READ)))


async def _answer(connection: Connection) -> None:
    stream = await connection.accept_stream()
    pending = b""
    with suppress(ConnectionLost):
        while data := await stream.read(_READ):
            pending += data
            while len(pending) >= len(PING):
                (size,) = _ORDER.unpack_from(pending)
                pending = pending[len(PING) :]
                await stream.write(os.urandom(1 << 20) * (size >> 20) if size else PING)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ):
        writer.write(data)


async def _serve() -> None:
    endpoint = await bind(secret=os.urandom(32), listen="127.0.0.1:0")
    tcp = await asyncio.start_server(_echo, "127.0.0.1", 0)
    address = endpoint.address()
    _say({"node": address.node.hex(), "direct": address.direct, "tcp": tcp.sockets[0].getsockname()[1]})
    await _answer(await endpoint.accept())
    await endpoint.close()


async def _dial(place: dict[str, object]) -> None:
    endpoint = await bind(secret=os.urandom(32), listen="127.0.0.1:0")
    node = NodeId(bytes.fromhex(str(place["node"])))
    connection = await endpoint.connect(NodeAddress(node, (), tuple(place["direct"])))  # type: ignore[arg-type]
    stream = await connection.open_stream()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(str(place["tcp"])))

    async def ping() -> None:
        await stream.write(PING)
        await _read(stream, len(PING))

    async def tcp() -> None:
        writer.write(PING)
        await reader.readexactly(len(PING))

    async def bulk() -> None:
        await stream.write(_ORDER.pack(number).ljust(len(PING)))
        await _read(stream, number)

    while line := await asyncio.to_thread(sys.stdin.readline):
        what, number = line.split()[0], int(line.split()[1])
        action, count = (bulk, 1) if what == "bulk" else ({"ping": ping, "tcp": tcp}[what], number)
        samples = []
        for _ in range(count):
            begun = time.perf_counter()
            await action()
            samples.append(time.perf_counter() - begun)
        _say(samples)
    writer.close()
    await writer.wait_closed()
    await connection.close("done")
    await endpoint.close()


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve() if sys.argv[1] == "serve" else _dial(json.loads(sys.argv[2])))
