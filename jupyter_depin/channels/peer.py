"""One ZMTP connection on the running loop: its handshake, its messages, and how many bytes it has not taken.

Used for both directions: of a client that connected here, and of a kernel that was connected to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Sequence
from typing import Protocol, cast

from jupyter_depin.channels.curve import CurveServer
from jupyter_depin.channels.descriptor import acknowledged, unread
from jupyter_depin.channels.zmtp import (
    CURVE,
    NULL,
    SCRATCH,
    Assembly,
    Command,
    Decoder,
    Oversize,
    check_greeting,
    command,
    command_frame,
    encode,
    greeting,
    introduced,
    named,
    properties,
)
from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import MAX_FRAME, Part

log = logging.getLogger(__name__)

_MORE, _COMMAND = 1, 2
"""Flags within a box of CURVE's."""
_BOX = 64
"""Bytes of a frame around what is in such a box, at most."""
_TURN = 200
"""Messages that one connection may deliver before the loop turns to others."""
_MOST_TOPICS = 1000
LONGEST_TOPIC = 1 << 12
"""Bytes of one subscription: all of them are kept."""
_HANDSHAKE_S = 30.0
"""How long somebody who connects may take to say who it is, as with libzmq."""
_UNASKED_S = 0.1
"""How long after its handshake somebody who cannot be asked is taken to have everything that was sent."""
_UNANSWERED_S = 2.0
"""The same for somebody who could be asked, and says nothing."""
_FLUSH_S = 1.0
"""How long what was sent before a connection is closed may take to leave."""

_here = threading.local()
_anonymous = itertools.count(int.from_bytes(os.urandom(3), "big"))


def scratch() -> memoryview:
    """The memory that the connections of this thread's loop read into, one after the other."""
    if not hasattr(_here, "scratch"):
        _here.scratch = memoryview(bytearray(SCRATCH))
    return cast("memoryview", _here.scratch)


class Owner(Protocol):
    """Whoever has a connection. Everything is called from the loop and must not block."""

    def ready(self, peer: Peer) -> None:
        """The handshake is over: messages may be sent."""

    def message(self, peer: Peer, parts: list[Part]) -> None:
        """A message came."""

    def oversize(self, peer: Peer, size: int, parts: int) -> None:
        """A message came that is more than a tunnel carries; nothing of it was kept."""

    def full(self, peer: Peer, full: bool) -> None:
        """It holds `limit` bytes that the other end has not taken; then, half of that has left."""

    def answered(self, peer: Peer) -> None:
        """What `ask` asked is answered."""

    def lost(self, peer: Peer) -> None:
        """It is over, by whatever cause. Called once, for every connection that was made."""


