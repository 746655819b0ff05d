"""Two drivers over a network that is cut anywhere: nothing is lost, repeated or out of order, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import random
import struct

import anyio
import anyio.lowlevel
import pytest

from jupyter_depin.drivers import tunnel as driver_module
from jupyter_depin.errors import LeaseRefused
from jupyter_depin.protocol.frames import COMPRESSED, PRIORITY, Lane, Ping, Pong, Resume, encode_message
from jupyter_depin.transport import Path
from jupyter_depin.transport.memory_connection import MemoryConnection, MemoryStream
from jupyter_depin.tunnel.events import Closed, Opened

S = 10**9


def numbered(i: int, size: int = 0) -> bytes:
    return struct.pack(">I", i) + bytes(size)


def numbers(messages: list[list[bytes]]) -> list[int]:
    return [struct.unpack_from(">I", parts[0])[0] for parts in messages]


# -- the ordinary life


async def test_every_lane_carries_messages_both_ways(pair):
    async with pair() as ends:
        for i, driver in enumerate(ends.drivers):
            for lane in Lane:
                driver.send(lane, b"from %d" % i, b"", memoryview(b"part"))
        await ends.drained()
        for i in (0, 1):
            assert ends.got[1 - i] == {lane: [[b"from %d" % i, b"", b"part"]] for lane in Lane}


async def test_what_was_sent_before_there_was_a_link_arrives(pair):
    async with pair(keep=False) as ends:
        for i in range(100):
            ends.drivers[0].send(Lane.SHELL, numbered(i))
        assert not ends.drivers[0].attached
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.keep_dialling)
            tasks.start_soon(ends.keep_answering)
            await ends.drained()
            tasks.cancel_scope.cancel()
        assert numbers(ends.got[1][Lane.SHELL]) == list(range(100))


async def test_every_byte_is_counted_on_both_ends(pair):
    async with pair() as ends:
        for i in range(50):
            ends.drivers[0].send(Lane.SHELL, numbered(i, 1000))
            ends.drivers[1].send(Lane.IOPUB, numbered(i, 100_000))
        await ends.drained()
        await ends.turns()
        a, b = ends.drivers
        assert a.bytes_up > 50 * 1000
        assert b.bytes_up > 50 * 100_000
        # A lane's number and the control stream's greeting are not the tunnel's.
        assert abs(a.bytes_up - b.bytes_down) <= 20
        assert abs(b.bytes_up - a.bytes_down) <= 20
        # A queue that miscounted itself would be taken for a deaf peer's one day.
        assert {queue.size for d in (a, b) for queue in (d._control, *d._lanes.values())} == {0}


async def test_small_messages_share_writes_and_big_ones_go_as_they_are(pair, monkeypatch):
    written: list[int] = []
    begin = MemoryStream.begin

    def counting(stream: MemoryStream, data: bytes | memoryview) -> bool:
        written.append(len(data))
        return begin(stream, data)

    monkeypatch.setattr(MemoryStream, "begin", counting)
    async with pair() as ends:
        written.clear()
        for i in range(1000):
            ends.drivers[0].send(Lane.SHELL, numbered(i))
        ends.drivers[0].send(Lane.SHELL, numbered(1000, 1 << 20))
        await ends.drained()
        assert max(written) == (1 << 20) + 4
        assert len(written) < 20
        assert numbers(ends.got[1][Lane.SHELL]) == list(range(1001))


async def test_the_control_stream_and_interrupts_go_before_output(pair):
    """An acknowledgement or a pong that waits behind 500 MB would look like a dead link."""
    async with pair(keep=False) as ends:
        priorities: list[int] = []

        async def carry(i: int, connection: object, control: MemoryStream) -> None:
            streams: list[MemoryStream] = [control]
            for name in ("open_stream", "accept_stream"):
                original = getattr(connection, name)

                async def noting(original: object = original) -> MemoryStream:
                    streams.append(await original())
                    return streams[-1]

                setattr(connection, name, noting)
            with anyio.move_on_after(30):
                await ends.drivers[i].carry(connection, control)
            priorities.append(control.priority)
            assert sorted(s.priority for s in streams[1:]) == sorted(PRIORITY.values())

        async with anyio.create_task_group() as tasks:
            mine = await ends.dial()
            theirs = await ends.answer()
            tasks.start_soon(carry, 0, *mine)
            tasks.start_soon(carry, 1, *theirs)
            await ends.linked()
            await ends.turns()
            for driver in ends.drivers:
                driver.drop()
        assert min(priorities) > max(PRIORITY.values())


# -- handlers


async def test_a_handler_that_answers_is_not_called_inside_itself(pair):
    """Three thousand orders in one read: their answers must neither nest nor overtake."""
    async with pair() as ends:
        depth, deepest = 0, 0

        def echo(lane, parts):
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            ends.drivers[1].send(lane, bytes(parts[0]))
            depth -= 1

        ends.on_message[1] = echo
        for i in range(3000):
            ends.drivers[0].send(Lane.SHELL, numbered(i))
        await ends.drained()
        await ends.drained()
        assert deepest == 1
        assert numbers(ends.got[0][Lane.SHELL]) == list(range(3000))
        assert ends.links == 1


async def test_a_handler_that_refuses_ends_the_connection_and_nothing_else(pair):
    async with pair() as ends:

        def refuse(lane, parts):
            if bytes(parts[0]) == b"bad":
                raise LeaseRefused(reason="a bad word")

        ends.on_message[1] = refuse
        for word in (b"good", b"bad", b"after"):
            ends.drivers[0].send(Lane.SHELL, word)
        await ends.drained()
        ends.drivers[0].send(Lane.SHELL, b"later")
        await ends.drained()
        # The bad word was taken, so it is not sent again for ever.
        assert [parts[0] for parts in ends.got[1][Lane.SHELL]] == [b"good", b"bad", b"after", b"later"]
        assert ends.links == 2
        assert "a bad word" in ends.reasons[1][0]


async def test_a_refusal_never_hits_whoever_happens_to_send(pair):
    """The peer's bad words are handled as they come, even if somebody sends in the same moment."""
    async with pair() as ends:

        def refuse(lane, parts):
            # Another task sends before the connection's end gets around.
            asyncio.get_running_loop().call_soon(sending)
            raise LeaseRefused(reason="a bad word")

        def sending():
            ends.drivers[1].send(Lane.IOPUB, b"innocent")
            sent.append(1)

        sent: list[int] = []
        ends.on_message[1] = refuse
        for _ in range(100):
            ends.drivers[0].send(Lane.SHELL, b"bad")
        await ends.drained()
        assert len(ends.got[1][Lane.SHELL]) == 100
        await ends.turns()
        await ends.drained()
        assert len(sent) == len(ends.got[0][Lane.IOPUB]) == 100


