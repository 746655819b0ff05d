"""A node on several relays at once, on each network: whoever reaches one of its homes reaches the node."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from jupyter_depin.errors import ConfigError, ConnectionLost, PeerUnreachable
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.transport import Home, homes, iroh
from jupyter_depin.transport.homes import Homes, settle
from jupyter_depin.transport.memory import MemoryNetwork

RELAYS = ("https://one.example", "https://two.example")
GENEROUS = 120


class Place:
    """A network with two relays; `node(…)` joins it, `kill(relay)` ends a relay, `apart` leaves relays as the only way."""

    relays: tuple[str, ...]

    async def node(self, name: str, relays: tuple[str, ...] = (), **options: object) -> Homes:
        raise NotImplementedError

    def kill(self, relay: str) -> None:
        raise NotImplementedError

    def only_relays(self, address: NodeAddress) -> NodeAddress:
        """An address without direct places."""
        return NodeAddress(address.node, address.relays)


class Memory(Place):
    relays = RELAYS

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self._nodes: list[NodeId] = []

    async def node(self, name, relays=(), **options):
        async def make(relay: str | None, *, first: bool) -> Home:
            return self.network.endpoint(name, relay)

        made = await settle(make, relays=relays, **options)
        for other in self._nodes:
            self.network.keep_apart(made.node, other)
        self._nodes.append(made.node)
        return made

    def kill(self, relay):
        self.network.kill_relay(relay)


class Real(Place):
    def __init__(self, relays) -> None:
        self._running = relays
        self.relays = tuple(relays)

    async def node(self, name, relays=(), **options):
        return await iroh.join(
            secret=name.encode().ljust(32, b"."), listen="127.0.0.1:0", relays=relays, **options
        )

    def kill(self, relay):
        self._running[relay].kill()
        self._running[relay].wait()


Places = Callable[[], AbstractAsyncContextManager[Place]]


@pytest.fixture(params=["iroh", "memory"])
def places(request) -> Places:
    """Two relays, and a network on which every other path is closed or unknown."""

    @asynccontextmanager
    async def made() -> AsyncIterator[Place]:
        with anyio.fail_after(GENEROUS):
            if request.param == "memory":
                yield Memory()
            else:
                run = request.getfixturevalue("relays")
                yield Real(run(2))

    if request.param == "iroh":
        # Asked for here: a fixture that skips must do so outside of the test's loop.
        request.getfixturevalue("relays")
    return made


async def _met(dialler: Homes, answerer: Homes, address: NodeAddress):
    found = []

    async def answer():
        found.append(await answerer.accept())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        mine = await dialler.connect(address)
    return mine, found[0]


async def _talk(here, there):
    mine = await here.open_stream()
    await mine.write(b"hello")
    theirs = await there.accept_stream()
    assert await theirs.read(5) == b"hello"


async def test_a_node_is_at_home_on_every_relay(places):
    async with places() as place:
        node, friend = await place.node("n", place.relays), await place.node("f")
        try:
            assert node.address().relays == place.relays
            for relay in place.relays:
                here, there = await _met(friend, node, NodeAddress(node.node, (relay,)))
                assert (here.peer, there.peer) == (node.node, friend.node)
                await _talk(here, there)
                await here.close()
        finally:
            await friend.close()
            await node.close()


async def test_a_dead_relay_is_passed_by(places):
    async with places() as place:
        node, friend = await place.node("n", place.relays), await place.node("f")
        try:
            address = place.only_relays(node.address())
            place.kill(place.relays[0])
            here, there = await _met(friend, node, address)
            # Asked once: a direct path may open at any moment.
            path = here.path()
            assert not path.relayed or path.remote.startswith(place.relays[1])
            await _talk(here, there)
        finally:
            await friend.close()
            await node.close()


async def test_direct_addresses_are_enough_for_nodes_without_relays(places):
    async with places() as place:
        if isinstance(place, Memory):
            place.network.keep_apart = lambda a, b: None
        node, friend = await place.node("n"), await place.node("f")
        try:
            assert node.address().relays == ()
            here, there = await _met(friend, node, node.address())
            assert not here.path().relayed
            await _talk(here, there)
        finally:
            await friend.close()
            await node.close()


async def test_announced_addresses_come_first(places):
    async with places() as place:
        node = await place.node("n", announce=("192.0.2.7:7979",))
        try:
            assert node.address().direct[0] == "192.0.2.7:7979"
            assert len(node.address().direct) > 1
        finally:
            await node.close()


async def test_a_closed_node_neither_dials_nor_accepts(places):
    async with places() as place:
        node, other = await place.node("n", place.relays), await place.node("o", place.relays)
        address = other.address()

        async def accept():
            with pytest.raises(ConnectionLost):
                await node.accept()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            await node.close()
        await node.close()
        await accept()
        with pytest.raises(PeerUnreachable):
            await node.connect(address)
        await other.close()


async def test_a_node_that_serves_nobody_lets_nobody_in():
    """A stranger's connection that nobody takes would lie there with all that is written on it."""
    with anyio.fail_after(GENEROUS):
        node = await iroh.join(
            secret=os.urandom(32), listen="127.0.0.1:0", relays=["http://127.0.0.1:1", "http://127.0.0.1:2"]
        )
        stranger = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0", dial_seconds=1)
        try:
            with pytest.raises(PeerUnreachable):
                await stranger.connect(NodeAddress(node.node, (), node.address().direct))
        finally:
            await stranger.close()
            await node.close()


