"""ZMTP, the protocol that ZeroMQ sockets speak with each other, as far as a kernel's channels need it; sans I/O.

Spoken here and not through libzmq, because that stands between with a thread and a queue of its own: each message would
wake two threads more, and nobody could say how many bytes lie in the queue or who does not read them.

A connection begins with a greeting of 64 bytes each way. Then come frames, flags and length in front: commands, which
exchange what each side is and its identity, and messages of one or more frames. Version 3.0 (https://rfc.zeromq.org/spec/23)
is said to everybody; what a newer peer sends all the same (3.1: a subscription as a command, a ping) is understood.

What is read lies in a buffer that all connections of a loop share, since a loop reads one at a time; what is left of it
belongs to its connection before the next one reads. Big frames are read to where they stay.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import MAX_FRAME, MAX_PARTS, Part
from jupyter_depin.protocol.room import room

NULL, CURVE = b"NULL", b"CURVE"
SCRATCH = 1 << 18
"""Bytes of the buffer that the connections of one loop share."""

GREETING = 64
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\x00\x7f"
_MORE, _LONG, _COMMAND = 1, 2, 4
_LONG_HEAD = struct.Struct(">BQ")
_SHORT = 255
_BIG = 1 << 14
"""Frames from this size on are read to where they stay, and written as they are."""
_LONGEST_COMMAND = 1 << 16
_SHORT_LENGTH = struct.Struct(">I")


def greeting(mechanism: bytes, *, server: bool) -> bytes:
    """The first bytes of either side. `server`: of CURVE's two sides, the one whose key is known to the other."""
    return b"".join((_SIGNATURE, b"\x03\x00", mechanism.ljust(20, b"\0"), bytes((server,)), bytes(31)))


def check_greeting(data: bytes, mechanism: bytes) -> bool:
    """Whether the peer speaks 3.1, whose PING it answers. Raises `RemoteProtocolError` for anybody who does not speak 3,
    or wants another mechanism.
    """
    if data[0] != _SIGNATURE[0] or data[9] != _SIGNATURE[9] or data[10] < 3:
        raise RemoteProtocolError(detail="it does not speak ZMTP 3")
    if data[12:32].rstrip(b"\0") != mechanism:
        raise RemoteProtocolError(detail=f"it wants the mechanism {data[12:32]!r}")
    return (data[10], data[11]) >= (3, 1)


@dataclass(frozen=True, slots=True)
class Command:
    """A word of one connection's end to the other: its name, and what belongs to it."""

    name: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Oversize:
    """A message beyond what a tunnel carries, of which nothing was kept: its bytes and its parts."""

    size: int
    parts: int


def command(name: bytes, body: bytes = b"") -> bytes:
    """A command's frame."""
    return command_frame(bytes((len(name),)) + name + body)


def command_frame(content: bytes) -> bytes:
    """The same, where the name already stands in front."""
    if len(content) <= _SHORT:
        return bytes((_COMMAND, len(content))) + content
    return _LONG_HEAD.pack(_COMMAND | _LONG, len(content)) + content


def properties(kind: bytes, identity: bytes = b"") -> bytes:
    """What READY says: the socket's type and its identity."""
    said = {b"Socket-Type": kind} | ({b"Identity": identity} if identity or kind != b"SUB" else {})
    return b"".join(
        bytes((len(name),)) + name + _SHORT_LENGTH.pack(len(value)) + value for name, value in said.items()
    )