async def test_a_message_arrives_before_the_next_when_the_handler_sends_elsewhere(pair):
    async with pair() as ends:
        order: list[bytes] = []

        def handle(lane, parts):
            ends.drivers[1].send(Lane.PAYMENT, b"noted")
            order.append(bytes(parts[0]))

        ends.on_message[1] = handle
        for i in range(10):
            ends.drivers[0].send(Lane.LEASE, b"%d" % i)
        await ends.drained()
        assert order == [b"%d" % i for i in range(10)]


# -- cuts

OFFSETS = [
    *range(40),
    63,
    64,
    65,
    100,
    200,
    1000,
    65_535,
    65_536,
    65_537,
    66_000,
    150_000,
    199_999,
    200_100,
    260_000,
]


@pytest.mark.parametrize("sender", [0, 1])
async def test_a_cut_at_any_byte_loses_and_repeats_nothing(pair, sender):
    """Bulk with small and big messages is cut after each number of bytes; the Resume that follows as well."""
    async with pair() as ends:
        count = 0
        for offset in OFFSETS:
            ends.network.hold(ends.nodes[sender].node)
            for size in (0, 3, 200_000, 1):
                for i, lane in ((sender, Lane.SHELL), (1 - sender, Lane.IOPUB)):
                    ends.drivers[i].send(lane, numbered(count, size), b"x" * (size // 7), b"")
                count += 1
            await ends.turns(4)
            ends.network.deliver(offset)
            await ends.turns(4)
            ends.cut()
            # The next link is cut inside its greetings.
            await ends.turns(3)
            ends.network.deliver(offset % 97)
            await ends.turns(4)
            ends.cut()
            ends.network.release()
            await ends.linked()
        await ends.drained()
        assert numbers(ends.got[1 - sender][Lane.SHELL]) == list(range(count))
        assert numbers(ends.got[sender][Lane.IOPUB]) == list(range(count))
        sizes = [[len(part) for part in parts] for parts in ends.got[1 - sender][Lane.SHELL]]
        assert sizes[:4] == [[4, 0, 0], [7, 0, 0], [200_004, 28_571, 0], [5, 0, 0]]


@pytest.mark.parametrize(("seed", "fickle"), [(1, False), (2, False), (3, True)])
async def test_two_hundred_random_cuts(pair, seed, fickle):
    """5,000 numbered messages each way, on lanes and in sizes at random; the link dies 200 times.

    `fickle`: both ends begin and stop to compress all the time.
    """
    rng = random.Random(seed)
    async with pair(window=4096) as ends:
        sent: list[dict[Lane, list[int]]] = [{lane: [] for lane in Lane} for _ in range(2)]
        cuts = number = 0
        while number < 5000:
            for _ in range(25):
                for i, driver in enumerate(ends.drivers):
                    lane = rng.choice(list(Lane))
                    if fickle:
                        driver.asked(rng.choice(("on", "on", "off")))
                    driver.send(lane, numbered(number, rng.choice((0, 1, 40, 900, 9000))))
                    sent[1 - i][lane].append(number)
                number += 1
            if rng.random() < 0.5:
                ends.network.hold(rng.choice([None, ends.nodes[0].node, ends.nodes[1].node]))
            await ends.turns(rng.randrange(30))
            ends.network.deliver(rng.choice((0, 1, 5, 17, 300, 5000)))
            await ends.turns(rng.randrange(30))
            ends.cut()
            cuts += 1
            if rng.random() < 0.7:
                ends.network.release()
        ends.network.release()
        while cuts < 200:
            await ends.turns(rng.randrange(60))
            ends.cut()
            cuts += 1
        await ends.drained()
        await ends.drained()
        for i in (0, 1):
            for lane in Lane:
                assert numbers(ends.got[i][lane]) == sent[i][lane]
        assert all(driver.tunnel.held == 0 for driver in ends.drivers)
        assert ends.links > 100
        assert fickle == any(driver.spared > 0 for driver in ends.drivers)


async def test_each_end_compresses_for_itself_and_both_see_what_it_spares(pair):
    async with pair() as ends:
        quiet, thrifty = ends.drivers
        thrifty.asked("on")
        assert not quiet.spares
        for i in range(100):
            quiet.send(Lane.SHELL, numbered(i, 1000))
            thrifty.send(Lane.IOPUB, numbered(i, 1000))
            await ends.turns(3)
        await ends.drained()
        await ends.turns()
        assert quiet.spares
        assert numbers(ends.got[0][Lane.IOPUB]) == numbers(ends.got[1][Lane.SHELL]) == list(range(100))
        assert quiet.bytes_up > 100_000 > 10 * thrifty.bytes_up
        assert abs(thrifty.bytes_up - quiet.bytes_down) <= 20
        assert thrifty.spared > 90_000
        assert abs(thrifty.spared - quiet.spared) <= 20
        # It is given up as it was begun: with the next message.
        thrifty.asked("auto")
        thrifty.send(Lane.IOPUB, numbered(100, 1000))
        await ends.drained()
        await ends.turns()
        assert not quiet.spares
        assert numbers(ends.got[0][Lane.IOPUB])[-1] == 100
        assert {queue.size for d in ends.drivers for queue in d._lanes.values()} == {0}


async def test_much_in_little_leaves_others_their_turns(pair):
    """A peer's few bytes that unpack into a flood are taken in steps, so that an interrupt gets in between."""
    async with pair() as ends:
        order: list[tuple[Lane, int]] = []
        ends.on_message[0] = lambda lane, parts: order.append((lane, len(order)))
        ends.drivers[1].asked("on")
        ends.network.hold(ends.nodes[1].node)
        for i in range(4000):
            ends.drivers[1].send(Lane.IOPUB, numbered(i, 1000))
        await ends.turns(200)
        ends.drivers[1].send(Lane.CONTROL, b"interrupt_reply")
        await ends.turns(20)
        ends.network.release()
        await ends.drained()
        at = next(i for lane, i in order if lane is Lane.CONTROL)
        assert at < 3000
        assert len(order) == 4001


async def test_data_that_overtakes_the_greeting_waits_for_it(pair):
    """Lanes and control are streams of their own, and a lost packet delays only one of them."""

    class Late:
        def __init__(self, stream: MemoryStream) -> None:
            self.stream, self.arrives = stream, anyio.Event()

        async def read(self, limit: int) -> bytes:
            await self.arrives.wait()
            return await self.stream.read(limit)

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

    async with pair(keep=False) as ends, anyio.create_task_group() as tasks:
        # On the second connection too: what the first one knew of the peer does not count there.
        for word in (b"interrupt", b"again"):
            ends.cut()
            await ends.turns()
            ends.drivers[0].send(Lane.CONTROL, word)
            mine = await ends.dial()
            connection, control = await ends.answer()
            late = Late(control)
            tasks.start_soon(ends.drivers[0].carry, *mine)
            tasks.start_soon(ends.drivers[1].carry, connection, late)
            await ends.turns()
            while not ends.drivers[0].attached:
                await ends.turns()
            await ends.turns(100)
            assert not ends.drivers[1].attached
            assert ends.drivers[1].connection is connection
            late.arrives.set()
            await ends.drivers[0].taken(Lane.CONTROL)
            assert ends.got[1][Lane.CONTROL][-1] == [word]
        tasks.cancel_scope.cancel()


# -- connections that replace each other


async def test_the_newest_connection_wins_and_stale_ones_never_block_it(pair):
    """A laptop that changes its network dials again and again; the provider still holds what it does not know dead."""
    async with pair(keep=False) as ends, anyio.create_task_group() as tasks:
        reasons: dict[int, str] = {}

        async def carry(number: int, i: int, *link: object) -> None:
            reasons[number] = await ends.drivers[i].carry(*link)

        links = [(await ends.dial(), await ends.answer()) for _ in range(4)]
        tasks.start_soon(carry, 0, 1, *links[0][1])
        await ends.turns()
        for number in (1, 2, 3):
            tasks.start_soon(carry, number, 1, *links[number][1])
        # Only the last one is spoken on: all the others are silent, and not one of them is closed.
        tasks.start_soon(ends.drivers[0].carry, *links[-1][0])
        await ends.linked()
        ends.drivers[1].send(Lane.IOPUB, b"hello")
        await ends.drivers[1].taken(Lane.IOPUB)
        assert sorted(reasons) == [0, 1, 2]
        assert reasons[0] == "dropped"
        assert "newer" in reasons[1]
        tasks.cancel_scope.cancel()


async def test_a_peer_without_memory_gets_what_was_held_even_if_its_first_try_was_superseded(pair):
    async with pair(keep=False) as ends, anyio.create_task_group() as tasks:
        links = [(await ends.dial(), await ends.answer()) for _ in range(3)]
        for i in (0, 1):
            tasks.start_soon(ends.drivers[i].carry, *links[0][i])
        ends.drivers[0].send(Lane.SHELL, b"before")
        ends.drivers[1].send(Lane.LEASE, b"taken")
        await ends.drained()
        ends.network.hold()
        ends.drivers[1].send(Lane.LEASE, b"settled")
        await ends.turns()
        ends.drivers[0].close()
        ends.drivers[0] = ends.driver(0)
        ends.got[0].clear()
        ends.network.release()
        # Two attempts come at once; only the first says that its memory is gone, for it was told "attached".
        tasks.start_soon(lambda: ends.drivers[1].carry(*links[1][1], memory=b"new"))
        tasks.start_soon(lambda: ends.drivers[1].carry(*links[2][1], memory=b"new"))
        tasks.start_soon(ends.drivers[0].carry, *links[2][0])
        await ends.drained()
        assert ends.got[0][Lane.LEASE] == [[b"settled"]]
        ends.drivers[0].send(Lane.SHELL, b"after")
        await ends.drained()
        assert ends.got[1][Lane.SHELL] == [[b"before"], [b"after"]]
        tasks.cancel_scope.cancel()


# -- the end


async def test_closing_ends_the_connection_and_every_wait(pair):
    async with pair() as ends:
        ends.network.hold()
        ends.drivers[0].send(Lane.SHELL, b"never taken")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ends.drivers[0].taken, Lane.SHELL)
            await ends.turns()
            ends.drivers[0].close()
        ends.drivers[0].send(Lane.SHELL, b"too late")
        connection, control = await ends.dial()
        assert await ends.drivers[0].carry(connection, control) == "the rental has ended"
        assert ends.events[0][-1] == Closed(expired=False)


async def test_everybody_who_waits_for_the_peer_is_woken(pair):
    async with pair() as ends:
        ends.drivers[0].send(Lane.LEASE, b"x")
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ends.drivers[0].taken, Lane.LEASE)


