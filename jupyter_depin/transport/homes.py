"""A node that lives on several relays at once: one endpoint for each relay, all under the same key.

A relay that dies takes whoever is at home on it away: the library finds the next one only after more than a minute.
So nobody moves. Each endpoint has one home for good, all of them accept, and a dial tries one relay after the other
until a way is found. A relay keeps one connection for each key, so an endpoint never goes through the relay of another
one: dialling a node on a relay where this node is not at home makes one more endpoint, there.

A home that was made for a relay of another node's is made anew when that relay can be reached again after it could not:
the old one would wait for many seconds before it tries. `relay_watch.py` knows when; whatever such a home still carries has
a path of its own, and then the home stays.

Direct addresses are those of the first home and are tried together with its relay, or alone where that relay's name
cannot be read. To try them with another relay would let two endpoints of the other side answer one handshake; a pair of
homes that met over that one goes direct by what each was told of its own address.

Rejected: a list of relays for one endpoint (no way back for 67 s after a death); removing the dead relay from the list
on both sides (4 to 8 s, and the side that cannot be reached has to notice by itself). `docs/adr/0005`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from jupyter_depin.errors import ConfigError, ConnectionLost, PeerUnreachable, TransportError
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.transport import ALPN, Connection, Home
from jupyter_depin.transport.relay_watch import Knock, RelayWatch
from jupyter_depin.transport.seen import agreed

_HEAD_START_S = 0.25
"""How long one way of a dial is tried before the next one joins it. Far above a handshake over a living relay on most
links, far below the patience of somebody who waits for a cell."""

_LOOK_AGAIN_S = 300
"""How often others are asked how they see a home: networks change, and routers forget."""

_LOOK_SOON_S = 15
"""The least time between two askings: after a dial, since a cut may mean another network, and after a failure."""

_MOST_RELAYS = 8
"""How many relays of one node are tried: each costs an endpoint, and the list is the other side's."""


class Make(Protocol):
    """Makes an endpoint at home on a relay, or on none. `first`: the one with the direct addresses."""

    async def __call__(self, relay: str | None, *, first: bool) -> Home:
        """Raises `TransportError` and `ConfigError`."""


async def settle(
    make: Make,
    *,
    relays: Sequence[str] = (),
    announce: Sequence[str] = (),
    observers: Sequence[NodeAddress] = (),
    knock: Knock | None = None,
) -> Homes:
    """Make a node's homes. Called by `iroh.join`, and by tests with endpoints in memory.

    `announce`: addresses at which the first home can be reached although it does not know them itself. `observers`:
    nodes to ask how they see each home. `knock`: tries whether a relay can be reached, where such a thing can be.
    Raises what `make` raises.
    """
    homes: dict[str | None, Home] = {}
    try:
        for number, relay in enumerate(dict.fromkeys(relays) or [None]):
            homes[relay] = await make(relay, first=number == 0)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _close(homes.values())
        raise
    return Homes(make, homes, announce=tuple(announce), observers=tuple(observers), knock=knock)


