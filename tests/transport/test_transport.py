"""What tunnels rely on, asked of every network alike.

Cancelled reads lose nothing on iroh too, though its binding drops what a cancelled call had received: `iroh_calls`
keeps the call for the next reader. (With the binding's plain calls, the fallback, that does not hold.)
"""

from __future__ import annotations

import os

import anyio
import anyio.lowlevel
import pytest

from jupyter_depin.errors import ConnectionLost, PeerUnreachable
from jupyter_depin.protocol.identity import NodeAddress, node_id

BIG = 8 << 20


async def test_both_sides_know_whom_they_talk_to(nodes, join):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        assert (here.peer, there.peer) == (b.node, a.node)
        assert a.address().node == a.node != b.node


async def test_a_connection_tells_its_path(nodes, join):
    async with nodes() as (a, b):
        here, _ = await join(a, b)
        path = here.path()
        assert path is not None
        assert not path.relayed
        assert path.rtt_ms >= 0


async def test_bytes_arrive_in_order(nodes, join, open_pair, read_all):
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        for number in range(1000):
            await mine.write(b"%d," % number)
        await mine.finish()
        assert await read_all(theirs) == b"".join(b"%d," % number for number in range(1000))


async def test_a_read_returns_no_more_than_its_limit(nodes, join, open_pair):
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        await mine.write(b"abcdef")
        await mine.finish()
        pieces = []
        while piece := await theirs.read(2):
            assert len(piece) <= 2
            pieces.append(piece)
        assert b"".join(pieces) == b"abcdef"


async def test_many_streams_do_not_mix(nodes, join, read_all):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        received = []

        async def send(number):
            stream = await here.open_stream()
            stream.set_priority(number)
            for _ in range(20):
                await stream.write(bytes([number]) * 500)
            await stream.finish()

        async def receive(stream):
            received.append(await read_all(stream))

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(send, number)
            for _ in range(40):
                tasks.start_soon(receive, await there.accept_stream())
        assert sorted(received) == [bytes([number]) * 10_000 for number in range(40)]


