"""What crosses a connection: lanes of data frames, and one control stream of small messages.

A data frame is `seq u64 · parts u16 · length u32 each · bodies`, big-endian; it carries ZeroMQ frames untouched, so a
buffer of many megabytes is never copied into an envelope. A head that cannot be one announces compressed bytes
(`compressed.py`). Everything else is JSON with a length in front: it is small
and wants to grow fields without breaking old peers. A lane has a QUIC stream of its own, opened by the consumer
with the lane's number as its first byte; so an interrupt never waits behind a big output.

Rejected: msgpack for data (two copies of each buffer) and for messages (its integers have 64 bits, amounts have 88);
sequence numbers across lanes (one lane would block another).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgspec

from jupyter_depin.errors import DepinError, MessageTooBig, RemoteProtocolError
from jupyter_depin.protocol.room import room

VERSION = 2
"""Raised when an old peer could not follow; sent in the first message of a connection."""

MAX_FRAME = 1 << 30
"""Bytes of one data frame: more than any notebook output, less than what would hurt. A giant length ends the link."""
MAX_PARTS = 1 << 15
MOST_AT_ONCE = 512
"""Frames that a decoder gives at a time: a read may hold twenty thousand, and others have their turns in between."""
MAX_MESSAGE = 1 << 20
"""Bytes of one of our own words, wherever it travels."""

Part = bytes | memoryview | bytearray


class Lane(IntEnum):
    """One ordered, resumable flow in the tunnel. The heartbeat channel has none: it is answered locally."""

    LEASE = 0
    PAYMENT = 1
    CONTROL = 2
    STDIN = 3
    SHELL = 4
    IOPUB = 5


PRIORITY: dict[Lane, int] = {
    Lane.LEASE: 60,
    Lane.CONTROL: 50,
    Lane.STDIN: 40,
    Lane.PAYMENT: 30,
    Lane.SHELL: 20,
    Lane.IOPUB: 10,
}
"""Higher goes first where the link is narrow."""


def longest(lane: Lane) -> int:
    """The most bytes that one message of a lane may have: the kernel's own are big, ours are not."""
    return MAX_MESSAGE if lane in (Lane.LEASE, Lane.PAYMENT) else MAX_FRAME


def too_big(size: int, parts: int, lane: Lane) -> MessageTooBig:
    """The error for a message beyond a lane's bounds."""
    return MessageTooBig(
        size=f"{size:,}", parts=f"{parts:,}", limit=f"{longest(lane):,}", most=f"{MAX_PARTS:,}"
    )


@dataclass(frozen=True, slots=True)
class Data:
    """A message of a lane, with its number in that lane (0, 1, 2 …)."""

    lane: Lane
    seq: int
    parts: Sequence[Part]
    size: int


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """First control message of both sides on every connection: how many messages of each lane were taken.

    `kept`, for a lane with a backlog: how many messages were numbered so far, and how many wait without a number (each
    of them comes, or a marker that stands for some).
    """

    received: dict[int, int]
    kept: dict[int, tuple[int, int]] = {}


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """How many messages of each lane were taken so far (only lanes that moved)."""

    received: dict[int, int]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Asks for a `Pong`; sent after silence."""

    nonce: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Answers a `Ping`."""

    nonce: int


Control = Resume | Ack | Ping | Pong
Frame = Data | Resume | Ack | Ping | Pong

_HEAD = struct.Struct(">QH")
_LENGTH = struct.Struct(">I")

COMPRESSED = _HEAD.pack((1 << 64) - 1, 0)
"""In the place of a frame's head: what follows on this stream is compressed, until that says where it ends."""


def encode_data(frame: Data) -> list[Part]:
    """The pieces to write for a data frame: a joined one if it is small, otherwise header and untouched bodies."""
    lengths = [len(part) for part in frame.parts]
    head = _HEAD.pack(frame.seq, len(lengths)) + struct.pack(f">{len(lengths)}I", *lengths)
    if frame.size <= 1 << 16:
        return [b"".join((head, *frame.parts))]
    return [head, *(part for part in frame.parts if len(part))]