class Homes:
    """One node, wherever it lives (port `Endpoint`). Made by `settle`; belongs to the loop that made it."""

    def __init__(
        self,
        make: Make,
        homes: dict[str | None, Home],
        *,
        announce: tuple[str, ...],
        observers: tuple[NodeAddress, ...],
        knock: Knock | None,
    ) -> None:
        self._make, self._homes = make, homes
        self._left: set[Home] = set()
        self._watch = None if knock is None else RelayWatch(knock)
        self._own = tuple(homes.values())
        self._announce, self._observers = announce, observers
        self._dialled: dict[str | None, anyio.Event] = {}
        self._moving = anyio.Lock()
        self._closed = self._welcoming = False
        self._arrived_in, self._arrived = anyio.create_memory_object_stream[Connection](0)
        self._tasks: TaskGroup | None = None
        self._over = asyncio.Event()
        self._living = asyncio.Event()
        # A node is opened by one call and closed by another, so no caller's task group can own its tasks: the node
        # does, and `close` ends them through their scope.
        self._life = asyncio.create_task(self._live())

    @property
    def node(self) -> NodeId:
        """This node's id."""
        return self._own[0].node

    def address(self) -> NodeAddress:
        """Where peers find this node now: every relay it is at home on, and the addresses of its first home."""
        relays = [relay for home in self._own for relay in home.address().relays]
        direct = dict.fromkeys((*self._announce, *self._own[0].address().direct))
        return NodeAddress(self.node, tuple(relays), tuple(direct))

    async def connect(self, address: NodeAddress, protocol: bytes = ALPN) -> Connection:
        """Dial a node directly and through each of its relays; the first that answers wins.

        Raises `PeerUnreachable` when none does. Cancelling is safe.
        """
        shown = next(iter((*address.direct, *address.relays)), address.node.hex())
        if self._closed:
            raise PeerUnreachable(address=shown)
        ways: list[tuple[str | None, NodeAddress]] = [
            (relay, NodeAddress(address.node, (relay,), () if number else address.direct))
            for number, relay in enumerate(dict.fromkeys(address.relays[:_MOST_RELAYS]))
        ]
        if not ways:
            return await self._own[0].connect(address, protocol)
        race = _Race(protocol)
        try:
            try:
                async with anyio.create_task_group() as tasks:
                    for relay, way in ways:
                        lost = anyio.Event()
                        tasks.start_soon(self._try, race, relay, way, tasks, lost)
                        with anyio.move_on_after(_HEAD_START_S):
                            await lost.wait()
            finally:
                race.over = True
        except BaseException:
            await race.abandon()
            raise
        if race.won is None:
            raise PeerUnreachable(address=shown) from race.failure
        return race.won

    async def accept(self) -> Connection:
        """Wait for the next authenticated peer, at whichever home. Raises `ConnectionLost` once this node is closed."""
        if len(self._own) == 1:
            return await self._own[0].accept()
        await self._living.wait()
        if not (self._welcoming or self._closed) and self._tasks is not None:
            # Not before somebody asks: a renter's node serves nobody, so nobody shall fill the streams of a connection
            # that is never looked at.
            self._welcoming = True
            for home in self._own:
                self._tasks.start_soon(self._welcome, home)
        try:
            return await self._arrived.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError) as error:
            raise ConnectionLost(detail="this node was closed") from error

    async def close(self) -> None:
        """End every connection and leave the network; afterwards the ports are free. Never raises."""
        self._closed = True
        self._over.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({self._life})
            await _close((*self._homes.values(), *self._left))

    async def _try(
        self, race: _Race, relay: str | None, way: NodeAddress, tasks: TaskGroup, lost: anyio.Event
    ) -> None:
        try:
            home, way = await self._way(relay, way)
            self._dialled.setdefault(relay, anyio.Event()).set()
            if relay is not None and home not in self._own:

                def again() -> None:
                    if not race.over:
                        tasks.start_soon(self._try, race, relay, way, tasks, lost)

                self._look_at(relay, home, again)
            connection = await home.connect(way, race.protocol)
        except (TransportError, ConfigError) as error:
            race.failure = race.failure or error
            lost.set()
            return
        if race.won is None:
            race.won = connection
            tasks.cancel_scope.cancel()
        else:
            with anyio.CancelScope(shield=True):
                await connection.close("another way was faster")

    async def _way(self, relay: str | None, way: NodeAddress) -> tuple[Home, NodeAddress]:
        """What dials, and where: the direct addresses alone where nobody can go through the relay beside them."""
        try:
            return await self._home(relay), way
        except (TransportError, ConfigError):
            if not way.direct:
                raise
            return self._own[0], NodeAddress(way.node, (), way.direct)

    async def _home(self, relay: str | None) -> Home:
        """The endpoint that goes through a relay, made if there is none yet."""
        async with self._moving:
            home = self._homes.get(relay)
            if home is None and not self._closed:
                home = self._homes[relay] = await self._make(relay, first=False)
                self._look_after(relay, home)
            if home is None:
                raise ConnectionLost(detail="this node was closed")
            return home

    def _look_at(self, relay: str, home: Home, again: Callable[[], None]) -> None:
        """Dial `again`, from a new home, where this one has not noticed that its relay is back.

        The dial does not wait for that, and its end does not end it: the next one profits too.
        """
        watch, tasks = self._watch, self._tasks

        async def look(watch: RelayWatch, tasks: TaskGroup) -> None:
            if await watch.regained(relay) and self._homes.get(relay) is home and home.idle:
                watch.renewed(relay)
                del self._homes[relay]
                self._left.add(home)
                tasks.start_soon(self._leave, home)
                again()

        if watch is not None and tasks is not None:
            tasks.start_soon(look, watch, tasks)

    async def _leave(self, home: Home) -> None:
        await home.close()
        self._left.discard(home)

    # -- the node's own life

    async def _live(self) -> None:
        async with anyio.create_task_group() as self._tasks, self._arrived_in:
            for relay, home in tuple(self._homes.items()):
                self._look_after(relay, home)
            self._living.set()
            await self._over.wait()
            self._tasks.cancel_scope.cancel()

    async def _welcome(self, home: Home) -> None:
        with suppress(ConnectionLost):
            while True:
                await self._arrived_in.send(await home.accept())

    def _look_after(self, relay: str | None, home: Home) -> None:
        if self._tasks is not None and (self._observers or self._announce):
            self._tasks.start_soon(self._know, relay, home)

    async def _know(self, relay: str | None, home: Home) -> None:
        """Keep telling a home under which addresses others see it."""
        announced = self._announce if home is self._own[0] else ()
        await home.tell_external(announced)
        pause: float = _LOOK_SOON_S
        # Without a relay nobody could be told in time to send something to that address, which opens the way.
        while len(self._observers) > 1 and relay is not None and self._homes.get(relay) is home:
            dialled = self._dialled[relay] = anyio.Event()
            seen = await agreed(home, self._observers)
            await home.tell_external((*announced, *((seen,) if seen else ())))
            pause = _LOOK_AGAIN_S if seen else min(2 * pause, _LOOK_AGAIN_S)
            await anyio.sleep(_LOOK_SOON_S)
            with anyio.move_on_after(pause - _LOOK_SOON_S):
                await dialled.wait()


class _Race:
    """Several ways to one node, tried side by side."""

    def __init__(self, protocol: bytes) -> None:
        self.protocol = protocol
        self.over = False
        self.won: Connection | None = None
        self.failure: Exception | None = None

    async def abandon(self) -> None:
        """Nobody waits for the winner any more."""
        if self.won is not None:
            with anyio.CancelScope(shield=True):
                await self.won.close("nobody waits for it any more")


async def _close(homes: Iterable[Home]) -> None:
    async with anyio.create_task_group() as tasks:
        for home in homes:
            tasks.start_soon(home.close)