class Peer(asyncio.BufferedProtocol):
    """The other end of one connection. Made by a `Listener` or a `Dialler`.

    `kind`: this side's socket type. `identity`: this side's own. `limit`: bytes that may wait for the other end before
    that is told. `longest`: bytes of one frame; a longer one ends the connection before it is read.
    """

    def __init__(
        self,
        owner: Owner,
        kind: bytes,
        *,
        limit: int,
        identity: bytes = b"",
        curve: CurveServer | None = None,
        longest: int = MAX_FRAME,
    ) -> None:
        self._owner, self._kind, self._own = owner, kind, identity
        self._limit, self._curve = limit, curve
        # Nobody may make this side keep a message before its handshake.
        self._decoder, self._longest = Decoder(scratch(), 0), longest
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._paused = self._due = self._ended = False
        self._plain = False
        """Messages go to the owner as they come."""
        self._handshake: asyncio.TimerHandle | None = None
        self.is_ready = self.is_full = False
        self.identity = b""
        """The name that the other end gave itself, or one of ours that begins with a zero byte."""
        self.topics: list[bytes] = []
        """What it has subscribed to."""
        self._sent = 0
        self._newer = False
        self._unboxed = Assembly(longest)

    # -- for its owner

    def send(self, parts: Sequence[Part], pieces: Sequence[Part] | None = None) -> None:
        """Send a message. `pieces`: what `encode` made of it, where several peers get the same."""
        transport = self._transport
        if transport is None or not self.is_ready:
            return
        if self._curve is not None:
            last = len(parts) - 1
            boxes = [self._curve.box(_MORE if i < last else 0, part) for i, part in enumerate(parts)]
            pieces = [piece for box in boxes for piece in encode([box])]
        elif pieces is None:
            pieces = encode(parts)
        for piece in pieces:
            transport.write(piece)
            self._sent += len(piece)

    def ask(self) -> None:
        """Ask whether everything so far has come to the other end; `answered` is called then."""
        if self._newer:
            self._write(command(b"PING", bytes(2)))
        # An older one would not understand the question.
        self._loop.call_later(_UNANSWERED_S if self._newer else _UNASKED_S, self._owner.answered, self)

    def wants(self, topic: Part) -> bool:
        """Whether it has subscribed to a message that begins so."""
        return any(not prefix or bytes(topic[: len(prefix)]) == prefix for prefix in self.topics)

    def pause(self, paused: bool) -> None:
        """Stop or go on taking messages; the other end keeps what comes meanwhile."""
        if paused is self._paused:
            return
        self._paused = paused
        if self._transport is not None and not self._due:
            if paused:
                self._transport.pause_reading()
            else:
                self._soon()

    @property
    def held(self) -> int:
        """Bytes that the other end has not taken, as far as this process knows."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """A number that grows when the other end takes something."""
        return self._sent - self.held + (0 if self._transport is None else acknowledged(self._transport))

    def pending(self) -> bool:
        """Whether the other end has said something that was not read yet."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        return self._due or unread(transport)

    def close(self) -> None:
        """End it; what was sent leaves if the other end takes it soon. May be called twice."""
        self._end()
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._loop.call_later(_FLUSH_S, transport.abort)
            transport.close()

    def cut(self) -> None:
        """End it at once; what was not taken is dropped."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    # -- for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        if self._ended:
            self._transport.abort()
            return
        self._handshake = self._loop.call_later(_HANDSHAKE_S, self.cut)
        self._transport.set_write_buffer_limits(self._limit, self._limit // 2)
        mechanism = NULL if self._curve is None else CURVE
        self._transport.write(greeting(mechanism, server=self._curve is not None))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop shall read to."""
        return self._decoder.space()

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has read."""
        self._decoder.filled(nbytes)
        self._hand_on()

    def eof_received(self) -> bool:
        """The other end has closed, and reads nothing more either: ZeroMQ never closes by halves."""
        self.cut()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._end()
        self._transport = None
        self._owner.lost(self)

    def pause_writing(self) -> None:
        """The other end does not keep up."""
        self.is_full = True
        self._owner.full(self, True)

    def resume_writing(self) -> None:
        """It does again."""
        self.is_full = False
        self._owner.full(self, False)

    # --

    def _end(self) -> None:
        self._ended, self.is_ready = True, False
        self._shaken()

    def _shaken(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    def _soon(self) -> None:
        self._due = True
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._due = False
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
            self._hand_on()

    def _hand_on(self) -> None:
        decoder = self._decoder
        try:
            if not self.is_ready and (theirs := decoder.greeting()) is not None:
                self._greeted(theirs)
            turn = _TURN
            while not self._paused and not self._ended:
                item = decoder.next()
                if item is None:
                    break
                if self._plain and type(item) is list:
                    self._tell(item)
                else:
                    self._take(item)
                turn -= 1
                if not turn:
                    if self._transport is not None and not self._due and not self._paused:
                        self._transport.pause_reading()
                        self._soon()
                    break
        except RemoteProtocolError as error:
            log.info("a %s connection was refused: %s", self._kind.decode(), error)
            self.cut()
        finally:
            decoder.park()

    def _greeted(self, data: bytes) -> None:
        self._newer = check_greeting(data, NULL if self._curve is None else CURVE)
        if self._curve is None:
            self._write(command(b"READY", self._properties()))

    def _take(self, item: list[Part] | Command | Oversize) -> None:
        if not self.is_ready:
            if not isinstance(item, Command):
                raise RemoteProtocolError(detail="a message before the handshake")
            self._shake(item)
        elif self._curve is None:
            self._heard(item)
        elif isinstance(item, list):
            self._unbox(self._curve, item)
        else:
            raise RemoteProtocolError(detail="words outside of a CURVE box")

    def _heard(self, item: list[Part] | Command | Oversize) -> None:
        if isinstance(item, Command):
            self._command(item)
        elif isinstance(item, Oversize):
            self._owner.oversize(self, item.size, item.parts)
        elif self._kind != b"XPUB":
            self._tell(item)
        elif item[0][:1] in (b"\0", b"\x01"):
            self._subscribe(bytes(item[0][1:]), on=item[0][:1] == b"\x01")

    def _tell(self, parts: list[Part]) -> None:
        try:
            self._owner.message(self, parts)
        except Exception as error:  # One message's trouble must not end the channel.
            self._loop.call_exception_handler({"message": "on a kernel channel", "exception": error})

    def _unbox(self, curve: CurveServer, frames: list[Part]) -> None:
        for frame in frames:
            flags, part = curve.open(frame)
            if flags & _COMMAND:
                self._command(named(part))
                continue
            whole = self._unboxed.add(part, flags & _MORE)
            if whole is not None:
                self._heard(whole)

    def _shake(self, said: Command) -> None:
        """A word of the handshake."""
        if said.name == b"ERROR":
            raise RemoteProtocolError(detail=f"it says {said.body[1:]!r}")
        if self._curve is not None:
            answer, theirs = self._curve.take(
                bytes((len(said.name),)) + said.name + said.body, self._properties()
            )
            if answer is not None:
                self._write(command_frame(answer))
            if theirs is not None:
                self._meet(theirs)
        elif said.name == b"READY":
            self._meet(said.body)
        else:
            raise RemoteProtocolError(detail=f"the command {said.name!r}")

    def _command(self, said: Command) -> None:
        match said.name:
            case b"SUBSCRIBE" | b"CANCEL" if self._kind == b"XPUB":
                self._subscribe(said.body, on=said.name == b"SUBSCRIBE")
            case b"PING" if not self.is_full:
                # Who reads no answers gets none: they would pile up.
                self._pong(said.body[2:])
            case b"PONG":
                self._owner.answered(self)
            case b"ERROR":
                raise RemoteProtocolError(detail=f"it says {said.body[1:]!r}")
            case _:
                # As libzmq does: a word of a later version is no reason to part.
                log.debug("a peer's command %r means nothing here", said.name)

    def _pong(self, context: bytes) -> None:
        if self._curve is None:
            self._write(command(b"PONG", context))
        else:
            for piece in encode([self._curve.box(_COMMAND, b"\x04PONG" + context)]):
                self._write(piece)

    def _meet(self, said: bytes) -> None:
        self.identity = introduced(said, self._kind) or b"\0" + (next(_anonymous) % (1 << 32)).to_bytes(
            4, "big"
        )
        self._shaken()
        self._decoder.longest = self._longest if self._curve is None else self._longest + _BOX
        self.is_ready = True
        self._plain = self._curve is None and self._kind != b"XPUB"
        self._owner.ready(self)

    def _subscribe(self, topic: bytes, *, on: bool) -> None:
        if on:
            if len(self.topics) >= _MOST_TOPICS or len(topic) > LONGEST_TOPIC:
                raise RemoteProtocolError(detail="too many subscriptions")
            self.topics.append(topic)
            self._tell([topic])
        elif topic in self.topics:
            self.topics.remove(topic)

    def _properties(self) -> bytes:
        return properties(self._kind, self._own)

    def _write(self, piece: Part) -> None:
        assert self._transport is not None
        self._transport.write(piece)
        self._sent += len(piece)