async def test_a_peer_that_stays_away_ends_the_tunnel(pair, monkeypatch):
    now = 0
    monkeypatch.setattr(driver_module, "steady_ns", lambda: now)
    async with pair(keep=False) as ends:
        closed = anyio.Event()

        def event(what: object) -> None:
            assert what == Closed(expired=True)
            closed.set()

        driver = driver_module.TunnelDriver(
            driver_module.Tunnel(grace_ns=1, now=now), opens=True, on_message=ends.got, on_event=event
        )
        now = 1
        await closed.wait()
        assert not driver.attached


# -- liars


async def lied_to(ends, *streams: bytes, control: bytes = b"") -> str:
    """What end 1 says of a peer that writes this on its control stream and opens these streams."""
    connection, stream = await ends.dial()
    link = await ends.answer()
    if control:
        await stream.write(control)
    for first in streams:
        await (await connection.open_stream()).write(first)
    return await ends.drivers[1].carry(*link)


GREETING = encode_message(Resume({}))


@pytest.mark.parametrize(
    ("streams", "control"),
    [
        ((b"\x63",), GREETING),
        ((b"\x00", b"\x00"), GREETING),
        ((b"\x00" + bytes(8) + b"\xff\xff",), GREETING),
        ((b"\x00" + bytes(7) + b"\x09\x00\x01\x00\x00\x00\x01x",), GREETING),
        ((b"\x05" + COMPRESSED + b"no zstd frame",), GREETING),
        ((), b"\xff\xff\xff\xff"),
        ((), GREETING + GREETING),
        ((), encode_message(Resume({0: 1}))),
        ((), GREETING + encode_message(Pong(9))),
        ((), b"\x00\x00\x00\x02{}"),
    ],
    ids=[
        "unknown lane", "lane twice", "many parts", "wrong number", "broken zstd", "giant message", "greets twice",
        "acknowledges the unsent", "answers the unasked", "no message",
    ],
)  # fmt: skip
async def test_a_lie_ends_the_connection_with_a_reason_and_the_tunnel_lives_on(pair, streams, control):
    async with pair(keep=False) as ends:
        ends.drivers[1].send(Lane.IOPUB, b"kept")
        assert "broke the protocol" in await lied_to(ends, *streams, control=control)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.keep_dialling)
            tasks.start_soon(ends.keep_answering)
            await ends.drained()
            tasks.cancel_scope.cancel()
        assert ends.got[0][Lane.IOPUB] == [[b"kept"]]


