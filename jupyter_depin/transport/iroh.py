"""The network through iroh: QUIC with TLS 1.3, peers dialled by key, holes punched, relays where nothing else goes.

The binding's inner workings are the business of `iroh_calls`; here its objects become the ports of this package, and
every error of its own becomes a `TransportError`. No public service is asked for addresses: a node is found through
the addresses and relays that its caller names, and through nothing else.

The library keeps a node's port until the last object of that node is gone: connections and streams as well as the
endpoint. Closing an endpoint therefore takes all of them away from whoever still holds ours.

What the binding does not let us choose: QUIC's idle time-out (30 s) and keep-alive, so whoever must notice a dead link
sooner needs acknowledgements of its own; and a second socket for IPv6 on all interfaces, whatever `listen` says.

Rejected: asyncssh (no way through NATs), aioquic (the same, and slow), libp2p (another event loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import iroh
from anyio.abc import TaskGroup
from iroh import iroh_ffi

from jupyter_depin.errors import ConfigError, ConnectionLost, PeerUnreachable, PortInUse, TransportError
from jupyter_depin.protocol.identity import NodeAddress, NodeId, node_id
from jupyter_depin.transport import ALPN, Path
from jupyter_depin.transport.iroh_calls import Pending, choose
from jupyter_depin.transport.iroh_fork import renewed
from jupyter_depin.transport.iroh_free import owned

_HANDSHAKE_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
"""Far more than the library needs (3 s after a dial that was given up): a close that is cut off never frees the port."""

_ROOM = 64
"""Peers that may be shaking hands or waiting for `accept`, together."""

_CHUNK = 1 << 18
"""Bytes handed to the library in one piece: bounds the copy that a huge output needs."""

_READ = 1 << 18
"""The library makes a buffer of the whole limit for each read, so a larger one costs more than it brings."""

_calls = choose()


def node_id_of(secret: bytes) -> NodeId:
    """The node that a 32-byte ed25519 seed makes. Raises `ConfigError` when it has another length."""
    return node_id(_secret_key(secret).public().to_bytes())


async def bind(
    *,
    secret: bytes,
    listen: str = "0.0.0.0:0",
    relays: Sequence[str] = (),
    alpn: bytes = ALPN,
    dial_seconds: float = 10.0,
) -> IrohEndpoint:
    """Join the network as the node of `secret`, on UDP address `listen` (port 0: any) and at home on `relays`.

    Called once per node when a program starts; the node belongs to the event loop that calls. Without relays it is
    reached directly or not at all. A dial that is not answered ends after `dial_seconds`. Raises
    `PortInUse`, `ConfigError` (an address that cannot be read) and `TransportError`.
    """
    global _calls
    if renewed():
        _calls = choose()
    key = _secret_key(secret)
    try:
        mode = iroh.RelayMode.custom_from_urls(list(relays)) if relays else iroh.RelayMode.disabled()
    except iroh.IrohError as error:
        raise ConfigError(detail=f"{', '.join(relays)}: {_told(error)}") from error
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(),
        bind_addr=listen,
        secret_key=key.to_bytes(),
        alpns=[alpn],
        relay_mode=mode,
    )
    try:
        endpoint = await iroh.Endpoint.bind(options)
    except iroh.IrohError as error:
        # The library has no kind of its own for either; its words are those of the operating system and of Rust.
        if "in use" in error.message():
            raise PortInUse(port=listen.rpartition(":")[2]) from error
        if "address syntax" in error.message():
            raise ConfigError(detail=f"{listen!r} is not an address of the form ip:port") from error
        raise TransportError(detail=_told(error)) from error
    return IrohEndpoint(endpoint, relays=tuple(relays), alpn=alpn, dial_seconds=dial_seconds)


class IrohEndpoint:
    """A node on the network (port `Endpoint`). Made by `bind`."""

    def __init__(
        self, endpoint: iroh.Endpoint, *, relays: tuple[str, ...], alpn: bytes, dial_seconds: float
    ) -> None:
        self._endpoint: iroh.Endpoint | None = owned(endpoint)
        self._relays = relays
        self._alpn = alpn
        self._dial_seconds = dial_seconds
        self._node = node_id(endpoint.id().to_bytes())
        self._address = NodeAddress(self._node)
        self._closed = False
        self._connections: weakref.WeakSet[IrohConnection] = weakref.WeakSet()
        self._room = asyncio.Semaphore(_ROOM)
        self._arrived: asyncio.Queue[IrohConnection | None] = asyncio.Queue()
        self._welcomer: asyncio.Task[None] | None = None
        self._handshakes: TaskGroup | None = None

    @property
    def node(self) -> NodeId:
        """This node's id."""
        return self._node

    def address(self) -> NodeAddress:
        """Where peers find this node now: the library's own view, and this machine itself where it listens on all.

        Until the library has chosen among several relays, the first one is named. A closed node keeps its last address.
        """
        if self._endpoint is None:
            return self._address
        view = self._endpoint.addr()
        direct = dict.fromkeys(view.direct_addresses())
        for bound in self._endpoint.bound_sockets():
            ip, _, port = bound.rpartition(":")
            if ip == "0.0.0.0":
                direct[f"127.0.0.1:{port}"] = None
        relay = view.relay_url() or (self._relays[0] if self._relays else None)
        self._address = NodeAddress(self._node, relay, tuple(direct))
        return self._address

    async def connect(self, address: NodeAddress) -> IrohConnection:
        """Dial a node. Raises `PeerUnreachable`, after `dial_seconds` at the latest. Cancelling is safe."""
        shown = next(iter((*address.direct, address.relay_url)), None) or address.node.hex()
        if self._endpoint is None or self._closed:
            raise PeerUnreachable(address=shown)
        try:
            target = iroh.EndpointAddr(
                iroh.EndpointId.from_bytes(address.node), address.relay_url, list(address.direct)
            )
            with anyio.fail_after(self._dial_seconds):
                return self._adopt(await self._endpoint.connect(target, self._alpn))
        except (iroh.IrohError, iroh_ffi.InternalError, TimeoutError) as error:
            raise PeerUnreachable(address=shown) from error

    async def accept(self) -> IrohConnection:
        """Wait for the next authenticated peer. Raises `ConnectionLost` once this node is closed."""
        if self._welcomer is None and not self._closed:
            # An endpoint is opened by one call and closed by another, so no caller's task group can own this task:
            # the endpoint does, and `close` ends it through its scope.
            self._welcomer = asyncio.create_task(self._welcome())
        connection = None if self._closed else await self._arrived.get()
        if connection is None:
            self._arrived.put_nowait(None)
            raise ConnectionLost(detail="this node was closed")
        self._room.release()
        return connection

    async def close(self) -> None:
        """End every connection and leave the network; afterwards the port is free. Never raises, not even when cancelled.

        Takes up to 3 s after a dial that was given up, since the library lets that one run out.
        """
        if self._closed or self._endpoint is None:
            return
        self._closed = True
        self.address()
        self._arrived.put_nowait(None)
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True), _ignored():
            if self._handshakes is not None:
                self._handshakes.cancel_scope.cancel()
            if self._welcomer is not None:
                await asyncio.wait({self._welcomer})
            await self._endpoint.close()
        for connection in list(self._connections):
            connection.let_go()
        self._endpoint = None

    def _adopt(self, connection: iroh.Connection) -> IrohConnection:
        adopted = IrohConnection(connection)
        self._connections.add(adopted)
        return adopted

    async def _welcome(self) -> None:
        """Let peers shake hands side by side, so that a slow or hostile one does not hold up the others."""
        try:
            async with anyio.create_task_group() as self._handshakes:
                while self._endpoint is not None and not self._closed:
                    await self._room.acquire()
                    incoming = await self._endpoint.accept_next()
                    if incoming is None:
                        break
                    self._handshakes.start_soon(self._shake_hands, incoming)
        finally:
            self._arrived.put_nowait(None)

    async def _shake_hands(self, incoming: iroh.Incoming) -> None:
        with anyio.move_on_after(_HANDSHAKE_SECONDS), _ignored():
            self._arrived.put_nowait(self._adopt(await (await incoming.accept()).connect()))
            return
        self._room.release()


