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
_HEADS, _MORE_HEADS = (tuple(bytes((flags, size)) for size in range(_SHORT + 1)) for flags in (0, _MORE))
"""What stands in front of each short frame of a message."""
_BIG = 1 << 14
"""Frames from this size on are read to where they stay, and written as they are."""
_FEW = 1 << 15
"""So much is taken out of the shared memory at once: of bytes, small frames are cut faster than of a view."""
_LONGEST_COMMAND = 1 << 16
_MATES = {
    b"ROUTER": (b"DEALER", b"REQ", b"ROUTER"),
    b"XPUB": (b"SUB", b"XSUB"),
    b"DEALER": (b"ROUTER", b"REP", b"DEALER"),
    b"SUB": (b"PUB", b"XPUB"),
}
"""Which sockets may be at the other end of which."""
LONGEST_IDENTITY = 255
"""ZeroMQ's own limit, in bytes."""
_SHORT_LENGTH = struct.Struct(">I")


def greeting(mechanism: bytes, *, server: bool) -> bytes:
    """The first bytes of either side. `server`: of CURVE's two sides, the one whose key is known to the other."""
    return b"".join((_SIGNATURE, b"\x03\x00", mechanism.ljust(20, b"\0"), bytes((server,)), bytes(31)))


def check_greeting(data: bytes, mechanism: bytes) -> bool:
    """Whether the peer speaks 3.1, whose PING it answers. Raises `RemoteProtocolError` for anybody who does not speak 3,
    or wants another mechanism.
    """
    check_start(data)
    if data[12:32].rstrip(b"\0") != mechanism:
        raise RemoteProtocolError(detail=f"it wants the mechanism {data[12:32]!r}")
    return (data[10], data[11]) >= (3, 1)


def check_start(data: bytes) -> None:
    """See whether a greeting may begin so: others say too little for one, and wait. Raises `RemoteProtocolError`."""
    if data[:1] != _SIGNATURE[:1] or data[9:10] not in (b"", _SIGNATURE[9:]) or b"" < data[10:11] < b"\x03":
        raise RemoteProtocolError(detail="it does not speak ZMTP 3")


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


def introduced(data: bytes, kind: bytes) -> bytes:
    """The identity of whoever says this in READY to a socket of this `kind`, or nothing. Raises `RemoteProtocolError`."""
    known = read_properties(data)
    theirs = known.get(b"socket-type", b"")
    if theirs not in _MATES[kind]:
        raise RemoteProtocolError(detail=f"a {theirs!r} socket at a {kind!r} one")
    # Subscribers are told apart by their connections alone, whatever they are called.
    identity = b"" if kind == b"XPUB" else known.get(b"identity", b"")
    if len(identity) > LONGEST_IDENTITY or identity[:1] == b"\0":
        raise RemoteProtocolError(detail="an identity that nobody may have")
    return identity


def encode(parts: Sequence[Part]) -> list[Part]:
    """The pieces to write for a message: small frames joined, big ones as they are."""
    pieces: list[Part] = []
    small: list[Part] = []
    left = len(parts)
    for part in parts:
        left -= 1
        size = len(part)
        if size <= _SHORT:
            small += ((_MORE_HEADS if left else _HEADS)[size], part)
            continue
        small.append(_LONG_HEAD.pack(_MORE | _LONG if left else _LONG, size))
        if size < _BIG:
            small.append(part)
        else:
            pieces += (b"".join(small), part)
            small.clear()
    if small:
        pieces.append(b"".join(small))
    return pieces