def read_properties(data: bytes) -> Mapping[bytes, bytes]:
    """What a peer's READY says; names in small letters. Raises `RemoteProtocolError`."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        value_at = name_end + _SHORT_LENGTH.size
        if value_at > len(data):
            raise RemoteProtocolError(detail="properties that end early")
        end = value_at + int(_SHORT_LENGTH.unpack_from(data, name_end)[0])
        if end > len(data):
            raise RemoteProtocolError(detail="properties that end early")
        found[data[at + 1 : name_end].lower()] = data[value_at:end]
        at = end
    return found


def encode(parts: Sequence[Part]) -> list[Part]:
    """The pieces to write for a message: small frames joined, big ones as they are."""
    pieces: list[Part] = []
    small: list[Part] = []
    flags = _MORE
    last = len(parts) - 1
    for i, part in enumerate(parts):
        if i == last:
            flags = 0
        size = len(part)
        small.append(bytes((flags, size)) if size <= _SHORT else _LONG_HEAD.pack(flags | _LONG, size))
        if size < _BIG:
            small.append(part)
        else:
            pieces.append(b"".join(small))
            pieces.append(part)
            small.clear()
    if small:
        pieces.append(b"".join(small))
    return pieces


class Decoder:
    """Turns the bytes of one connection into messages and commands. Driven by `Peer`; memory is bounded by `longest`.

    Read into `space()`, say how much with `filled`, then take what `next` gives until that is None. If nothing more is
    to be taken for now, `park()`: others read into the same memory then.
    """

    def __init__(self, scratch: memoryview, longest: int = MAX_FRAME) -> None:
        self._scratch, self._longest = scratch, longest
        self._data: memoryview | bytes = b""
        self._at = 0
        self._greeted = False
        self._parts: list[Part] = []
        self._size = self._count = 0
        self._flags = 0
        self._body: memoryview | None = None
        self._got = 0

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._body is not None:
            return self._body[self._got :]
        rest = len(self._data) - self._at
        self._scratch[:rest] = self._data[self._at :]
        self._data, self._at = self._scratch[:rest], 0
        return self._scratch[rest:]

    def filled(self, count: int) -> None:
        """So many bytes are in `space()` now."""
        if self._body is not None:
            self._got += count
        else:
            self._data = self._scratch[: len(self._data) + count]

    def park(self) -> None:
        """Take what is left out of the memory that is shared."""
        self._data, self._at = bytes(self._data[self._at :]), 0

    def greeting(self) -> bytes | None:
        """The peer's greeting, once, when it is there."""
        if self._greeted or len(self._data) - self._at < GREETING:
            return None
        self._greeted = True
        return self._take(GREETING)

    def next(self) -> list[Part] | Command | Oversize | None:
        """The next message or command, or None. Raises `RemoteProtocolError`; the connection is of no use then."""
        while True:
            body = self._frame()
            if body is None:
                return None
            flags = self._flags
            if flags & _COMMAND:
                return named(body)
            self._count += 1
            self._size += len(body)
            if self._size <= self._longest and self._count <= MAX_PARTS:
                self._parts.append(body)
            else:
                self._parts.clear()
            if not flags & _MORE:
                return self._message()

    # --

    def _message(self) -> list[Part] | Oversize:
        size, count, parts = self._size, self._count, self._parts
        self._parts, self._size, self._count = [], 0, 0
        return parts if len(parts) == count else Oversize(size, count)

    def _frame(self) -> Part | None:
        if self._body is not None:
            if self._got < len(self._body):
                return None
            body, self._body = self._body, None
            return body
        data, at = self._data, self._at
        rest = len(data) - at
        if rest < 2 or not self._greeted:
            return None
        flags, size, head = data[at], data[at + 1], 2
        if flags & _LONG:
            if rest < _LONG_HEAD.size:
                return None
            flags, size = _LONG_HEAD.unpack_from(data, at)
            head = _LONG_HEAD.size
        self._check(flags, size)
        self._flags = flags
        if rest >= head + size:
            self._at = at + head
            return self._take(size)
        if size < _BIG:
            return None
        self._body = room(size)
        self._got = min(size, rest - head)
        self._body[: self._got] = data[at + head : at + head + self._got]
        self._at = at + head + self._got
        return self._frame()

    def _check(self, flags: int, size: int) -> None:
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise RemoteProtocolError(detail=f"a frame with the flags {flags:#x}")
        if size > (_LONGEST_COMMAND if flags & _COMMAND else self._longest):
            raise RemoteProtocolError(detail=f"a frame of {size:,} bytes")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken


def named(content: Part) -> Command:
    """A command's content, with its name apart. Raises `RemoteProtocolError`."""
    data = bytes(content)
    if not data or len(data) < 1 + data[0]:
        raise RemoteProtocolError(detail="a command without a name")
    return Command(data[1 : 1 + data[0]], data[1 + data[0] :])
