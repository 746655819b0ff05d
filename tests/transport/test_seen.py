"""How a node learns at which address others see it, on each network and from nodes that lie."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol.identity import NodeAddress
from jupyter_depin.transport import SEEN, homes, iroh, seen
from jupyter_depin.transport.homes import settle
from jupyter_depin.transport.memory import MemoryEndpoint, MemoryNetwork

GENEROUS = 60
OUTSIDE = "203.0.113.9:4000"


async def _answering(endpoint):
    while True:
        connection = await endpoint.accept()
        assert connection.protocol == SEEN
        await seen.answer(connection)


async def test_a_node_is_told_its_address(nodes):
    async with nodes() as (a, b), anyio.create_task_group() as tasks:
        tasks.start_soon(_answering, b)
        assert await seen.ask(a, b.address()) in a.address().direct
        tasks.cancel_scope.cancel()


async def test_who_does_not_answer_tells_nothing(nodes):
    async with nodes() as (a, b):
        await b.close()
        assert await seen.ask(a, NodeAddress(b.node, (), ("127.0.0.1:9",))) is None


@asynccontextmanager
async def _observed(*answers, count=2):
    """A node in memory, and some others that answer `answers` in turn (default: what they see)."""
    network = MemoryNetwork()
    me = network.endpoint("me")
    observers = [network.endpoint(f"observer {number}") for number in range(count)]

    async def lie(observer, words):
        while True:
            connection = await observer.accept()
            stream = await connection.accept_stream()
            await stream.read(1)
            await stream.write(words)
            await stream.finish()

    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:
            for number, observer in enumerate(observers):
                if number < len(answers):
                    tasks.start_soon(lie, observer, answers[number])
                else:
                    tasks.start_soon(_answering, observer)
            yield network, me, [observer.address() for observer in observers]
            tasks.cancel_scope.cancel()


async def test_one_that_opens_streams_instead_of_answering_is_left_at_once(monkeypatch):
    monkeypatch.setattr(seen, "_ASK_S", 10 * GENEROUS)
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        me, flooder = network.endpoint("me"), network.endpoint("flooder")
        opened: list[int] = []

        async def flood():
            connection = await flooder.accept()
            with suppress(ConnectionLost):
                while True:
                    stream = await connection.open_stream()
                    await stream.write(bytes(1000))
                    opened.append(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            assert await seen.ask(me, flooder.address()) is None
        assert len(opened) < 20


async def test_two_that_agree_are_believed():
    async with _observed() as (network, me, observers):
        network.mask(me.node, lambda _: OUTSIDE)
        assert await seen.agreed(me, observers) == OUTSIDE


async def test_a_nat_that_gives_each_peer_another_port_is_noticed():
    async with _observed() as (network, me, observers):
        network.mask(me.node, lambda peer: f"203.0.113.9:{4000 + peer[0]}")
        assert await seen.agreed(me, observers) is None


async def test_one_alone_is_not_believed():
    async with _observed(count=1) as (network, me, observers):
        network.mask(me.node, lambda _: OUTSIDE)
        assert await seen.agreed(me, [*observers, me.address()]) is None


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"x" * 65,
        b"x" * 100_000,
        b"nowhere",
        b"1.2.3.4",
        b"1.2.3.4:0",
        b"1.2.3.4:99999",
        b":1",
        b"\xff:1",
        b"host:1",
    ],
)
async def test_what_is_no_address_is_not_believed(lie):
    async with _observed(lie, lie) as (_network, me, observers):
        assert await seen.agreed(me, observers) is None


async def test_a_node_names_to_its_peers_where_it_is_seen():
    async with _observed() as (network, me, observers):
        network.mask(me.node, lambda _: OUTSIDE)
        told = anyio.Event()

        class Listening(MemoryEndpoint):
            async def tell_external(self, addresses):
                await super().tell_external(addresses)
                if OUTSIDE in addresses:
                    told.set()

        async def make(relay, *, first):
            home = network.endpoint("me", relay)
            home.__class__ = Listening
            return home

        node = await settle(
            make, relays=["https://one.example"], observers=observers, announce=["192.0.2.1:1"]
        )
        await told.wait()
        assert node.address().direct[:2] == ("192.0.2.1:1", OUTSIDE)
        await node.close()


async def test_a_dial_makes_a_node_look_again(monkeypatch):
    monkeypatch.setattr(homes, "_LOOK_SOON_S", 0)
    async with _observed() as (network, me, observers):
        network.mask(me.node, lambda _: OUTSIDE)
        told = {OUTSIDE: anyio.Event(), "203.0.113.9:5000": anyio.Event()}

        class Listening(MemoryEndpoint):
            async def tell_external(self, addresses):
                await super().tell_external(addresses)
                for address in addresses:
                    told[address].set()

        async def make(relay, *, first):
            home = network.endpoint("me", relay)
            home.__class__ = Listening
            return home

        relay = "https://one.example"
        node, friend = await settle(make, relays=[relay], observers=observers), network.endpoint("f", relay)
        await told[OUTSIDE].wait()
        network.mask(me.node, lambda _: "203.0.113.9:5000")
        await node.connect(friend.address())
        await told["203.0.113.9:5000"].wait()
        assert OUTSIDE not in node.address().direct
        await node.close()


async def test_a_relay_sees_no_address_worth_telling():
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        a, b = network.endpoint("a"), network.endpoint("b", "https://one.example")
        network.keep_apart(a.node, b.node)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_answering, b)
            connection = await a.connect(b.address(), SEEN)
            stream = await connection.open_stream()
            await stream.write(b"?")
            assert await stream.read(100) == b""
            await connection.close()
            tasks.cancel_scope.cancel()


async def test_what_real_nodes_see_is_ones_own_socket_and_is_told_to_peers():
    with anyio.fail_after(GENEROUS):
        me, *others = [await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0") for _ in range(3)]
        try:
            async with anyio.create_task_group() as tasks:
                for other in others:
                    tasks.start_soon(_answering, other)
                found = await seen.agreed(me, [other.address() for other in others])
                tasks.cancel_scope.cancel()
            assert (found,) == me.address().direct
            await me.tell_external([OUTSIDE])
            assert OUTSIDE in me.address().direct
            await me.tell_external([])
            assert OUTSIDE not in me.address().direct
        finally:
            for each in (me, *others):
                await each.close()