class Assembly:
    """The frames of one message that come one after the other, as many as may be kept."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._parts: list[Part] = []
        self._size = self._count = 0

    @property
    def empty(self) -> bool:
        """Whether nothing of a message is there."""
        return not self._count

    def add(self, part: Part, more: int) -> list[Part] | Oversize | None:
        """The message, if no `more` belongs to it."""
        self._count += 1
        self._size += len(part)
        if self._size <= self.longest and self._count <= MAX_PARTS:
            self._parts.append(part)
        else:
            self._parts.clear()
        if more:
            return None
        size, count, parts = self._size, self._count, self._parts
        self._parts, self._size, self._count = [], 0, 0
        return parts if len(parts) == count else Oversize(size, count)


class Decoder:
    """Turns the bytes of one connection into messages and commands. Driven by `Peer`; memory is bounded by `longest`.

    Read into `space()`, say how much with `filled`, then take what `next` gives until that is None. If nothing more is
    to be taken for now, `park()`: others read into the same memory then. `longest` may change between messages.
    """

    def __init__(self, scratch: memoryview, longest: int = MAX_FRAME) -> None:
        self._scratch = scratch
        self._assembly = Assembly(longest)
        self._data: memoryview | bytes = b""
        self._at = 0
        self._greeted = False
        self._flags = 0
        self._body: memoryview | None = None
        self._got = 0

    @property
    def longest(self) -> int:
        """Bytes that a message may have."""
        return self._assembly.longest

    @longest.setter
    def longest(self, longest: int) -> None:
        self._assembly.longest = longest

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty. What was there before stays where it is, for perhaps none come."""
        if self._body is not None:
            return self._body[self._got :]
        rest = len(self._data) - self._at
        if rest:
            self._scratch[:rest] = self._data[self._at :]
        return self._scratch[rest:]

    def filled(self, count: int) -> None:
        """So many bytes are in `space()` now."""
        if self._body is not None:
            self._got += count
            return
        read = self._scratch[: len(self._data) - self._at + count]
        self._data = bytes(read) if len(read) <= _FEW else read
        self._at = 0

    def park(self) -> None:
        """Take what is left out of the memory that is shared."""
        if isinstance(self._data, memoryview):
            self._data, self._at = bytes(self._data[self._at :]), 0

    def greeting(self) -> bytes | None:
        """The peer's greeting, once, when it is there. Raises `RemoteProtocolError` if it will be none."""
        if self._greeted or not self._data:
            return None
        found = bytes(self._data[:GREETING])
        check_start(found)
        if len(found) < GREETING:
            return None
        self._greeted, self._at = True, GREETING
        return found

    def next(self) -> list[Part] | Command | Oversize | None:
        """The next message or command, or None. Raises `RemoteProtocolError`; the connection is of no use then."""
        if self._body is not None:
            if self._got < len(self._body):
                return None
            body, self._body = self._body, None
            if self._flags & _COMMAND:
                return named(body)
            whole = self._assembly.add(body, self._flags & _MORE)
            if whole is not None:
                return whole
        data, at = self._data, self._at
        end = len(data) if self._greeted else 0
        assembly = self._assembly
        longest, began, shared = assembly.longest, not assembly.empty, type(data) is memoryview
        parts: list[Part] = []
        total = 0
        while end - at > 1:
            flags, size, start = data[at], data[at + 1], at + 2
            if flags > _MORE or size > longest:
                if flags & _LONG:
                    start = at + _LONG_HEAD.size
                    if start > end:
                        break
                    flags, size = _LONG_HEAD.unpack_from(data, at)
                self._check(flags, size)
            stop = start + size
            if stop > end:
                if size >= _BIG:
                    at = self._begin(flags, size, start)
                break
            part = bytes(data[start:stop]) if shared else data[start:stop]
            at = stop
            if flags & _COMMAND:
                self._keep(parts, at)
                return named(part)
            if began:
                whole = assembly.add(part, flags & _MORE)
                if whole is not None:
                    self._at = at
                    return whole
                continue
            parts.append(part)
            total += size
            if not flags & _MORE:
                self._at = at
                fits = total <= longest and len(parts) <= MAX_PARTS
                return parts if fits else Oversize(total, len(parts))
        self._keep(parts, at)
        return None

    # --

    def _keep(self, parts: list[Part], at: int) -> None:
        """Go on at `at` another time, with what is there of a message."""
        for part in parts:
            self._assembly.add(part, _MORE)
        self._at = at

    def _begin(self, flags: int, size: int, start: int) -> int:
        """A big frame, whose end is not there: the rest is read to where it stays."""
        self._flags, self._body = flags, room(size)
        self._got = len(self._data) - start
        self._body[: self._got] = self._data[start:]
        return len(self._data)

    def _check(self, flags: int, size: int) -> None:
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise RemoteProtocolError(detail=f"a frame with the flags {flags:#x}")
        if size > (_LONGEST_COMMAND if flags & _COMMAND else self.longest):
            raise RemoteProtocolError(detail=f"a frame of {size:,} bytes")


def named(content: Part) -> Command:
    """A command's content, with its name apart. Raises `RemoteProtocolError`."""
    data = bytes(content)
    if not data or len(data) < 1 + data[0]:
        raise RemoteProtocolError(detail="a command without a name")
    return Command(data[1 : 1 + data[0]], data[1 + data[0] :])
