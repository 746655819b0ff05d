"""One connection (`jupyter_depin.channels.peer`, `jupyter_depin.channels.descriptor`) on either loop, with others who are honest, slow, old, or lie."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from jupyter_depin.channels import peer as room
from jupyter_depin.channels.curve import CurveServer
from jupyter_depin.channels.peer import Peer
from jupyter_depin.channels.places import Listener
from jupyter_depin.channels.zmtp import CURVE, NULL, command, command_frame, encode, greeting, properties
from jupyter_depin.protocol.frames import MAX_FRAME
from tests.channels.raw import LOOPS, Kept, Raw, run_on, until
from tests.channels.test_curve import Client, S

LIMIT = 1 << 16
BIG = bytes(10_000)


class Side:
    """A listener whose connections belong to one owner."""

    def __init__(self, path: str, kind: bytes = b"ROUTER", **options: Any) -> None:
        self.path, self.owner = path, Kept()
        self.peers: list[Peer] = []
        self._listener = Listener(f"ipc://{path}", lambda: self._made(kind, options))

    def _made(self, kind: bytes, options: dict[str, Any]) -> Peer:
        self.peers.append(made := Peer(self.owner, kind, limit=LIMIT, **options))
        return made

    async def client(self, kind: bytes = b"DEALER", **options: Any) -> tuple[Raw, Peer]:
        count = len(self.peers)
        raw = await Raw.connect(self.path)
        await raw.shake(kind, **options)
        return raw, self.peers[count]

    async def told(self, word: object) -> None:
        await until(lambda: word in self.owner.told)

    def close(self) -> None:
        self._listener.close()
        for peer in self.peers:
            peer.cut()


async def filled(peer: Peer) -> int:
    """Send until the other end's system takes no more, and say how many messages."""
    count = 0
    while not peer.is_full:
        peer.send([BIG])
        count += 1
        if peer.is_full:
            # What was only not written yet leaves in the next turns, and the other end's own buffer takes some.
            for _ in range(20):
                await asyncio.sleep(0)
    return count


Play = Callable[[Callable[..., Side]], Any]


@pytest.fixture(params=LOOPS)
def on_loop(request, tmp_path_factory):
    """`on_loop(play)` runs `await play(side)`; `side(**options)` makes a side of the play."""

    def played(play: Play) -> None:
        async def whole() -> None:
            sides: list[Side] = []

            def side(*args: Any, **options: Any) -> Side:
                sides.append(made := Side(str(tmp_path_factory.mktemp("p") / "s"), *args, **options))
                return made

            try:
                await play(side)
            finally:
                for made in sides:
                    made.close()
                await asyncio.sleep(0)

        run_on(request.param, whole)

    return played


def test_messages_go_and_come_whatever_their_size(on_loop):
    async def play(side):
        s = side()
        raw, peer = await s.client(identity=b"me")
        sent = [[b"", b"a" * size, b"z"] for size in (0, 255, 256, 20_000, 300_000, 3 << 20)]
        for parts in sent:
            raw.message(*parts)
        await until(lambda: len(s.owner.messages) == len(sent))
        assert s.owner.messages == sent
        assert (peer.identity, raw.known) == (b"me", {b"socket-type": b"ROUTER", b"identity": b""})
        for parts in sent:
            peer.send(parts)
            assert await raw.heard() == parts
        await until(lambda: peer.held == 0)
        assert s.owner.told[0] == "ready"

    on_loop(play)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        greeting(b"PLAIN", server=False),
        greeting(NULL, server=False) + b"\x00\x00",
        # Nothing of this is waited for: it would be kept here.
        greeting(NULL, server=False) + b"\x02" + (1 << 30).to_bytes(8, "big"),
        greeting(NULL, server=False) + command(b"ERROR", b"\x05sorry"),
        greeting(NULL, server=False) + command(b"PING", b"\0\0"),
        greeting(NULL, server=False) + command(b"READY", properties(b"PUB")),
        greeting(NULL, server=False) + command(b"READY", properties(b"DEALER", b"\0mine")),
    ],
    ids=["http", "mechanism", "message first", "giant first", "error", "ping first", "kind", "identity"],
)
def test_whoever_does_not_say_who_it_is_is_let_go_at_once(on_loop, said):
    async def play(side):
        s = side()
        raw = await Raw.connect(s.path)
        raw.say(said)
        await raw.rest()
        await s.told("lost")
        assert s.owner.told == ["lost"]

    on_loop(play)


