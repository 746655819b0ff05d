"""The peer that everybody has: a kernel's ports forwarded over SSH, by asyncssh, with a program for each end.

`serve [ADDRESS]` prints its port; `forward [ADDRESS:]PORT TARGET …` prints the local ports that stand for the targets;
`idle PORT` makes connections that nobody uses and obeys as `tests.bench.idle` does. An address that is not given is the
loopback's. Two programs rather than threads of the benchmark, so that the peer is at its best.
"""

from __future__ import annotations

import asyncio
import json
import sys

import asyncssh

from tests.bench.idle import obey

_LOOPBACK = "127.0.0.1"


class _Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(self, *_: object) -> bool:
        return True


async def _serve(address: str) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        _Server, address, 0, server_host_keys=[key], compression_algs=["none"]
    )
    print(json.dumps(server.get_port()), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _forward(address: str, port: int, targets: list[int]) -> None:
    connection = await asyncssh.connect(
        address, port, known_hosts=None, username="bench", client_keys=None, compression_algs=["none"]
    )
    listeners = [await connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", t) for t in targets]
    print(json.dumps([listener.get_port() for listener in listeners]), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _idle(port: int) -> None:
    connections: list[asyncssh.SSHClientConnection] = []

    async def take(number: int) -> None:
        while len(connections) < number:
            connection = await asyncssh.connect(
                "127.0.0.1",
                port,
                known_hosts=None,
                username="bench",
                client_keys=None,
                compression_algs=["none"],
            )
            for target in range(1, 6):
                await connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", target)
            connections.append(connection)

    await obey(take)


if __name__ == "__main__":
    _, role, *words = sys.argv
    if role == "serve":
        asyncio.run(_serve(words[0] if words else _LOOPBACK))
    elif role == "idle":
        asyncio.run(_idle(int(words[0])))
    else:
        address, _, port = words[0].rpartition(":")
        asyncio.run(_forward(address or _LOOPBACK, int(port), [int(word) for word in words[1:]]))