class IrohConnection:
    """A connection with one peer (port `Connection`). Made by an endpoint."""

    def __init__(self, connection: iroh.Connection) -> None:
        self._connection: iroh.Connection | None = owned(connection)
        self._streams: weakref.WeakSet[IrohStream] = weakref.WeakSet()
        self._peer = node_id(connection.remote_id().to_bytes())
        self._reason: str | None = None
        self._accepting: list[Pending] = []

    @property
    def peer(self) -> NodeId:
        """The node at the other end, proven by its key."""
        return self._peer

    def path(self) -> Path | None:
        """The path in use, or None while it is not known. The round-trip time is in whole milliseconds."""
        for path in self._connection.paths() if self._connection is not None else ():
            if path.is_selected:
                return Path(relayed=path.is_relay, remote=path.remote_addr, rtt_ms=float(path.rtt_ms))
        return None

    async def open_stream(self) -> IrohStream:
        """Open a stream of our own. Raises `ConnectionLost`."""
        with self.translated():
            return self._adopt(await self._held().open_bi())

    async def accept_stream(self) -> IrohStream:
        """Wait for the peer's next stream; a cancelled wait loses none. Raises `ConnectionLost`."""
        call = self._accepting.pop() if self._accepting else _calls.accept(self._held())
        try:
            with self.translated():
                return self._adopt(await call.wait())
        except asyncio.CancelledError:
            self._accepting.append(call)
            raise

    async def close(self, reason: str = "") -> None:
        """End the connection; the peer reads `reason`. Never raises."""
        if self._connection is None:
            return
        # The library would forget why the peer had closed.
        self._reason = self._why() or reason or "closed on this side"
        with _ignored():
            self._connection.close(0, reason.encode())

    async def closed(self) -> str:
        """Wait until the connection has ended, by whatever cause, and return the reason."""
        cause = "the library failed"
        with _ignored():
            if self._connection is not None:
                cause = await self._connection.closed()
        return self._reason or _plain(cause)

    def let_go(self) -> None:
        """Give the library's objects back, once the node is closed. For `IrohEndpoint.close`."""
        if self._connection is not None:
            self._reason = self._why() or "this node was closed"
            self._connection = None
        self._accepting.clear()
        for stream in list(self._streams):
            stream.let_go(self._reason or "")

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the library's errors into `ConnectionLost`, with the connection's own reason where it has ended."""
        try:
            yield
        except (iroh.IrohError, iroh_ffi.InternalError) as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> ConnectionLost:
        """The same for one error. For streams, whose every read and write would pay for a generator."""
        return ConnectionLost(detail=self._why() or _told(error))

    def _why(self) -> str | None:
        """Why the connection has ended, or None while it has not."""
        if self._reason is None and self._connection is not None:
            cause = self._connection.close_reason()
            return None if cause is None else _plain(cause)
        return self._reason

    def _held(self) -> iroh.Connection:
        if self._connection is None:
            raise ConnectionLost(detail=self._reason or "")
        return self._connection

    def _adopt(self, halves: iroh.BiStream) -> IrohStream:
        adopted = IrohStream(self, halves)
        self._streams.add(adopted)
        return adopted


class IrohStream:
    """A stream of bytes in both directions (port `Stream`). Made by a connection, which it keeps alive.

    A cancelled `read` loses nothing: the next one gets what came meanwhile. After a cancelled `write` nobody knows how
    much was sent, so this direction of the stream is over and every later `write` raises `ConnectionLost`.
    """

    def __init__(self, connection: IrohConnection, halves: iroh.BiStream) -> None:
        self._connection = connection
        self._receiver: Any = owned(halves.recv())
        self._sender: Any = owned(halves.send())
        self._reading: Pending | None = None
        self._surplus = b""
        self._over: str | None = None
        self._priority: int | None = None

    async def read(self, limit: int) -> bytes:
        """Return 1 … `limit` bytes as soon as there are any; b"" when the peer finished. Raises `ConnectionLost`."""
        if not self._surplus:
            if self._receiver is None:
                raise ConnectionLost(detail=self._over or "")
            reading = self._reading = self._reading or _calls.read(self._receiver, min(limit, _READ))
            try:
                data: bytes = await reading.wait()
            except (iroh.IrohError, iroh_ffi.InternalError) as error:
                self._reading = None
                raise self._connection.lost(error) from error
            self._reading = None
            if len(data) <= limit:
                return data
            # An earlier, cancelled read had asked for more.
            self._surplus = data
        data, self._surplus = self._surplus[:limit], self._surplus[limit:]
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Hand over all of `data`; it is copied once. Raises `ConnectionLost`."""
        if self._over is not None:
            raise ConnectionLost(detail=self._over)
        sender = self._sender
        try:
            if self._priority is not None:
                await sender.set_priority(self._priority)
                self._priority = None
            small = len(data) <= _CHUNK and isinstance(data, bytes)
            view = data if small else memoryview(data).cast("B")
            for start in range(0, len(view), _CHUNK):
                await _calls.write(sender, view[start : start + _CHUNK]).wait()
        except (iroh.IrohError, iroh_ffi.InternalError) as error:
            raise self._connection.lost(error) from error
        except asyncio.CancelledError:
            self._over = "an earlier write was interrupted"
            raise

    async def finish(self) -> None:
        """Say that nothing more is written; saying it again does nothing. Raises `ConnectionLost`."""
        if self._over is None:
            self._over = "this side had finished the stream"
            with self._connection.translated():
                await self._sender.finish()

    def set_priority(self, priority: int) -> None:
        """Streams of a higher priority are sent first. Holds from the next `write` on."""
        self._priority = priority

    def let_go(self, reason: str) -> None:
        """Give the library's objects back, once the node is closed. For `IrohConnection.let_go`."""
        self._over = reason
        self._receiver = self._sender = self._reading = None


def _secret_key(secret: bytes) -> iroh.SecretKey:
    if len(secret) != 32:
        raise ConfigError(detail=f"a node's secret has 32 bytes, not {len(secret)}")
    return iroh.SecretKey.from_bytes(secret)


@contextlib.contextmanager
def _ignored() -> Iterator[None]:
    """Let the library's errors pass where the caller is promised none."""
    with contextlib.suppress(iroh.IrohError, iroh_ffi.InternalError):
        yield


def _told(error: Exception) -> str:
    return _plain(error.message() if isinstance(error, iroh.IrohError) else str(error))


def _plain(cause: str) -> str:
    """A cause in the library's words, without its error codes, chains and places in the source."""
    by_peer = re.fullmatch(r"closed by peer: (?:(.*) \(code \d+\)|\d+)", cause, re.DOTALL)
    if by_peer:
        return by_peer[1] or "closed by the other side"
    lines = cause.rsplit("Caused by:", 1)[-1].strip().splitlines() or ["no reason given"]
    return re.sub(r"\s*\(/.*\)$", "", lines[-1].strip())