def test_whoever_says_nothing_is_let_go_after_a_while_and_whoever_speaks_is_not(on_loop, monkeypatch):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        monkeypatch.setattr(room, "_HANDSHAKE_S", 0.01)
        silent, torn = await Raw.connect(s.path), await Raw.connect(s.path)
        torn.say(greeting(NULL, server=False))
        assert await silent.rest() == greeting(NULL, server=False)
        assert (await torn.rest())[64:] == command(b"READY", properties(b"ROUTER"))
        raw.message(b"still here")
        await until(lambda: s.owner.messages)
        assert peer.is_ready

    on_loop(play)


def test_a_ping_is_answered_with_its_context(on_loop):
    async def play(side):
        s = side()
        raw, _ = await s.client()
        raw.say(command(b"PING", b"\0\x10sixteen bytes it"))
        assert await raw.frame() == (4, b"\x04PONGsixteen bytes it")

    on_loop(play)


def test_pings_of_somebody_who_reads_nothing_pile_up_nowhere(on_loop):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        await filled(peer)
        held = peer.held
        raw.say(command(b"PING", bytes(250)) * 5_000)
        raw.message(b"end")
        await until(lambda: s.owner.messages)
        assert peer.held <= held

    on_loop(play)


def test_words_of_a_later_version_mean_nothing_and_an_error_ends_it(on_loop):
    async def play(side):
        s = side()
        raw, _ = await s.client(minor=9)
        raw.say(command(b"JOIN", b"group"), command(b"SUBSCRIBE", b"t"))
        raw.message(b"on")
        await until(lambda: s.owner.messages)
        assert s.owner.messages == [[b"on"]]
        raw.say(command(b"ERROR", b"\x05sorry"))
        await s.told("lost")

    on_loop(play)


@pytest.mark.parametrize("minor", [0, 1])
def test_subscriptions_are_counted_as_messages_and_as_commands(on_loop, minor):
    async def play(side):
        s = side(b"XPUB")
        raw, peer = await s.client(b"SUB", minor=minor)

        def say(on: bool, topic: bytes) -> None:
            if minor:
                raw.say(command(b"SUBSCRIBE" if on else b"CANCEL", topic))
            else:
                raw.message((b"\x01" if on else b"\x00") + topic)

        say(True, b"ab")
        say(True, b"ab")
        say(False, b"ab")
        say(False, b"never asked for")
        await until(lambda: len(peer.topics) == 1 and len(s.owner.messages) == 2)
        assert [peer.wants(topic) for topic in (b"abc", b"ab", b"a", b"", b"b")] == [True, True, *[False] * 3]
        say(False, b"ab")
        await until(lambda: not peer.topics)
        say(True, b"")
        await until(lambda: peer.topics)
        assert peer.wants(b"anything")
        assert peer.wants(b"")

    on_loop(play)


@pytest.mark.parametrize("many", [True, False])
def test_subscriptions_take_little_memory(on_loop, many):
    async def play(side):
        s = side(b"XPUB", longest=1 << 20)
        raw, _ = await s.client(b"SUB")
        if many:
            for number in range(2_000):
                raw.message(b"\x01%d" % number)
        else:
            raw.message(b"\x01" + bytes(room.LONGEST_TOPIC + 1))
        await s.told("lost")
        assert len(s.owner.messages) == (1_000 if many else 0)

    on_loop(play)


def test_what_its_owner_stumbles_over_ends_no_connection(on_loop):
    async def play(side):
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        for kind, mate in ((b"ROUTER", b"DEALER"), (b"XPUB", b"SUB")):
            s = side(kind)
            s.owner.on_message = lambda peer, parts: 1 / 0
            raw, _ = await s.client(mate)
            raw.message(b"\x01a")
            raw.message(b"\x01b")
            await until(lambda s=s: len(s.owner.messages) == 2)
            assert "lost" not in s.owner.told
        assert [type(error) for error in told] == [ZeroDivisionError] * 4

    on_loop(play)


def test_more_than_is_carried_is_told_and_what_comes_next_is_heard(on_loop):
    async def play(side):
        s = side(longest=50_000)
        raw, _ = await s.client()
        raw.message(*[BIG] * 6)
        raw.message(b"next")
        await until(lambda: s.owner.messages)
        assert s.owner.messages == [[b"next"]]
        assert (60_000, 6) in s.owner.told
        raw.message(bytes(50_001))
        await s.told("lost")

    on_loop(play)


