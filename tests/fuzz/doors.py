"""The doors: each takes what a peer said and hands it to the code that reads it. Only named errors may come back.

A door that was told nonsense is opened anew, as a connection would be; state that an honest peer would have built up
(numbers of lanes, launches) is built up here too, so that lies are told in the middle of a conversation.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from jupyter_depin.channels import zmtp
from jupyter_depin.errors import BadTicket, DepinError, RemoteProtocolError
from jupyter_depin.protocol import messages
from jupyter_depin.protocol.compressed import Compressor, LaneDecoder
from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.frames import (
    Control,
    Data,
    DataDecoder,
    Lane,
    MessageDecoder,
    Resume,
    encode_data,
    encode_message,
)
from jupyter_depin.protocol.identity import NodeAddress, NodeId, Ticket, address
from jupyter_depin.tunnel.events import Message
from jupyter_depin.tunnel.machine import Tunnel, is_control
from tests.fuzz.words import Speaker, unions

BROKEN = (RemoteProtocolError,)


class Door:
    """`knock` says one thing to it. `allowed`: the errors that it may raise."""

    name = ""
    allowed: tuple[type[BaseException], ...] = BROKEN

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker

    def knock(self) -> None:
        raise NotImplementedError

    def shut(self) -> None:
        """It raised what it may: whoever comes next finds it as new."""


class WordStream(Door):
    """A stream of small words of one union, in pieces of any length: control, questions, answers."""

    def __init__(self, speaker: Speaker, name: str, kinds: Any) -> None:
        super().__init__(speaker)
        self.name, self._kinds = f"stream of {name}", kinds
        self.shut()

    def shut(self) -> None:
        self._decoder: MessageDecoder[Any] = MessageDecoder(self._kinds)

    def knock(self) -> None:
        speaker = self.speaker
        if speaker.rng.random() < 0.2:
            # A length that was a lie is waited for; nothing else would be read.
            self.shut()
        data = speaker.spoken(
            speaker.framed(speaker.word(self._kinds if speaker.rng.random() < 0.9 else None))
        )
        middle = speaker.rng.randrange(len(data) + 1)
        for piece in (data[:middle], data[middle:]):
            for word in self._decoder.feed(piece):
                # What was understood can be said again: it goes into answers, journals and logs.
                assert msgspec.json.decode(msgspec.json.encode(word), type=self._kinds) == word
                repr(word)
            assert self._decoder.missing > 0


class LaneStream(Door):
    """The data frames of one lane."""

    def __init__(self, speaker: Speaker, lane: Lane) -> None:
        super().__init__(speaker)
        self.name, self._lane = f"{lane.name} stream", lane
        self.shut()

    def shut(self) -> None:
        self._decoder = LaneDecoder(self._lane)

    def knock(self) -> None:
        if self.speaker.rng.random() < 0.2:
            self.shut()
        speaker = self.speaker
        honest = b"".join(speaker.data(i, lie=0.1) for i in range(speaker.rng.choice((1, 1, 3))))
        if speaker.rng.random() < 0.4:
            # Compressed, and bent inside or outside of that.
            packer = Compressor()
            honest = packer.pack([speaker.spoken(honest)]) + (
                packer.end() if speaker.rng.random() < 0.7 else b""
            )
            honest += speaker.rng.choice((b"", b"", honest, speaker.data(9)))
        data = speaker.spoken(honest)
        middle = speaker.rng.randrange(len(data) + 1)
        for piece in (data[:middle], data[middle:]):
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        turns = 0
        frames = self._decoder.feed(piece)
        while True:
            for frame in frames:
                assert frame.size == sum(map(len, frame.parts))
            if not self._decoder.more:
                return
            turns += 1
            assert turns < 10_000, "it never comes to an end"
            frames = self._decoder.feed(b"")


class WordOfALane(Door):
    """A function of the vocabulary that reads one word of a lane."""

    def __init__(self, speaker: Speaker, name: str, decode: Callable[[bytes], Any], kinds: Any) -> None:
        super().__init__(speaker)
        self.name, self._decode, self._kinds = name, decode, kinds

    def knock(self) -> None:
        lie = self.speaker.rng.choice((0.0, 0.1, 0.5))
        repr(self._decode(self.speaker.spoken(self.speaker.word(self._kinds, lie=lie))))


class Machine(Door):
    """A tunnel that carries messages, and a peer that says anything at any time."""

    def __init__(self, speaker: Speaker, ping_ns: int | None) -> None:
        super().__init__(speaker)
        self.name = f"tunnel that {'asks' if ping_ns else 'answers'}"
        self._now, self._ping_ns = 0, ping_ns
        self._begin()
        self._attach()

    def _begin(self) -> None:
        self._tunnel = Tunnel(grace_ns=10**18, now=self._now, ping_ns=self._ping_ns, limit=1 << 16)

    def shut(self) -> None:
        self._tunnel.detach(self._now)
        self._attach()

    def _attach(self) -> None:
        speaker = self.speaker
        self._tunnel.attach(self._now)
        self._decoders = {lane: DataDecoder(lane) for lane in Lane}
        self._control: MessageDecoder[Control] = MessageDecoder(Control)
        (greeting,) = self._tunnel.frames_to_send()
        assert isinstance(greeting, Resume)
        self._next = {lane: greeting.received[int(lane)] for lane in Lane}
        if speaker.rng.random() < 0.8:
            self._tunnel.receive(Resume({}), self._now)
            self._look()

    def knock(self) -> None:
        speaker, rng = self.speaker, self.speaker.rng
        self._now += rng.choice((0, 10**6, 10**8, 10**9))
        if rng.random() < 0.05:
            self.shut()
        if rng.random() < 0.1:
            self._tunnel.send(rng.choice(list(Lane)), [b"ours"], self._now)
        if rng.random() < 0.6:
            lane = rng.choice(list(Lane))
            frames: list[Any] = self._decoders[lane].feed(
                speaker.spoken(speaker.data(self._next[lane], lie=0.1))
            )
        else:
            frames = self._control.feed(speaker.spoken(speaker.framed(speaker.word(Control, lie=0.1))))
        for frame in frames:
            self._tunnel.receive(frame, self._now)
            if isinstance(frame, Data):
                self._next[frame.lane] += 1
        self._look()

    def _look(self) -> None:
        due = self._tunnel.get_timer()
        if due is not None and due <= self._now:
            self._tunnel.handle_timer(self._now)
        for frame in self._tunnel.frames_to_send():
            if is_control(frame):
                encode_message(frame)
            else:
                assert isinstance(frame, Data)
                encode_data(frame)
        while (event := self._tunnel.next_event()) is not None:
            assert not isinstance(event, Message) or event.parts
        if self._tunnel.held > 1 << 20:
            # The peer never acknowledges: the source of a real one is stopped long before.
            self._begin()
            self._attach()


class Tickets(Door):
    """A ticket that somebody pasted."""

    name = "ticket"
    allowed = (BadTicket,)

    def knock(self) -> None:
        rng = self.speaker.rng
        places = [
            NodeAddress(
                NodeId(rng.randbytes(32)),
                ("http://relay",) * rng.randrange(3),
                ("1.2.3.4:5",) * rng.randrange(3),
            )
            for _ in range(rng.randrange(1, 4))
        ]
        ticket = Ticket(places[0], address(rng.randbytes(20)), tuple(places[1:]))
        if rng.random() < 0.1:
            self._honest(ticket)
        text = self.speaker.spoken(str(ticket).encode()).decode("latin-1")
        if rng.random() < 0.3:
            # Damaged before its checksum was made, as a liar would.
            text = _sealed(self.speaker.bent(_opened(str(ticket))))
        self._same(Ticket.parse(text))

    def _honest(self, ticket: Ticket) -> None:
        try:
            self._same(ticket)
        except BadTicket as error:
            raise AssertionError("an honest ticket is refused") from error

    def _same(self, ticket: Ticket) -> None:
        assert Ticket.parse(str(ticket)) == ticket


def _opened(ticket: str) -> bytes:
    body = ticket.removeprefix("depin1")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-4]


def _sealed(raw: bytes) -> str:
    return "depin1" + base64.urlsafe_b64encode(raw + keccak256(raw)[:4]).decode().rstrip("=")


class Zmtp(Door):
    """What a kernel in its sandbox says, or a client that speaks ZeroMQ."""

    name = "ZeroMQ connection"
    _LONGEST = 1 << 20

    def __init__(self, speaker: Speaker) -> None:
        super().__init__(speaker)
        self._shared = memoryview(bytearray(1 << 15))
        self.shut()

    def shut(self) -> None:
        self._decoder = zmtp.Decoder(self._shared, self._LONGEST)
        self._greeted = False

    def knock(self) -> None:
        speaker, rng = self.speaker, self.speaker.rng
        if rng.random() < 0.2:
            # A length that was a lie is waited for.
            self.shut()
        said = b"".join(self._word() for _ in range(rng.choice((1, 1, 3))))
        data = speaker.spoken(said) if rng.random() < 0.6 else said
        if not self._greeted and rng.random() < 0.9:
            data = zmtp.greeting(zmtp.NULL, server=False) + data
        at = 0
        while at < len(data):
            space = self._decoder.space()
            count = min(len(space), len(data) - at, rng.choice((1, 100, 1 << 15)))
            space[:count] = data[at : at + count]
            at += count
            self._decoder.filled(count)
            self._take()
            # Whoever reads next reads to the same place.
            self._shared[:] = rng.randbytes(1) * len(self._shared)

    def _word(self) -> bytes:
        rng = self.speaker.rng
        if rng.random() < 0.5:
            parts = [rng.randbytes(rng.choice((0, 1, 255, 256, 20_000))) for _ in range(rng.randrange(1, 5))]
            return b"".join(bytes(piece) for piece in zmtp.encode(parts))
        name = rng.choice((b"READY", b"PING", b"PONG", b"SUBSCRIBE", b"CANCEL", b"ERROR"))
        return zmtp.command(name, self.speaker.spoken(zmtp.properties(b"DEALER", rng.randbytes(9))))

    def _take(self) -> None:
        greeting = self._decoder.greeting()
        if greeting is not None:
            self._greeted = True
            zmtp.check_greeting(greeting, zmtp.NULL)
        while (item := self._decoder.next()) is not None:
            if isinstance(item, zmtp.Command):
                if item.name == b"READY":
                    zmtp.introduced(item.body, b"ROUTER")
            elif isinstance(item, list):
                assert len(item) > 0
                assert sum(map(len, item)) <= self._LONGEST
        self._decoder.park()


class Errors(Door):
    """An error as the other side told it: its sentence is shown to people."""

    name = "error from the other side"
    allowed = ()

    def knock(self) -> None:
        value = self.speaker.value
        error = DepinError.from_wire(value(str, 0.3), value(dict[str, str], 0.3))
        assert len(str(error)) < 8000
        assert str(error).isprintable()


def plain_doors(speaker: Speaker) -> list[Door]:
    """Every door that needs no world around it. What is new in the vocabulary is found here by itself."""
    kinds = unions()
    doors: list[Door] = [
        WordStream(speaker, name, union) for name, union in kinds.items() if not isinstance(union, type)
    ]
    doors += [LaneStream(speaker, lane) for lane in Lane]
    for name, function in inspect.getmembers(messages, inspect.isfunction):
        if name.startswith("decode_") and function.__module__ == messages.__name__:
            said = inspect.signature(function).return_annotation
            doors.append(WordOfALane(speaker, name, function, kinds.get(str(said))))
    doors += [Machine(speaker, 3 * 10**9), Machine(speaker, None), Tickets(speaker)]
    doors += [Zmtp(speaker), Errors(speaker)]
    return doors
