"""A network in memory: the twin of `iroh.py` for tests, examples and the provider that lives in one's own process.

Links are cut, mended and held up by calls, and nothing here waits for a clock, so what a test sees is the same each
time. Bytes are in one of three places: written and still under way (only while held), delivered and waiting to be
read, or read. A connection that ends loses the first and keeps the second, as QUIC does. The room for bytes that are
not yet read is bounded for each stream, so a writer waits for a slow reader here too.

Everything belongs to one event loop. Rejected: sockets on loopback (the kernel decides when bytes arrive), random
losses (a failure could not be repeated).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque

import anyio.lowlevel

from jupyter_depin.errors import ConnectionLost, PeerUnreachable
from jupyter_depin.protocol.identity import NodeAddress, NodeId, node_id
from jupyter_depin.transport import Path


class MemoryNetwork:
    """Some nodes and the links between them; every pair can talk unless it was cut.

    `window` is the number of bytes that a stream takes in before its reader reads.
    """

    def __init__(self, *, window: int = 1 << 18) -> None:
        self.window = window
        self._nodes: dict[NodeId, MemoryEndpoint] = {}
        self._links: set[_Link] = set()
        self._cut: set[frozenset[NodeId]] = set()
        self._holding = False
        self._held_senders: set[NodeId] = set()
        self._under_way: deque[tuple[_Pipe, bytes | None]] = deque()

    def endpoint(self, name_or_secret: str | bytes) -> MemoryEndpoint:
        """A node whose id follows from its name or secret. One that was closed can be opened again by its name."""
        raw = name_or_secret.encode() if isinstance(name_or_secret, str) else name_or_secret
        node = node_id(hashlib.sha256(raw).digest())
        endpoint = self._nodes[node] = MemoryEndpoint(self, node)
        return endpoint

    def cut(self, a: NodeId, b: NodeId) -> None:
        """Break the link between two nodes: their connections end and new dials fail, until `mend`."""
        self._cut.add(frozenset((a, b)))
        self.drop_connections(a, b)

    def mend(self, a: NodeId, b: NodeId) -> None:
        """Undo `cut`. Connections that ended stay ended."""
        self._cut.discard(frozenset((a, b)))

    def drop_connections(self, a: NodeId, b: NodeId) -> None:
        """End the connections between two nodes on both sides; they may dial again at once."""
        for link in [link for link in self._links if link.nodes == frozenset((a, b))]:
            link.end("timed out", "timed out")

    def hold(self, sender: NodeId | None = None) -> None:
        """From now on keep what is written (by `sender`, or by all) under way, until `release`."""
        if sender is None:
            self._holding = True
        else:
            self._held_senders.add(sender)

    def release(self) -> None:
        """Deliver all that is under way, in the order of its writing, and hold nothing any more."""
        self._holding = False
        self._held_senders.clear()
        while self._under_way:
            pipe, data = self._under_way.popleft()
            pipe.arrive(data)

    def deliver(self, count: int) -> None:
        """Deliver the oldest `count` bytes that are under way, so that a message can be cut in its middle."""
        while count > 0 and self._under_way:
            pipe, data = self._under_way.popleft()
            if data is not None and len(data) > count:
                self._under_way.appendleft((pipe, data[count:]))
                data = data[:count]
            pipe.arrive(data)
            count -= len(data or b"")

    def find(self, caller: NodeId, node: NodeId) -> MemoryEndpoint | None:
        """The open endpoint of `node`, unless its link to `caller` is cut. For `MemoryEndpoint.connect`."""
        return None if frozenset((caller, node)) in self._cut else self._nodes.get(node)

    def forget(self, endpoint: MemoryEndpoint) -> None:
        """Take a closed endpoint off the network, and end its connections. For `MemoryEndpoint.close`."""
        if self._nodes.get(endpoint.node) is endpoint:
            del self._nodes[endpoint.node]
        for link in [link for link in self._links if endpoint in (link.dialler.owner, link.answerer.owner)]:
            link.end("the node was closed", "the node was closed")

    def link(self, dialler: MemoryEndpoint, answerer: MemoryEndpoint) -> _Link:
        """Join two endpoints. For `MemoryEndpoint.connect`."""
        link = _Link(self, dialler, answerer)
        self._links.add(link)
        return link

    def unlink(self, link: _Link) -> None:
        """Lose what an ended connection had under way. For `_Link.end`."""
        self._links.discard(link)
        self._under_way = deque(item for item in self._under_way if item[0].link is not link)

    def carry(self, pipe: _Pipe, data: bytes | None) -> None:
        """Take over what was written; None is the end of the stream. For `_Pipe`."""
        if self._holding or pipe.sender in self._held_senders:
            self._under_way.append((pipe, data))
        else:
            pipe.arrive(data)


class MemoryEndpoint:
    """A node on a network in memory (port `Endpoint`). Made by `MemoryNetwork.endpoint`."""

    def __init__(self, network: MemoryNetwork, node: NodeId) -> None:
        self._network = network
        self._node = node
        self._closed = False
        self._arrived: deque[MemoryConnection] = deque()
        self._news = _News()

    @property
    def node(self) -> NodeId:
        """This node's id."""
        return self._node

    def address(self) -> NodeAddress:
        """Where peers find this node: its id alone is enough here."""
        return NodeAddress(self._node, None, (f"memory:{self._node.hex()[:16]}",))

    async def connect(self, address: NodeAddress) -> MemoryConnection:
        """Dial a node. Raises `PeerUnreachable` when it is closed, unknown or cut off."""
        await anyio.lowlevel.checkpoint()
        target = None if self._closed else self._network.find(self._node, address.node)
        if target is None or target is self:
            raise PeerUnreachable(address=next(iter(address.direct), address.node.hex()))
        link = self._network.link(self, target)
        target.arrive(link.answerer)
        return link.dialler

    async def accept(self) -> MemoryConnection:
        """Wait for the next peer. Raises `ConnectionLost` once this node is closed."""
        await anyio.lowlevel.checkpoint()
        while not self._arrived or self._closed:
            if self._closed:
                raise ConnectionLost(detail="this node was closed")
            await self._news.wait()
        return self._arrived.popleft()

    async def close(self) -> None:
        """End every connection and leave the network. Never raises."""
        self._closed = True
        self._network.forget(self)
        self._news.tell()

    def arrive(self, connection: MemoryConnection) -> None:
        """Queue a peer for `accept`. For `connect` of the other side."""
        self._arrived.append(connection)
        self._news.tell()


