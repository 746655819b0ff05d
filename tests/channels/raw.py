"""The other end of a ZMTP connection, byte by byte, so that it can lie; and both kinds of loop to run it on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from jupyter_depin.channels.peer import Owner, Peer
from jupyter_depin.channels.zmtp import NULL, command, encode, greeting, properties, read_properties

GENEROUS = 60
LOOPS = ["asyncio", "uvloop"]


def run_on(name: str, play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a loop of that kind. What a callback raises fails it."""
    wrong: list[dict[str, Any]] = []

    def loop() -> asyncio.AbstractEventLoop:
        if name == "uvloop":
            import uvloop

            made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        else:
            made = asyncio.SelectorEventLoop()
        made.set_exception_handler(lambda _, context: wrong.append(context))
        return made

    async def limited() -> None:
        await asyncio.wait_for(play(), GENEROUS)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(limited())
    assert not wrong


def descriptors() -> set[str]:
    """The files that this process has open."""
    return set(os.listdir("/proc/self/fd"))


async def until(done: Callable[[], object]) -> None:
    """Turn the loop until something is so."""
    while not done():
        await asyncio.sleep(0.001)


class Raw:
    """One connection's other end. `connect` or take it from a `Server`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.known: dict[bytes, bytes] = {}

    @classmethod
    async def connect(cls, path: str) -> Raw:
        return cls(*await asyncio.open_unix_connection(path, limit=1))

    def say(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def message(self, *parts: bytes) -> None:
        self.say(*(bytes(piece) for piece in encode(parts)))

    async def shake(self, kind: bytes = b"DEALER", identity: bytes = b"", minor: int = 0) -> None:
        """Greet and be introduced."""
        head = greeting(NULL, server=False)
        self.say(head[:11], bytes((minor,)), head[12:], command(b"READY", properties(kind, identity)))
        assert await self.exactly(64) == head
        flags, said = await self.frame()
        assert (flags, said[:6]) == (4, b"\x05READY")
        self.known = dict(read_properties(said[6:]))

    async def exactly(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def frame(self) -> tuple[int, bytes]:
        flags = (await self.exactly(1))[0]
        size = int.from_bytes(await self.exactly(8 if flags & 2 else 1), "big")
        return flags & ~2, await self.exactly(size)

    async def heard(self) -> list[bytes]:
        """The next message."""
        parts, more = [], 1
        while more:
            more, part = await self.frame()
            assert more < 4, "a command"
            parts.append(part)
        return parts

    async def rest(self) -> bytes:
        """All that comes until the other end closes."""
        with suppress(ConnectionError):
            return await self._reader.read()
        return b""

    def hang_up(self) -> None:
        self.writer.transport.abort()


class Server:
    """A kernel's bound socket. `taken` are its connections."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.taken: list[Raw] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_unix_server(
            lambda reader, writer: self.taken.append(Raw(reader, writer)), self._path, limit=1
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for raw in self.taken:
            raw.hang_up()

    async def connection(self, number: int = 0) -> Raw:
        await until(lambda: len(self.taken) > number)
        return self.taken[number]


class Kept(Owner):
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []
        self.told: list[object] = []
        self.on_message: Callable[[Peer, Sequence[bytes]], None] = lambda peer, parts: None

    def ready(self, peer: Peer) -> None:
        self.told.append("ready")

    def message(self, peer: Peer, parts: Sequence[Any]) -> None:
        self.messages.append([bytes(part) for part in parts])
        self.on_message(peer, parts)

    def oversize(self, peer: Peer, size: int, parts: int) -> None:
        self.told.append((size, parts))

    def full(self, peer: Peer, full: bool) -> None:
        self.told.append("full" if full else "free")

    def answered(self, peer: Peer) -> None:
        self.told.append("answered")

    def lost(self, peer: Peer) -> None:
        self.told.append("lost")
