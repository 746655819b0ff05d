"""Relays that answer again after they did not, and the homes that are made anew for them."""

from __future__ import annotations

import asyncio
import socket

import anyio
import anyio.lowlevel
import pytest

from jupyter_depin.protocol.identity import NodeAddress
from jupyter_depin.transport.homes import settle
from jupyter_depin.transport.memory import MemoryNetwork
from jupyter_depin.transport.relay_watch import RelayWatch, knock

RELAY = "https://relay.example"
PLACE = ("192.0.2.1", 443)
GENEROUS = 60


@pytest.fixture
def clock(monkeypatch):
    """The loop's time, which stands still unless a test moves it."""

    class Clock:
        now = 1000.0

    return lambda: monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: Clock.now) or Clock


class Door:
    """The relay, as it is knocked at. `up`: whether it answers."""

    def __init__(self) -> None:
        self.up = True
        self.knocks: list[tuple[str, int]] = []

    async def __call__(self, host, port):
        self.knocks.append((host, port))
        await anyio.lowlevel.checkpoint()
        return PLACE if self.up else None


async def test_a_relay_that_always_answered_is_not_regained():
    watch = RelayWatch(Door())
    assert [await watch.regained(RELAY) for _ in range(3)] == [False] * 3


async def test_a_relay_is_regained_from_its_first_answer_until_somebody_made_use_of_it():
    door = Door()
    watch = RelayWatch(door)
    await watch.regained(RELAY)
    door.up = False
    assert not await watch.regained(RELAY)
    door.up = True
    assert await watch.regained(RELAY)
    assert await watch.regained(RELAY)
    watch.renewed(RELAY)
    assert not await watch.regained(RELAY)


async def test_relays_are_told_apart():
    door = Door()
    watch = RelayWatch(door)
    await watch.regained(RELAY)
    door.up = False
    assert not await watch.regained(RELAY)
    door.up = True
    assert not await watch.regained("https://other.example")
    assert await watch.regained(RELAY)


async def test_a_knock_of_the_outage_that_gives_up_late_counts_for_nothing(clock):
    time = clock()
    gate, waiting, mended = anyio.Event(), [], time.now + 10

    async def knocked(host, port):
        if time.now >= mended:
            return PLACE
        waiting.append(None)
        await gate.wait()
        return None

    watch = RelayWatch(knocked)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.regained, RELAY)
        while not waiting:
            await anyio.lowlevel.checkpoint()
        time.now = mended
        assert not await watch.regained(RELAY)
        gate.set()
    assert not await watch.regained(RELAY)


async def test_a_name_is_looked_up_seldom_and_its_address_asked_in_between(clock):
    time, door = clock(), Door()
    watch = RelayWatch(door)
    for _ in range(21):
        await watch.regained(RELAY)
        time.now += 0.5
    assert door.knocks.count(("relay.example", 443)) == 3
    assert door.knocks.count(PLACE) >= 18


@pytest.mark.parametrize(
    ("relay", "server"),
    [
        ("https://relay.example", ("relay.example", 443)),
        ("http://192.0.2.9:3340/", ("192.0.2.9", 3340)),
        ("http://[2001:db8::1]:81", ("2001:db8::1", 81)),
        ("https://relay.example:x", None),
        ("nonsense", None),
    ],
)
async def test_a_relay_is_knocked_at_where_its_address_says(relay, server):
    door = Door()
    door.up = False
    await RelayWatch(door).regained(relay)
    assert door.knocks == ([] if server is None else [server])


async def test_a_server_on_the_network_is_found_and_a_closed_port_is_not():
    with anyio.fail_after(GENEROUS), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await knock("localhost", port) == ("127.0.0.1", port)
        server.close()
        assert await knock("127.0.0.1", port) is None
        assert await knock("x" * 70 + ".example", port) is None


class Deaf:
    """A home whose relay connection is dead and does not know: nothing comes of its dials, for ever."""

    def __init__(self, inner) -> None:
        self._inner, self.deaf, self.closed = inner, False, anyio.Event()

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def connect(self, address, protocol=b""):
        if self.deaf:
            await anyio.sleep_forever()
        return await self._inner.connect(address, protocol)

    async def close(self):
        await self._inner.close()
        self.closed.set()


class Relayed:
    """A node on a relay, and one that reaches it through that relay only."""

    def __init__(self) -> None:
        self.network, self.door, self.made = MemoryNetwork(), Door(), []

    async def start(self):
        async def at_home(relay, *, first):
            return self.network.endpoint("n", relay)

        async def make(relay, *, first):
            self.made.append(Deaf(self.network.endpoint("f", relay)))
            return self.made[-1]

        self.node = await settle(at_home, relays=[RELAY])
        self.friend = await settle(make, knock=self.door)
        self.network.keep_apart(self.node.node, self.friend.node)
        return self

    async def dial(self):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.node.accept)
            made = await self.friend.connect(NodeAddress(self.node.node, (RELAY,)))
        await anyio.wait_all_tasks_blocked()
        return made

    async def dial_in_vain(self):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.friend.connect, NodeAddress(self.node.node, (RELAY,)))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    async def outage(self):
        """A dial that comes to nothing while the relay does not answer; then it does."""
        self.door.up = False
        before = len(self.door.knocks)
        await self.dial_in_vain()
        assert len(self.door.knocks) > before
        self.door.up = True

    async def close(self):
        await self.friend.close()
        await self.node.close()


async def test_a_home_that_does_not_notice_that_its_relay_is_back_is_made_anew():
    with anyio.fail_after(GENEROUS):
        place = await Relayed().start()
        await (await place.dial()).close()
        old = place.made[-1]
        old.deaf = True
        await place.outage()
        carried = await place.dial()
        assert carried.path().remote == RELAY
        await old.closed.wait()
        assert len(place.made) == 3
        await carried.close()
        place.made[-1].deaf = True
        await place.dial_in_vain()
        assert len(place.made) == 3, "once is enough"
        await place.close()


async def test_a_home_that_carries_something_is_kept():
    with anyio.fail_after(GENEROUS):
        place = await Relayed().start()
        carried = await place.dial()
        made = len(place.made)
        await place.outage()
        second = await place.dial()
        assert len(place.made) == made
        assert carried.reason is None
        await second.close()
        await place.close()


async def test_a_node_that_cannot_be_reached_over_a_good_relay_costs_no_new_homes():
    with anyio.fail_after(GENEROUS):
        place = await Relayed().start()
        await (await place.dial()).close()
        made = len(place.made)
        place.made[-1].deaf = True
        for _ in range(5):
            await place.dial_in_vain()
        assert len(place.made) == made
        await place.close()


async def test_a_home_that_is_being_left_is_closed_with_its_node():
    with anyio.fail_after(GENEROUS):
        place = await Relayed().start()
        await (await place.dial()).close()
        old, gate = place.made[-1], anyio.Event()
        old.deaf, close, closing = True, old.close, []

        async def slow():
            closing.append(None)
            if len(closing) == 1:
                await gate.wait()
            await close()

        old.close = slow
        await place.outage()
        await place.dial()
        assert len(closing) == 1
        await place.close()
        assert old.closed.is_set()