async def test_the_accepting_side_can_open_streams_too(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        theirs, mine = await open_pair(there, here)
        await theirs.write(b"from there")
        assert await mine.read(100) == b"from there"


@pytest.mark.parametrize("kind", [bytes, memoryview, lambda data: memoryview(b"-" + data + b"-")[1:-1]])
async def test_big_payloads_arrive_intact(nodes, join, open_pair, read_all, kind):
    payload = os.urandom(BIG)
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        received = []

        async def receive():
            received.append(await read_all(theirs))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await mine.write(kind(payload))
            await mine.finish()
        assert received == [payload]


async def test_both_ends_can_send_a_lot_at_once(nodes, join, open_pair, read_all):
    payloads = os.urandom(BIG // 2), os.urandom(BIG // 2)
    async with nodes() as (a, b):
        streams = await open_pair(*await join(a, b))
        received = {}

        async def send(stream, payload):
            await stream.write(payload)
            await stream.finish()

        async def receive(stream):
            received[stream] = await read_all(stream)

        async with anyio.create_task_group() as tasks:
            for stream, payload in zip(streams, payloads, strict=True):
                tasks.start_soon(send, stream, payload)
                tasks.start_soon(receive, stream)
        assert (received[streams[1]], received[streams[0]]) == payloads


async def test_one_direction_ends_and_the_other_goes_on(nodes, join, open_pair, read_all):
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        await mine.write(b"question")
        await mine.finish()
        await mine.finish()
        assert await read_all(theirs) == b"question"
        assert await theirs.read(1) == b""
        await theirs.write(b"answer")
        await theirs.finish()
        assert await read_all(mine) == b"answer"


async def test_nothing_is_written_after_the_end(nodes, join, open_pair):
    async with nodes() as (a, b):
        mine, _ = await open_pair(*await join(a, b))
        await mine.finish()
        with pytest.raises(ConnectionLost):
            await mine.write(b"late")


async def test_a_writer_waits_for_a_reader(nodes, join, open_pair, read_all):
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        written = anyio.Event()

        async def send():
            await mine.write(bytes(BIG))
            written.set()
            await mine.finish()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert not written.is_set()
            assert len(await read_all(theirs)) == BIG
            await written.wait()


@pytest.mark.parametrize("early", [True, False], ids=["arrived before", "arrives meanwhile"])
async def test_a_cancelled_read_loses_nothing(nodes, join, open_pair, early):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        mine, theirs = await open_pair(here, there)
        signal, watch = await open_pair(here, there)
        sent, received = bytearray(), bytearray()

        async def send(number):
            message = b"%d, " % number
            sent.extend(message)
            await mine.write(message)

        async def read(scope, limit):
            with scope:
                received.extend(await theirs.read(limit))

        for number in range(150):
            if early:
                await send(number)
                await signal.write(b"!")
                await watch.read(1)
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(read, scope, 1000 if number % 2 else 3)
                await anyio.lowlevel.checkpoint()
                if not early:
                    await send(number)
                # Cancel at each of the moments at which a reader can be.
                for _ in range(number % 3 if early else number // 2):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        while len(received) < len(sent):
            received += await theirs.read(7)
        assert received == sent


async def test_a_cancelled_wait_loses_no_stream(nodes, join):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        accepted = []

        async def accept(scope):
            with scope:
                accepted.append(await there.accept_stream())

        for number in range(60):
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(accept, scope)
                await anyio.lowlevel.checkpoint()
                stream = await here.open_stream()
                await stream.write(b"%d" % number)
                await stream.finish()
                for _ in range(number):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        while len(accepted) < 60:
            accepted.append(await there.accept_stream())
        assert [int(await stream.read(10)) for stream in accepted] == list(range(60))


async def test_an_interrupted_write_is_never_followed_by_another(nodes, join, open_pair):
    async with nodes() as (a, b):
        mine, _theirs = await open_pair(*await join(a, b))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mine.write, bytes(BIG))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with pytest.raises(ConnectionLost):
            await mine.write(b"more")


async def test_the_peer_is_told_why_a_connection_ends(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        mine, theirs = await open_pair(here, there)
        seen = []

        async def expect_loss(call, *args):
            with pytest.raises(ConnectionLost) as caught:
                await call(*args)
            seen.append(caught.value.facts["detail"])

        async def wait(connection):
            seen.append(await connection.closed())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_loss, theirs.read, 10)
            tasks.start_soon(expect_loss, mine.read, 10)
            tasks.start_soon(expect_loss, there.accept_stream)
            tasks.start_soon(expect_loss, here.accept_stream)
            tasks.start_soon(wait, here)
            tasks.start_soon(wait, there)
            await anyio.wait_all_tasks_blocked()
            await here.close("the lease has ended")
        assert seen == ["the lease has ended"] * 6
        await expect_loss(there.open_stream)
        await expect_loss(theirs.write, b"too late")
        await expect_loss(mine.write, b"too late")
        await here.close("a second time")
        await there.close("from the other side")
        assert await there.closed() == "the lease has ended"


async def test_a_connection_closed_without_a_reason_still_gives_one(nodes, join):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        await here.close()
        assert await here.closed()
        assert await there.closed()


async def test_closing_a_node_ends_its_connections(nodes, join):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        await a.close()
        await a.close()
        assert await here.closed()
        assert await there.closed()


async def test_a_node_that_nobody_knows_cannot_be_reached(nodes):
    async with nodes() as (a, _b):
        with pytest.raises(PeerUnreachable) as caught:
            await a.connect(NodeAddress(node_id(bytes(31) + b"\1")))
        assert caught.value.retryable


async def test_a_closed_node_neither_dials_nor_accepts(nodes):
    async with nodes() as (a, b):

        async def accept():
            with pytest.raises(ConnectionLost):
                await b.accept()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            await b.close()
        await accept()
        with pytest.raises(PeerUnreachable):
            await b.connect(a.address())


async def test_many_connections_at_once(nodes):
    async with nodes() as (a, b):
        answers = []

        async def dial(number):
            connection = await a.connect(b.address())
            stream = await connection.open_stream()
            await stream.write(b"%d" % number)
            answers.append(await stream.read(10))
            await connection.close("done")

        async def answer(connection):
            stream = await connection.accept_stream()
            await stream.write(await stream.read(10))
            await connection.closed()

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(dial, number)
            for _ in range(20):
                tasks.start_soon(answer, await b.accept())
        assert sorted(map(int, answers)) == list(range(20))


async def test_two_nodes_can_dial_each_other_at_the_same_time(nodes, join):
    async with nodes() as (a, b):
        pairs = []

        async def joined(dialler, answerer):
            pairs.append(await join(dialler, answerer))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(joined, a, b)
            tasks.start_soon(joined, b, a)
        assert {here.peer for here, _ in pairs} == {a.node, b.node}


async def test_what_is_begun_arrives_in_order_whether_it_was_taken_at_once_or_not(nodes, join, open_pair):
    async with nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        pieces = [b"small", bytes(BIG), b"after the big one", b"", b"last"]
        got = bytearray()

        async def begin() -> None:
            for piece in pieces:
                if not mine.begin(piece):
                    await mine.settled()
            await mine.finish()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            while data := await theirs.read(1 << 16):
                got += data
        assert bytes(got) == b"".join(pieces)


async def test_beginning_after_the_peer_has_gone_raises(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        mine, _theirs = await open_pair(here, there)
        await there.close("gone")
        assert await here.closed() == "gone"

        async def begin() -> None:
            if not mine.begin(b"too late"):
                await mine.settled()

        with pytest.raises(ConnectionLost):
            await begin()


async def test_what_waits_to_be_handed_over_may_be_given_up(nodes, join, open_pair):
    async with nodes() as (a, b):
        mine, _theirs = await open_pair(*await join(a, b))
        async with anyio.create_task_group() as tasks:
            while mine.begin(bytes(BIG)):
                pass
            tasks.start_soon(mine.settled)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with pytest.raises(ConnectionLost):
            mine.begin(b"more")