async def test_a_peer_that_asks_and_never_listens_is_let_go(pair):
    async with pair(keep=False, window=1 << 14) as ends:
        _connection, stream = await ends.dial()
        link = await ends.answer()
        sent = 0
        async with anyio.create_task_group() as tasks:

            async def ask_for_ever() -> None:
                nonlocal sent
                question = b"".join(encode_message(Ping(i)) for i in range(1000))
                await stream.write(GREETING)
                while True:
                    await stream.write(question)
                    sent += len(question)

            tasks.start_soon(ask_for_ever)
            reason = await ends.drivers[1].carry(*link)
            tasks.cancel_scope.cancel()
        assert "reads no answers" in reason
        assert sent < 8 << 20


async def test_a_message_that_takes_minutes_is_no_silence(pair, monkeypatch):
    """On a narrow link a big output arrives for longer than the patience with a silent one."""
    now = 0
    monkeypatch.setattr(driver_module, "steady_ns", lambda: now)
    async with pair(keep=False) as ends:
        ends.drivers[0] = ends.driver(0, ping_ns=3 * S)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.keep_dialling)
            tasks.start_soon(ends.keep_answering)
            await ends.linked()
            await ends.turns()
            ends.network.hold(ends.nodes[1].node)
            ends.drivers[1].send(Lane.IOPUB, bytes(100_000))
            await ends.turns()
            for _ in range(90):
                now += S
                ends.network.deliver(1000)
                await ends.turns(6)
                ends.drivers[0].tunnel.handle_timer(now)
                ends.drivers[0].send(Lane.STDIN, b"pump")
            assert ends.links == 1
            assert ends.drivers[0].attached
            assert isinstance(ends.events[0][0], Opened)
            tasks.cancel_scope.cancel()


async def test_on_a_long_way_small_messages_leave_compressed_and_big_ones_as_they_are(pair, monkeypatch):
    monkeypatch.setattr(MemoryConnection, "path", lambda _: Path(relayed=False, remote="far", rtt_ms=200.0))
    async with pair() as ends:
        near, far = ends.drivers
        # The first acknowledgements show how long the way is.
        far.send(Lane.IOPUB, numbered(0))
        await ends.drained()
        sent = far.bytes_up
        for i in range(1, 51):
            far.send(Lane.IOPUB, numbered(i, 1000))
        await ends.drained()
        assert far.bytes_up - sent < 10_000
        assert not far.thrifty
        spared = far.spared
        assert spared > 40_000
        far.send(Lane.IOPUB, numbered(51, 100_000))
        await ends.drained()
        assert far.spared - spared < 1000
        assert numbers(ends.got[0][Lane.IOPUB]) == list(range(52))
        assert near.attached