async def test_nobody_at_home_anywhere_is_unreachable():
    with anyio.fail_after(GENEROUS):
        place = Memory()
        node, friend = await place.node("n", RELAYS), await place.node("f")
        address = node.address()
        for relay in RELAYS:
            place.kill(relay)
        with pytest.raises(PeerUnreachable):
            await friend.connect(address)
        await friend.close()
        await node.close()


async def test_a_relay_that_is_no_address_is_named_and_leaves_nothing_open():
    with pytest.raises(ConfigError, match="nonsense"):
        await iroh.join(
            secret=os.urandom(32), listen="127.0.0.1:0", relays=["http://127.0.0.1:1", "nonsense"]
        )


async def test_a_ticket_with_a_wrong_relay_is_still_good_for_the_others():
    class Picky(Memory):
        async def node(self, name, relays=(), **options):
            async def make(relay, *, first):
                if relay == "nonsense":
                    raise ConfigError(detail="no address")
                return self.network.endpoint(name, relay)

            return await settle(make, relays=relays, **options)

    with anyio.fail_after(GENEROUS):
        place = Picky()
        node, friend = await place.node("n", RELAYS), await place.node("f")
        here, there = await _met(friend, node, NodeAddress(node.node, ("nonsense", RELAYS[1])))
        await _talk(here, there)
        await friend.close()
        await node.close()


async def test_a_ticket_with_nothing_but_wrong_relays_is_unreachable_and_no_fault_of_the_settings():
    with anyio.fail_after(GENEROUS):
        friend = await iroh.join(secret=os.urandom(32), listen="127.0.0.1:0")
        with pytest.raises(PeerUnreachable, match="nonsense"):
            await friend.connect(NodeAddress(NodeId(bytes(32)), ("nonsense",)))
        await friend.close()


async def test_direct_addresses_are_tried_beside_a_relay_that_is_no_address():
    with anyio.fail_after(GENEROUS):
        node = await iroh.join(secret=os.urandom(32), listen="127.0.0.1:0")
        friend = await iroh.join(secret=os.urandom(32), listen="127.0.0.1:0")
        address = NodeAddress(node.node, ("nonsense",), node.address().direct)
        here, there = await _met(friend, node, address)
        await _talk(here, there)
        await friend.close()
        await node.close()


async def test_a_crowd_of_relays_makes_no_crowd_of_endpoints():
    with anyio.fail_after(GENEROUS):
        place = Memory()
        node, friend = await place.node("n", RELAYS), await place.node("f")
        crowd = tuple(f"https://{number}.example" for number in range(30))
        with pytest.raises(PeerUnreachable):
            await friend.connect(NodeAddress(node.node, crowd))
        assert len(friend._homes) <= 1 + homes._MOST_RELAYS
        await friend.close()
        await node.close()


class _Slow:
    """An endpoint whose dials end when the test says so."""

    def __init__(self, inner, gate) -> None:
        self._inner, self._gate = inner, gate

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def connect(self, address, protocol=b""):
        with anyio.CancelScope(shield=True):
            connection = await self._inner.connect(address, protocol)
            await self._gate.wait()
        return connection


async def test_the_slower_way_is_closed_again(monkeypatch):
    monkeypatch.setattr(homes, "_HEAD_START_S", 0)
    with anyio.fail_after(GENEROUS):
        network, gate = MemoryNetwork(), anyio.Event()

        async def make(relay, *, first):
            made = network.endpoint("f", relay)
            return _Slow(made, gate) if relay == RELAYS[0] else made

        async def at_home(relay, *, first):
            return network.endpoint("n", relay)

        node, friend = await settle(at_home, relays=RELAYS), await settle(make)
        network.keep_apart(node.node, friend.node)
        accepted, winner = [], []

        async def dial():
            winner.append(await friend.connect(node.address()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dial)
            accepted += [await node.accept(), await node.accept()]
            gate.set()
        assert winner[0].path().remote == RELAYS[1]
        slower = next(each for each in accepted if each.path().remote == RELAYS[0])
        assert await slower.closed() == "another way was faster"
        await _talk(winner[0], next(each for each in accepted if each is not slower))
        await friend.close()
        await node.close()


async def test_a_closed_node_that_never_accepted_says_that_it_is_closed():
    with anyio.fail_after(GENEROUS):
        node = await Memory().node("n", RELAYS)
        await node.close()
        with pytest.raises(ConnectionLost, match="closed"):
            await node.accept()
