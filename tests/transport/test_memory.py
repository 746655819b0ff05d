"""The faults that only a network in memory can make on demand."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from jupyter_depin.errors import ConnectionLost, PeerUnreachable
from jupyter_depin.transport.memory import MemoryNetwork


@asynccontextmanager
async def _joined(join, open_pair, **settings):
    with anyio.fail_after(60):
        network = MemoryNetwork(**settings)
        a, b = network.endpoint("a"), network.endpoint("b")
        here, there = await join(a, b)
        yield network, a, b, here, there, *(await open_pair(here, there))


async def _is_silent(call, *args) -> bool:
    """Whether a call waits although everything else has come to rest."""
    ended = anyio.Event()

    async def attempt():
        await call(*args)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return not ended.is_set()


def test_an_id_follows_from_the_name():
    one, other = MemoryNetwork(), MemoryNetwork()
    assert one.endpoint("a").node == other.endpoint("a").node != other.endpoint("b").node


async def test_a_silenced_link_says_nothing_and_old_connections_come_back_late(open_pair, join):
    network = MemoryNetwork()
    a, b = network.endpoint("a"), network.endpoint("b")
    with anyio.fail_after(60):
        mine, theirs = await open_pair(*await join(a, b))
        network.silence(a.node, b.node)
        await mine.write(b"late")
        with pytest.raises(PeerUnreachable):
            await a.connect(b.address())
        network.mend(a.node, b.node)
        new, there = await open_pair(*await join(a, b))
        await new.write(b"early")
        assert await there.read(10) == b"early"
        got: list[bytes] = []

        async def read() -> None:
            got.append(await theirs.read(10))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert got == []
            network.release()
        assert got == [b"late"]


async def test_a_cut_ends_connections_on_both_sides_and_refuses_new_ones(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, here, there, mine, theirs):
        async with anyio.create_task_group() as tasks:
            for stream in (mine, theirs):
                tasks.start_soon(_expect_loss, stream.read, 1)
            await anyio.wait_all_tasks_blocked()
            network.cut(a.node, b.node)
        assert await here.closed() == await there.closed() == "timed out"
        for dialler, answerer in ((a, b), (b, a)):
            with pytest.raises(PeerUnreachable):
                await dialler.connect(answerer.address())
        network.mend(b.node, a.node)
        await join(a, b)
        with pytest.raises(ConnectionLost):
            await mine.write(b"the old connection stays lost")


async def _expect_loss(call, *args):
    with pytest.raises(ConnectionLost):
        await call(*args)


async def test_a_cut_leaves_other_links_alone(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, _here, _there, mine, theirs):
        c = network.endpoint("c")
        network.cut(a.node, c.node)
        await mine.write(b"x")
        assert await theirs.read(1) == b"x"
        await join(b, c)


async def test_dropped_connections_may_be_dialled_again(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, here, _there, _mine, theirs):
        network.drop_connections(a.node, b.node)
        assert await here.closed()
        await _expect_loss(theirs.read, 1)
        await join(a, b)


async def test_what_was_under_way_at_a_cut_is_lost_and_what_was_delivered_is_not(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, _here, _there, mine, theirs):
        await mine.write(b"delivered")
        network.hold()
        await mine.write(b"under way")
        network.cut(a.node, b.node)
        network.release()
        assert await theirs.read(100) == b"delivered"
        await _expect_loss(theirs.read, 100)


async def test_held_bytes_and_ends_arrive_in_order_when_released(join, open_pair, read_all):
    async with _joined(join, open_pair) as (network, _a, _b, here, there, mine, theirs):
        network.hold()
        await mine.write(b"one ")
        await mine.write(b"two")
        await mine.finish()
        new = await here.open_stream()
        await new.write(b"new")
        assert await _is_silent(theirs.read, 1)
        assert await _is_silent(there.accept_stream)
        network.release()
        assert await read_all(theirs) == b"one two"
        assert await (await there.accept_stream()).read(10) == b"new"
        await theirs.write(b"nothing is held any more")
        assert await mine.read(100)


async def test_one_direction_can_be_held(join, open_pair):
    async with _joined(join, open_pair) as (network, a, _b, _here, _there, mine, theirs):
        network.hold(a.node)
        await mine.write(b"question")
        await theirs.write(b"something else")
        assert await mine.read(100) == b"something else"
        assert await _is_silent(theirs.read, 1)


async def test_a_message_can_be_cut_in_its_middle(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, _here, _there, mine, theirs):
        network.hold()
        await mine.write(b"first")
        await mine.write(b"second")
        network.deliver(8)
        network.drop_connections(a.node, b.node)
        assert await theirs.read(100) == b"firstsec"
        await _expect_loss(theirs.read, 1)


async def test_a_stream_takes_in_no_more_than_its_window(join, open_pair):
    async with _joined(join, open_pair, window=10) as (network, _a, _b, here, _there, mine, theirs):
        await mine.write(bytes(10))
        assert await _is_silent(mine.write, b"x")
        assert await theirs.read(4) == bytes(4)
        network.hold()
        held = await here.open_stream()
        assert await _is_silent(held.write, bytes(11))


async def test_a_cut_wakes_a_writer_that_waits(join, open_pair):
    async with (
        _joined(join, open_pair, window=10) as (network, a, b, _here, _there, mine, _theirs),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_expect_loss, mine.write, bytes(11))
        await anyio.wait_all_tasks_blocked()
        network.cut(a.node, b.node)


async def test_a_node_can_go_and_come_back(join, open_pair):
    async with _joined(join, open_pair) as (network, a, b, here, _there, _mine, _theirs):
        await b.close()
        assert await here.closed() == "the node was closed"
        with pytest.raises(PeerUnreachable):
            await a.connect(b.address())
        again = network.endpoint("b")
        assert again.node == b.node
        here, _ = await join(a, again)
        assert here.peer == b.node


async def test_priorities_can_be_looked_up(join, open_pair):
    async with _joined(join, open_pair) as (_network, _a, _b, _here, _there, mine, _theirs):
        mine.set_priority(7)
        assert mine.priority == 7