class DataDecoder:
    """Turns the bytes of one lane's stream into data frames. Memory is bounded by `longest(lane)` plus one read.

    `more`: `MOST_AT_ONCE` frames came of what was fed, and there are others: call `feed(b"")` after a turn of the loop.
    """

    def __init__(self, lane: Lane, max_frame: int | None = None) -> None:
        self._lane, self.max_frame = lane, longest(lane) if max_frame is None else max_frame
        self.announced: bytes | None = None
        """What was fed and follows the word `COMPRESSED`, once that came. The owner takes it and sets it to None."""
        self.more = False
        self._late: bytes | memoryview = b""
        self._head = bytearray()
        self._seq = 0
        self._lengths: tuple[int, ...] | None = None
        self._parts: list[Part] = []
        self._body: memoryview | None = None
        self._got = 0

    @property
    def between(self) -> bool:
        """Whether the last frame is complete and nothing of the next one has come."""
        return self._lengths is None and not self._head and not self.more

    def feed(self, data: bytes | memoryview) -> list[Data]:
        """Take bytes as they come and return the frames they complete. Raises `RemoteProtocolError`."""
        frames: list[Data] = []
        if self.more:
            data, self._late, self.more = bytes(self._late) + data, b"", False
        view = memoryview(data)
        while True:
            if len(frames) == MOST_AT_ONCE and len(view):
                self._late, self.more = view, True
                return frames
            if self._lengths is None:
                view = self._feed_head(view)
                if self._lengths is None:
                    return frames
            while len(self._parts) < len(self._lengths):
                need = self._lengths[len(self._parts)]
                if self._body is None and len(view) >= need:
                    self._parts.append(bytes(view[:need]))
                    view = view[need:]
                    continue
                if self._body is None:
                    self._body, self._got = room(need), 0
                end = min(need, self._got + len(view))
                self._body[self._got : end] = view[: end - self._got]
                view = view[end - self._got :]
                self._got = end
                if end < need:
                    return frames
                self._parts.append(self._body)
                self._body = None
            frames.append(Data(self._lane, self._seq, self._parts, sum(self._lengths)))
            self._lengths, self._parts = None, []

    def _feed_head(self, view: memoryview) -> memoryview:
        while True:
            need = _HEAD.size
            if len(self._head) >= need:
                self._seq, count = _HEAD.unpack_from(self._head)
                if not 0 < count <= MAX_PARTS:
                    if self._head == COMPRESSED:
                        self.announced = bytes(view)
                        self._head.clear()
                        return view[:0]
                    raise RemoteProtocolError(detail=f"a frame of {count} parts")
                need += _LENGTH.size * count
                if len(self._head) == need:
                    lengths = struct.unpack_from(f">{count}I", self._head, _HEAD.size)
                    if sum(lengths) > self.max_frame:
                        raise RemoteProtocolError(detail=f"a frame of {sum(lengths)} bytes")
                    self._lengths = lengths
                    self._head.clear()
                    return view
            if not len(view):
                return view
            taken = min(need - len(self._head), len(view))
            self._head += view[:taken]
            view = view[taken:]


T = TypeVar("T")


def encode_message(message: object) -> bytes:
    """A message (a tagged struct) as it is written on a control stream: its length, then JSON."""
    body = msgspec.json.encode(message)
    return _LENGTH.pack(len(body)) + body


class MessageDecoder(Generic[T]):
    """Turns the bytes of a stream of small messages into values of `kinds`, a union of tagged structs.

    `longest`: bytes of one message. Memory is bounded by that plus one read.
    """

    def __init__(self, kinds: Any, longest: int = MAX_MESSAGE) -> None:
        self._decode, self._longest = msgspec.json.Decoder(kinds).decode, longest
        self._buffer = bytearray()

    @property
    def missing(self) -> int:
        """How many bytes at least are needed to complete the next message."""
        if len(self._buffer) < _LENGTH.size:
            return _LENGTH.size - len(self._buffer)
        return int(_LENGTH.unpack_from(self._buffer)[0]) + _LENGTH.size - len(self._buffer)

    def feed(self, data: bytes) -> list[T]:
        """Take bytes as they come and return the messages they complete. Raises `RemoteProtocolError`."""
        self._buffer += data
        messages: list[T] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._longest:
                raise RemoteProtocolError(detail=f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(decode_checked(self._decode, bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return messages


def decode_checked(decode: Callable[[bytes], T], data: bytes) -> T:
    """Decode what a peer sent; whatever is wrong with it is the peer's fault: `RemoteProtocolError`."""
    try:
        return decode(data)
    except (msgspec.MsgspecError, DepinError, ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(detail=f"an unreadable message ({error})") from error