def test_nothing_that_lay_behind_is_heard_once_it_is_cut(on_loop):
    async def play(side):
        s = side()
        s.owner.on_message = lambda peer, parts: peer.cut()
        raw, peer = await s.client()
        raw.say(*[bytes(piece) for piece in encode([b"a"])] * 500)
        await raw.rest()
        await s.told("lost")
        assert s.owner.messages == [[b"a"]]
        peer.send([b"to nobody"])
        assert (peer.held, peer.pending()) == (0, False)

    on_loop(play)


def test_messages_keep_their_order_through_pauses(on_loop):
    async def play(side):
        s = side()
        raw, _ = await s.client()
        loop = asyncio.get_running_loop()

        def on_message(peer: Peer, parts: Any) -> None:
            number = int(bytes(parts[0]))
            if number % 7 == 0:
                peer.pause(True)
                (peer.pause if number % 2 else lambda on: loop.call_soon(peer.pause, on))(False)
            if number % 11 == 0:
                loop.call_soon(peer.pause, True)
                loop.call_later(0, peer.pause, False)

        s.owner.on_message = on_message
        for number in range(5_000):
            raw.message(b"%d" % number, b"x" * (number % 300))
            if number % 500 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(s.owner.messages) == 5_000)
        assert [int(parts[0]) for parts in s.owner.messages] == list(range(5_000))

    on_loop(play)


def test_while_it_is_paused_nothing_is_heard_and_the_other_end_is_held_up(on_loop):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        peer.pause(True)
        for _ in range(300):
            raw.message(BIG)
        for _ in range(20):
            await asyncio.sleep(0)
        assert s.owner.messages == []
        assert peer.pending()
        assert raw.writer.transport.get_write_buffer_size() > 1 << 20
        peer.pause(False)
        await until(lambda: len(s.owner.messages) == 300)
        assert not peer.pending()

    on_loop(play)


def test_many_small_messages_leave_others_their_turn(on_loop):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        turns: list[int] = []

        def look() -> None:
            turns.append(len(s.owner.messages))
            if turns[-1] < 5_000:
                asyncio.get_running_loop().call_soon(look)

        peer.pause(True)
        raw.say(b"\x00\x01x" * 5_000)
        await until(lambda: raw.writer.transport.get_write_buffer_size() == 0)
        look()
        peer.pause(False)
        await until(lambda: len(s.owner.messages) == 5_000)
        assert max(b - a for a, b in itertools.pairwise(turns)) <= 2 * room._TURN

    on_loop(play)


