"""Ports to the network: endpoints, connections and streams between nodes.

`iroh.py` is the real adapter, `memory.py` its twin for tests and examples; one suite runs on both. `homes.py` lets a
node live on several relays at once, and `seen.py` finds out how others see it, over either. Every error that
leaves an adapter is a `TransportError`. Nothing here knows of tunnels, lanes or money.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from jupyter_depin.protocol.identity import NodeAddress, NodeId

ALPN = b"jupyter-depin/1"
"""The protocol's name in the TLS handshake; its number rises with a wire change that old peers cannot read."""

SEEN = b"jupyter-depin-seen/1"
"""The name of the other protocol that nodes speak: what address do you see of me? (`seen.py`)"""


@dataclass(frozen=True, slots=True)
class Path:
    """The way that a connection takes now, and its round-trip time in milliseconds.

    `remote`: the relay's URL, or the `ip:port` at which this side sees the other.
    """

    relayed: bool
    remote: str
    rtt_ms: float


class Stream(Protocol):
    """An ordered, reliable flow of bytes in both directions.

    A peer learns of a stream with its first byte, so the opener writes first. One reader and one writer at a time.
    """

    async def read(self, limit: int) -> bytes:
        """Return 1 … `limit` bytes as soon as there are any; b"" when the peer finished. Raises `ConnectionLost`."""

    async def write(self, data: bytes | memoryview) -> None:
        """Hand over all of `data`; returns when it is accepted, not when it arrived. Raises `ConnectionLost`."""

    def begin(self, data: bytes | memoryview) -> bool:
        """Begin to hand over all of `data`. True: that is done; False: await `settled` before the next write.

        For those who write much that is small: a task that waits costs more than most writes. Raises `ConnectionLost`.
        """

    async def settled(self) -> None:
        """Wait until what `begin` began is handed over. Raises `ConnectionLost`."""

    async def finish(self) -> None:
        """Say that nothing more is written. Raises `ConnectionLost`."""

    def set_priority(self, priority: int) -> None:
        """Streams of a higher priority are sent first when the link is narrow. Default 0."""


class Connection(Protocol):
    """An authenticated, encrypted connection with one peer."""

    @property
    def peer(self) -> NodeId:
        """The node at the other end, proven by its key."""

    @property
    def protocol(self) -> bytes:
        """What both ends agreed to speak: `ALPN` or `SEEN`."""

    def path(self) -> Path | None:
        """The path in use, or None while it is not known."""

    async def open_stream(self) -> Stream:
        """Open a stream of our own. Raises `ConnectionLost`."""

    async def accept_stream(self) -> Stream:
        """Wait for the peer's next stream. Raises `ConnectionLost`."""

    async def close(self, reason: str = "") -> None:
        """End the connection; the peer's pending calls raise `ConnectionLost` with `reason` in it. Never raises."""

    async def closed(self) -> str:
        """Wait until the connection has ended, by whatever cause, and return the reason."""


class Endpoint(Protocol):
    """A node on the network."""

    @property
    def node(self) -> NodeId:
        """This node's id."""

    def address(self) -> NodeAddress:
        """Where peers find this node now."""

    async def connect(self, address: NodeAddress, protocol: bytes = ALPN) -> Connection:
        """Dial a node. Raises `PeerUnreachable`. Cancelling is safe."""

    async def accept(self) -> Connection:
        """Wait for the next authenticated peer; broken handshakes are skipped. Raises `ConnectionLost` once closed."""

    async def close(self) -> None:
        """End every connection and leave the network. Never raises."""


class Home(Endpoint, Protocol):
    """An endpoint with one socket, at home on one relay or on none. It dials through the first relay of an address."""

    @property
    def idle(self) -> bool:
        """Whether none of its connections is open."""

    async def tell_external(self, addresses: Collection[str]) -> None:
        """From now on tell peers that this socket is seen at these `ip:port`s, and at no others. Never raises."""
