"""Connections and streams of the network in memory. `memory.py` makes them and knows where their bytes are."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import anyio.lowlevel

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.transport import Path

if TYPE_CHECKING:
    from jupyter_depin.transport.memory import MemoryEndpoint, MemoryNetwork


class News:
    """Wakes everybody who waits for a change; what changed is for them to look up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()

    def tell(self) -> None:
        """Wake everybody."""
        self._event.set()
        self._event.clear()


class Link:
    """The two ends of one connection, and why it ended."""

    def __init__(
        self,
        network: MemoryNetwork,
        dialler: MemoryEndpoint,
        answerer: MemoryEndpoint,
        relay: str | None,
        protocol: bytes,
    ) -> None:
        self.network, self.relay, self.protocol = network, relay, protocol
        self.nodes = frozenset((dialler.node, answerer.node))
        self.stalled = False
        self.pipes: list[Pipe] = []
        self.dialler = MemoryConnection(self, dialler, answerer.node)
        self.answerer = MemoryConnection(self, answerer, dialler.node)

    def other(self, end: MemoryConnection) -> MemoryConnection:
        """The end that is not `end`."""
        return self.answerer if end is self.dialler else self.dialler

    def end(self, at_dialler: str, at_answerer: str) -> None:
        """End the connection, with a reason for each side; a second time does nothing."""
        if self.dialler.reason is not None:
            return
        self.network.unlink(self)
        self.dialler.reason = at_dialler
        self.answerer.reason = at_answerer
        self.dialler.news.tell()
        self.answerer.news.tell()
        for pipe in self.pipes:
            pipe.news.tell()


class MemoryConnection:
    """One end of a connection in memory (port `Connection`)."""

    def __init__(self, link: Link, owner: MemoryEndpoint, peer: NodeId) -> None:
        self.owner = owner
        self.reason: str | None = None
        self.news = News()
        self._link = link
        self._peer = peer
        self._arrived: deque[MemoryStream] = deque()

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    @property
    def protocol(self) -> bytes:
        """What both ends agreed to speak."""
        return self._link.protocol

    def path(self) -> Path | None:
        """The relay or the other node's address, without delay."""
        relay, other = self._link.relay, self._link.other(self).owner
        mask = self._link.network.masks.get(self._peer)
        direct = other.place if mask is None else mask(self.owner.node)
        return Path(relayed=relay is not None, remote=relay or direct, rtt_ms=0.0)

    async def open_stream(self) -> MemoryStream:
        """Open a stream of our own; the peer learns of it with its first byte. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        self.check()
        other = self._link.other(self)
        there, back = Pipe(self._link, self.owner.node), Pipe(self._link, other.owner.node)
        self._link.pipes += (there, back)
        there.introduces = (other, MemoryStream(other, back, there))
        return MemoryStream(self, there, back)

    async def accept_stream(self) -> MemoryStream:
        """Wait for the peer's next stream; a cancelled wait loses none. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        while not self._arrived:
            self.check()
            await self.news.wait()
        return self._arrived.popleft()

    async def close(self, reason: str = "") -> None:
        """End the connection; the peer reads `reason`. Never raises."""
        here, there = reason or "closed on this side", reason or "closed by the other side"
        if self is self._link.dialler:
            self._link.end(here, there)
        else:
            self._link.end(there, here)

    async def closed(self) -> str:
        """Wait until the connection has ended, by whatever cause, and return the reason."""
        while self.reason is None:
            await self.news.wait()
        return self.reason

    def check(self) -> None:
        """Raise `ConnectionLost` if the connection has ended. For streams."""
        if self.reason is not None:
            raise ConnectionLost(detail=self.reason)

    def arrive(self, stream: MemoryStream) -> None:
        """Queue a stream for `accept_stream`. For pipes."""
        self._arrived.append(stream)
        self.news.tell()


class Pipe:
    """One direction of a stream."""

    def __init__(self, link: Link, sender: NodeId) -> None:
        self.link = link
        self.sender = sender
        self.news = News()
        self.introduces: tuple[MemoryConnection, MemoryStream] | None = None
        self.finished = False
        self._room = link.network.window
        self._delivered = bytearray()
        self._complete = False

    def put(self, data: memoryview) -> int:
        """Take in as much as there is room for, and say how much that was."""
        piece = bytes(data[: self._room])
        if piece:
            self._room -= len(piece)
            self.link.network.carry(self, piece)
        return len(piece)

    def finish(self) -> None:
        """Nothing more is written."""
        self.finished = True
        self.link.network.carry(self, None)

    def arrive(self, data: bytes | None) -> None:
        """Take in what the network delivers; None is the end."""
        if data is None:
            self._complete = True
        else:
            self._delivered += data
        if self.introduces is not None:
            connection, stream = self.introduces
            self.introduces = None
            connection.arrive(stream)
        self.news.tell()

    def take(self, limit: int) -> bytes | None:
        """What was delivered; b"" at the end; None when there is nothing yet."""
        if not self._delivered:
            return b"" if self._complete else None
        data = bytes(self._delivered[:limit])
        del self._delivered[:limit]
        self._room += len(data)
        self.news.tell()
        return data


class MemoryStream:
    """A stream of bytes in both directions (port `Stream`). `priority` shows tests what was asked for.

    A cancelled `read` loses nothing. After a cancelled `write` every later one raises `ConnectionLost`, as in `iroh`.
    """

    def __init__(self, connection: MemoryConnection, outward: Pipe, inward: Pipe) -> None:
        self.priority = 0
        self._connection = connection
        self._outward = outward
        self._inward = inward
        self._over: str | None = None
        self._rest = memoryview(b"")

    async def read(self, limit: int) -> bytes:
        """Return 1 … `limit` bytes as soon as there are any; b"" when the peer finished. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        while (data := self._inward.take(limit)) is None:
            self._connection.check()
            await self._inward.news.wait()
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Hand over all of `data`; waits while the peer does not read. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        if not self.begin(data):
            await self.settled()

    def begin(self, data: bytes | memoryview) -> bool:
        """Hand over what there is room for, and say whether that is all. Raises `ConnectionLost`."""
        if self._over is not None:
            raise ConnectionLost(detail=self._over)
        self._connection.check()
        view = memoryview(data).cast("B")
        self._rest = view[self._outward.put(view) :]
        return not self._rest

    async def settled(self) -> None:
        """Hand over the rest as the peer reads. Raises `ConnectionLost`."""
        try:
            # The peer may have read since `begin`: look before waiting.
            while self._rest:
                self._connection.check()
                self._rest = self._rest[self._outward.put(self._rest) :]
                if self._rest:
                    await self._outward.news.wait()
        except asyncio.CancelledError:
            self._over = "an earlier write was interrupted"
            raise

    async def finish(self) -> None:
        """Say that nothing more is written; saying it again does nothing. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        self._connection.check()
        if self._over is None:
            self._over = "this side had finished the stream"
            self._outward.finish()

    def set_priority(self, priority: int) -> None:
        """Remember the priority; nothing is ever narrow here."""
        self.priority = priority