def test_it_tells_once_that_it_is_full_and_once_that_it_is_not(on_loop):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        taken = peer.taken
        count = await filled(peer)
        assert peer.held >= LIMIT
        for _ in range(5):
            peer.send([BIG])
        for _ in range(count + 5):
            assert await raw.heard() == [BIG]
        await until(lambda: s.owner.told[-1] == "free")
        told = s.owner.told[1:]
        assert told == ["full", "free"] * (len(told) // 2)
        await until(lambda: peer.held == 0)
        assert peer.taken - taken >= (count + 5) * len(BIG)

    on_loop(play)


@pytest.mark.parametrize("how", ["closed", "closed by halves", "reset"])
def test_somebody_full_who_goes_is_lost(on_loop, how):
    async def play(side):
        s = side()
        raw, peer = await s.client()
        await filled(peer)
        if how == "closed by halves":
            raw.writer.write_eof()
        elif how == "closed":
            raw.writer.close()
        else:
            raw.hang_up()
        await s.told("lost")
        assert s.owner.told[-2:] == ["full", "lost"]
        assert peer.held == 0

    on_loop(play)


def test_what_was_sent_before_it_is_closed_arrives(on_loop, monkeypatch):
    monkeypatch.setattr(room, "_FLUSH_S", 1e6)

    async def play(side):
        s = side()
        raw, peer = await s.client()
        for _ in range(50):
            peer.send([BIG])
        peer.close()
        peer.close()
        peer.send([b"too late"])
        assert await raw.rest() == b"".join(bytes(piece) for piece in encode([BIG])) * 50
        await s.told("lost")

    on_loop(play)


def test_whoever_does_not_take_what_was_sent_is_not_waited_for_long(on_loop, monkeypatch):
    monkeypatch.setattr(room, "_FLUSH_S", 0.01)

    async def play(side):
        s = side()
        _, peer = await s.client()
        await filled(peer)
        peer.close()
        await s.told("lost")

    on_loop(play)


@pytest.mark.parametrize("minor", [0, 1])
def test_who_cannot_answer_or_does_not_is_taken_to_know_after_a_while(on_loop, monkeypatch, minor):
    monkeypatch.setattr(room, "_UNASKED_S", 0.0)
    monkeypatch.setattr(room, "_UNANSWERED_S", 0.0)

    async def play(side):
        s = side()
        raw, peer = await s.client(minor=minor)
        peer.ask()
        await s.told("answered")
        if minor:
            assert await raw.frame() == (4, b"\x04PING\0\0")

    on_loop(play)


def test_who_answers_is_not_waited_for(on_loop, monkeypatch):
    monkeypatch.setattr(room, "_UNANSWERED_S", 1e6)

    async def play(side):
        s = side()
        raw, peer = await s.client(minor=1)
        peer.ask()
        await raw.frame()
        assert "answered" not in s.owner.told
        raw.say(command(b"PONG"))
        await s.told("answered")

    on_loop(play)


class Sealed:
    """A client under CURVE."""

    def __init__(self, raw: Raw) -> None:
        self.raw, self.client = raw, Client()

    async def shake(self, kind: bytes) -> None:
        self.client.metadata = properties(kind, b"me")
        self.raw.say(greeting(CURVE, server=False), command_frame(self.client.hello()))
        assert await self.raw.exactly(64) == greeting(CURVE, server=True)
        _, welcome = await self.raw.frame()
        self.raw.say(command_frame(self.client.initiate(welcome)))
        _, ready = await self.raw.frame()
        self.client.finish(ready)

    def say(self, flags: int, part: bytes) -> None:
        self.raw.say(*(bytes(piece) for piece in encode([self.client.box(flags, part)])))

    async def heard(self) -> tuple[int, bytes]:
        _, body = await self.raw.frame()
        return self.client.open(body)


async def sealed(side: Any, kind: bytes, mate: bytes, **options: Any) -> tuple[Side, Sealed]:
    s = side(kind, curve=CurveServer(*S), **options)
    client = Sealed(await Raw.connect(s.path))
    await client.shake(mate)
    return s, client


def test_boxes_carry_messages_subscriptions_and_pings(on_loop):
    async def play(side):
        s, client = await sealed(side, b"ROUTER", b"DEALER")
        client.say(1, b"a")
        client.say(2, b"\x04PING\0\0context")
        client.say(0, BIG)
        assert await client.heard() == (2, b"\x04PONGcontext")
        await until(lambda: s.owner.messages)
        assert s.owner.messages == [[b"a", BIG]]
        s.peers[0].send([b"b", BIG])
        assert [await client.heard() for _ in range(2)] == [(1, b"b"), (0, BIG)]
        s, client = await sealed(side, b"XPUB", b"SUB", longest=room.LONGEST_TOPIC + 1)
        client.say(0, b"\x01" + bytes(room.LONGEST_TOPIC))
        client.say(2, b"\x09SUBSCRIBEtopic")
        await until(lambda: len(s.peers[0].topics) == 2)

    on_loop(play)


def test_what_stands_outside_of_a_box_is_not_believed(on_loop):
    async def play(side):
        s, client = await sealed(side, b"XPUB", b"SUB")
        client.raw.say(command(b"SUBSCRIBE", b"topic"))
        await s.told("lost")
        assert not s.peers[0].topics

    on_loop(play)


def test_more_than_is_carried_is_told_of_boxes_too(on_loop):
    async def play(side):
        s, client = await sealed(side, b"ROUTER", b"DEALER", longest=25_000)
        for flags in (1, 1, 0):
            client.say(flags, BIG)
        client.say(0, b"next")
        await until(lambda: s.owner.messages)
        assert s.owner.messages == [[b"next"]]
        assert (30_000, 3) in s.owner.told
        assert MAX_FRAME > 30_000

    on_loop(play)


def test_a_giant_is_not_kept_before_anybody_showed_a_key(on_loop):
    async def play(side):
        s = side(curve=CurveServer(*S))
        raw = await Raw.connect(s.path)
        raw.say(greeting(CURVE, server=False), b"\x02" + (1 << 30).to_bytes(8, "big"))
        await raw.rest()
        await s.told("lost")

    on_loop(play)
