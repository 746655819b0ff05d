"""The network through iroh: QUIC with TLS 1.3, peers dialled by key, holes punched, relays where nothing else goes.

The binding's inner workings are the business of `iroh_calls`; here its objects become the ports of this package, and
every error of its own becomes a `TransportError`. No public service is asked for addresses: a node is found through
the addresses and relays that its caller names, and through nothing else.

The library keeps a node's port until the last object of that node is gone: connections and streams as well as the
endpoint. Closing an endpoint therefore takes all of them away from whoever still holds ours.

What the binding does not let us choose: QUIC's idle time-out (30 s) and keep-alive, so whoever must notice a dead link
sooner needs acknowledgements of its own; the windows of flow control (1.25 MB for each stream; that of a connection can
be set, but only once the peer was told that it has no bound); and a second socket for IPv6 on all interfaces, whatever `listen` says.

Rejected: asyncssh (no way through NATs), aioquic (the same, and slow), libp2p (another event loop).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Collection, Sequence

import anyio
import iroh
from anyio.abc import TaskGroup
from iroh import iroh_ffi

from jupyter_depin.errors import ConfigError, ConnectionLost, PeerUnreachable, PortInUse, TransportError
from jupyter_depin.protocol.identity import NodeAddress, NodeId, node_id
from jupyter_depin.transport import ALPN, SEEN
from jupyter_depin.transport.homes import Homes, settle
from jupyter_depin.transport.iroh_connection import IrohConnection, renew_calls
from jupyter_depin.transport.iroh_errors import ignored, told
from jupyter_depin.transport.iroh_fork import renewed
from jupyter_depin.transport.iroh_free import owned
from jupyter_depin.transport.relay_watch import knock

_HANDSHAKE_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
"""Far more than the library needs (3 s after a dial that was given up): a close that is cut off never frees the port."""

_ROOM = 64
"""Peers that may be shaking hands or waiting for `accept`, together."""
_CROWD = 16
"""From so many handshakes on, newcomers have to show first that their address is their own."""


def node_id_of(secret: bytes) -> NodeId:
    """The node that a 32-byte ed25519 seed makes. Raises `ConfigError` when it has another length."""
    return node_id(_secret_key(secret).public().to_bytes())


async def join(
    *,
    secret: bytes,
    listen: str = "0.0.0.0:0",
    relays: Sequence[str] = (),
    announce: Sequence[str] = (),
    observers: Sequence[NodeAddress] = (),
) -> Homes:
    """Join the network as the node of `secret`, at home on each of `relays`. Called once per node, by its program.

    `listen` is the UDP address of the first home; `announce`: where else that one is reached, say through a port
    that a router forwards; `observers`: nodes that tell how they see this one. Raises as `bind` does.
    """

    async def make(relay: str | None, *, first: bool) -> IrohEndpoint:
        place = listen if first else f"{listen.rpartition(':')[0]}:0"
        return await bind(secret=secret, listen=place, relay=relay)

    return await settle(make, relays=relays, announce=announce, observers=observers, knock=knock)


async def bind(
    *,
    secret: bytes,
    listen: str = "0.0.0.0:0",
    relay: str | None = None,
    protocols: Sequence[bytes] = (ALPN, SEEN),
    dial_seconds: float = 10.0,
) -> IrohEndpoint:
    """Make one home of the node of `secret`, on UDP address `listen` (port 0: any), at home on `relay` or nowhere.

    Called by `join`; the home belongs to the event loop that calls. It answers whoever speaks one of `protocols`. A
    dial that is not answered ends after `dial_seconds`. Raises `PortInUse`, `ConfigError` (an address that cannot be
    read) and `TransportError`.
    """
    if renewed():
        renew_calls()
    key = _secret_key(secret)
    try:
        # Without a relay of its own it can still dial through those of others.
        mode = iroh.RelayMode.custom_from_urls([] if relay is None else [relay])
    except iroh.IrohError as error:
        raise ConfigError(detail=f"the relay {relay!r} is no address of the web: {told(error)}") from error
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(),
        bind_addr=listen,
        secret_key=key.to_bytes(),
        alpns=list(protocols),
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
        raise TransportError(detail=told(error)) from error
    return IrohEndpoint(endpoint, relay=relay, dial_seconds=dial_seconds)


class IrohEndpoint:
    """One home of a node on the network (port `Home`). Made by `bind`."""

    def __init__(self, endpoint: iroh.Endpoint, *, relay: str | None, dial_seconds: float) -> None:
        self._endpoint: iroh.Endpoint | None = owned(endpoint)
        self._relays = () if relay is None else (relay,)
        self._dial_seconds = dial_seconds
        self._node = node_id(endpoint.id().to_bytes())
        self._address = NodeAddress(self._node, self._relays)
        self._external: set[str] = set()
        self._closed = False
        self._connections: weakref.WeakSet[IrohConnection] = weakref.WeakSet()
        self._room = asyncio.Semaphore(_ROOM)
        self._arrived: asyncio.Queue[IrohConnection | None] = asyncio.Queue()
        self._welcomer: asyncio.Task[None] | None = None
        self._handshakes: TaskGroup | None = None
        self._shaking: dict[anyio.CancelScope, None] = {}
        self._guards: set[asyncio.Task[None]] = set()

    @property
    def node(self) -> NodeId:
        """This node's id."""
        return self._node

    @property
    def idle(self) -> bool:
        """Whether none of its connections is open."""
        return all(connection.ended for connection in self._connections)

    def address(self) -> NodeAddress:
        """Where peers find this home now: the library's own view, and this machine itself where it listens on all.

        A closed home keeps its last address.
        """
        if self._endpoint is None:
            return self._address
        direct = dict.fromkeys((*sorted(self._external), *self._endpoint.addr().direct_addresses()))
        for bound in self._endpoint.bound_sockets():
            ip, _, port = bound.rpartition(":")
            if ip == "0.0.0.0":
                direct[f"127.0.0.1:{port}"] = None
        self._address = NodeAddress(self._node, self._relays, tuple(direct))
        return self._address

    async def tell_external(self, addresses: Collection[str]) -> None:
        """From now on tell peers that this socket is seen at these addresses, and at no others. Never raises."""
        wanted, before = set(addresses), self._external
        self._external = wanted
        endpoint = self._endpoint
        if endpoint is None:
            return
        with ignored():
            for each in wanted - before:
                await endpoint.add_external_addr(each)
            for each in before - wanted:
                await endpoint.remove_external_addr(each)

    async def connect(self, address: NodeAddress, protocol: bytes = ALPN) -> IrohConnection:
        """Dial a node directly and through the first of its relays. Raises `PeerUnreachable`. Cancelling is safe.

        It gives up after `dial_seconds` at the latest.
        """
        relay = address.relays[0] if address.relays else None
        shown = next(iter((*address.direct, relay)), None) or address.node.hex()
        if self._endpoint is None or self._closed:
            raise PeerUnreachable(address=shown)
        try:
            target = iroh.EndpointAddr(iroh.EndpointId.from_bytes(address.node), relay, list(address.direct))
            with anyio.fail_after(self._dial_seconds):
                dialled = self._adopt(await self._endpoint.connect(target, protocol))
        except (iroh.IrohError, iroh_ffi.InternalError, TimeoutError) as error:
            raise PeerUnreachable(address=shown) from error
        # Lives as long as the connection, so no caller's task group can own it; `close` waits for its end.
        guard = asyncio.create_task(dialled.bear_no_more())
        self._guards.add(guard)
        guard.add_done_callback(self._guards.discard)
        return dialled

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
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True), ignored():
            if self._handshakes is not None:
                self._handshakes.cancel_scope.cancel()
            if self._welcomer is not None:
                await asyncio.wait({self._welcomer})
            for guard in self._guards:
                guard.cancel()
            if self._guards:
                await asyncio.wait(self._guards)
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
                    incoming = await self._endpoint.accept_next()
                    if incoming is None:
                        break
                    if self._room.locked() and self._shaking:
                        # Whoever began longest ago and has not finished makes room, or a few that never do would hold it.
                        next(iter(self._shaking)).cancel()
                    await self._room.acquire()
                    self._handshakes.start_soon(self._shake_hands, incoming)
        finally:
            self._arrived.put_nowait(None)

    async def _shake_hands(self, incoming: iroh.Incoming) -> None:
        adopted: IrohConnection | None = None
        with anyio.move_on_after(_HANDSHAKE_SECONDS) as scope, ignored():
            self._shaking[scope] = None
            if len(self._shaking) <= _CROWD or await incoming.remote_addr_validated():
                adopted = self._adopt(await (await incoming.accept()).connect())
            else:
                # In a crowd, only who answers from the address that it claims costs a handshake.
                await incoming.retry()
        self._shaking.pop(scope, None)
        if adopted is None:
            self._room.release()
            return
        self._arrived.put_nowait(adopted)
        await adopted.bear_no_more()


def _secret_key(secret: bytes) -> iroh.SecretKey:
    if len(secret) != 32:
        raise ConfigError(detail=f"a node's secret has 32 bytes, not {len(secret)}")
    return iroh.SecretKey.from_bytes(secret)