class _News:
    """Wakes everybody who waits for a change; what changed is for them to look up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def tell(self) -> None:
        self._event.set()
        self._event.clear()


class _Link:
    """The two ends of one connection, and why it ended."""

    def __init__(self, network: MemoryNetwork, dialler: MemoryEndpoint, answerer: MemoryEndpoint) -> None:
        self.network = network
        self.nodes = frozenset((dialler.node, answerer.node))
        self.pipes: list[_Pipe] = []
        self.dialler = MemoryConnection(self, dialler, answerer.node)
        self.answerer = MemoryConnection(self, answerer, dialler.node)

    def other(self, end: MemoryConnection) -> MemoryConnection:
        return self.answerer if end is self.dialler else self.dialler

    def end(self, at_dialler: str, at_answerer: str) -> None:
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

    def __init__(self, link: _Link, owner: MemoryEndpoint, peer: NodeId) -> None:
        self.owner = owner
        self.reason: str | None = None
        self.news = _News()
        self._link = link
        self._peer = peer
        self._arrived: deque[MemoryStream] = deque()

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    def path(self) -> Path | None:
        """Always direct, and without delay."""
        return Path(relayed=False, remote=f"memory:{self._peer.hex()[:16]}", rtt_ms=0.0)

    async def open_stream(self) -> MemoryStream:
        """Open a stream of our own; the peer learns of it with its first byte. Raises `ConnectionLost`."""
        await anyio.lowlevel.checkpoint()
        self.check()
        other = self._link.other(self)
        there, back = _Pipe(self._link, self.owner.node), _Pipe(self._link, other.owner.node)
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


class _Pipe:
    """One direction of a stream."""

    def __init__(self, link: _Link, sender: NodeId) -> None:
        self.link = link
        self.sender = sender
        self.news = _News()
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
        self.finished = True
        self.link.network.carry(self, None)

    def arrive(self, data: bytes | None) -> None:
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

    def __init__(self, connection: MemoryConnection, outward: _Pipe, inward: _Pipe) -> None:
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
