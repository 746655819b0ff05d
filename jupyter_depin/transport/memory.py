"""A network in memory: the twin of `iroh.py` for tests, examples and the provider that lives in one's own process.

Links are cut, mended and held up by calls, and nothing here waits for a clock, so what a test sees is the same each
time. Bytes are in one of three places: written and still under way (only while held), delivered and waiting to be
read, or read. A connection that ends loses the first and keeps the second, as QUIC does. The room for bytes that are
not yet read is bounded for each stream, so a writer waits for a slow reader here too.

A node may have several homes, one for each relay. Nodes see each other directly unless they are kept apart, and then
need a relay that lives. A relay that dies leaves its connections standing, but nothing crosses them any more.

Everything belongs to one event loop. Rejected: sockets on loopback (the kernel decides when bytes arrive), random
losses (a failure could not be repeated).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection

import anyio.lowlevel

from jupyter_depin.errors import ConnectionLost, PeerUnreachable
from jupyter_depin.protocol.identity import NodeAddress, NodeId, node_id
from jupyter_depin.transport import ALPN
from jupyter_depin.transport.memory_connection import Link, MemoryConnection, News, Pipe


class MemoryNetwork:
    """Some nodes and the links between them; every pair can talk unless it was cut.

    `window` is the number of bytes that a stream takes in before its reader reads.
    """

    def __init__(self, *, window: int = 1 << 18) -> None:
        self.window = window
        self._nodes: dict[NodeId, dict[str | None, MemoryEndpoint]] = {}
        self._links: set[Link] = set()
        self._cut: set[frozenset[NodeId]] = set()
        self._apart: set[frozenset[NodeId]] = set()
        self._dead: set[str] = set()
        self.masks: dict[NodeId, Callable[[NodeId], str]] = {}
        self._holding = False
        self._held_senders: set[NodeId] = set()
        self._under_way: deque[tuple[Pipe, bytes | None]] = deque()

    def endpoint(self, name_or_secret: str | bytes, relay: str | None = None) -> MemoryEndpoint:
        """A home of the node whose id follows from its name or secret. One that was closed can be opened again."""
        raw = name_or_secret.encode() if isinstance(name_or_secret, str) else name_or_secret
        node = node_id(hashlib.sha256(raw).digest())
        homes = self._nodes.setdefault(node, {})
        endpoint = homes[relay] = MemoryEndpoint(self, node, relay, len(homes))
        return endpoint

    def keep_apart(self, a: NodeId, b: NodeId) -> None:
        """Let two nodes see each other through relays only."""
        self._apart.add(frozenset((a, b)))

    def kill_relay(self, relay: str) -> None:
        """Let a relay die without a word: what is written over it stays under way for ever."""
        self._dead.add(relay)

    def mask(self, node: NodeId, seen_by: Callable[[NodeId], str]) -> None:
        """Put a node behind a NAT: each other node sees it at the address that `seen_by` gives for that node."""
        self.masks[node] = seen_by

    def cut(self, a: NodeId, b: NodeId) -> None:
        """Break the link between two nodes: their connections end and new dials fail, until `mend`."""
        self._cut.add(frozenset((a, b)))
        self.drop_connections(a, b)

    def mend(self, a: NodeId, b: NodeId) -> None:
        """Undo `cut`. Connections that ended stay ended."""
        self._cut.discard(frozenset((a, b)))

    def silence(self, a: NodeId, b: NodeId) -> None:
        """Lose the link without a word: dials fail until `mend`, and what is written on the connections that there are
        stays under way until `release`, long after the mending, as with a transport that doubles its waits.
        """
        self._cut.add(frozenset((a, b)))
        for link in self._links:
            if link.nodes == frozenset((a, b)):
                link.stalled = True

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
        for link in self._links:
            link.stalled = False
        under_way, self._under_way = self._under_way, deque()
        for pipe, data in under_way:
            self.carry(pipe, data)

    def deliver(self, count: int) -> None:
        """Deliver the oldest `count` bytes that are under way, so that a message can be cut in its middle."""
        while count > 0 and self._under_way:
            pipe, data = self._under_way.popleft()
            if data is not None and len(data) > count:
                self._under_way.appendleft((pipe, data[count:]))
                data = data[:count]
            pipe.arrive(data)
            count -= len(data or b"")

    def find(self, caller: NodeId, address: NodeAddress) -> tuple[MemoryEndpoint | None, str | None]:
        """Which home of a node answers, and over which relay, if any. For `MemoryEndpoint.connect`."""
        pair = frozenset((caller, address.node))
        homes = {} if pair in self._cut else self._nodes.get(address.node, {})
        if pair not in self._apart:
            return next(iter(homes.values()), None), None
        relay = next((each for each in address.relays[:1] if each not in self._dead), None)
        return (homes.get(relay), relay) if relay else (None, None)

    def carries(self, endpoint: MemoryEndpoint) -> list[Link]:
        """The connections of an endpoint. For `MemoryEndpoint.idle`."""
        return [link for link in self._links if endpoint in (link.dialler.owner, link.answerer.owner)]

    def forget(self, endpoint: MemoryEndpoint) -> None:
        """Take a closed endpoint off the network, and end its connections. For `MemoryEndpoint.close`."""
        homes = self._nodes.get(endpoint.node, {})
        if homes.get(endpoint.relay) is endpoint:
            del homes[endpoint.relay]
        for link in self.carries(endpoint):
            link.end("the node was closed", "the node was closed")

    def link(
        self, dialler: MemoryEndpoint, answerer: MemoryEndpoint, relay: str | None, protocol: bytes
    ) -> Link:
        """Join two endpoints. For `MemoryEndpoint.connect`."""
        link = Link(self, dialler, answerer, relay, protocol)
        self._links.add(link)
        return link

    def unlink(self, link: Link) -> None:
        """Lose what an ended connection had under way. For `Link.end`."""
        self._links.discard(link)
        self._under_way = deque(item for item in self._under_way if item[0].link is not link)

    def carry(self, pipe: Pipe, data: bytes | None) -> None:
        """Take over what was written; None is the end of the stream. For `Pipe`."""
        lost = pipe.link.stalled or pipe.link.relay in self._dead
        if lost or self._holding or pipe.sender in self._held_senders:
            self._under_way.append((pipe, data))
        else:
            pipe.arrive(data)


class MemoryEndpoint:
    """One home of a node on a network in memory (port `Home`). Made by `MemoryNetwork.endpoint`."""

    def __init__(self, network: MemoryNetwork, node: NodeId, relay: str | None, number: int) -> None:
        self.relay = relay
        self.place = f"10.{node[0]}.{node[1]}.{node[2]}:{7000 + number}"
        self._network = network
        self._node = node
        self._external: tuple[str, ...] = ()
        self._closed = False
        self._arrived: deque[MemoryConnection] = deque()
        self._news = News()

    @property
    def node(self) -> NodeId:
        """This node's id."""
        return self._node

    @property
    def idle(self) -> bool:
        """Whether none of its connections is open."""
        return not self._network.carries(self)

    def address(self) -> NodeAddress:
        """Where peers find this node: its id alone is enough here, unless they are kept apart."""
        relays = () if self.relay is None else (self.relay,)
        return NodeAddress(self._node, relays, (*self._external, self.place))

    async def tell_external(self, addresses: Collection[str]) -> None:
        """Name these addresses to peers from now on."""
        self._external = tuple(addresses)

    async def connect(self, address: NodeAddress, protocol: bytes = ALPN) -> MemoryConnection:
        """Dial a node. Raises `PeerUnreachable` when it is closed, unknown or cut off."""
        await anyio.lowlevel.checkpoint()
        target, relay = (None, None) if self._closed else self._network.find(self._node, address)
        if target is None or target.node == self._node:
            raise PeerUnreachable(address=next(iter(address.direct), address.node.hex()))
        link = self._network.link(self, target, relay, protocol)
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
