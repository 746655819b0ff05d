"""ZeroMQ sockets on the running loop: what both sides of the channels are made of.

Sockets are read from the loop by their file descriptor rather than through `zmq.asyncio`, which costs a future per
message. ZeroMQ's descriptor is edge-triggered: after every send, pending input is looked at again. Frames pass through
pyzmq's inner class, for the outer one makes enumerations of the flags and options of each.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import zmq
from zmq.backend import Socket as BareSocket

from jupyter_depin.channels.outbox import Outbox
from jupyter_depin.errors import PortInUse, TransportError
from jupyter_depin.protocol.frames import Lane, Part

log = logging.getLogger(__name__)

Handler = Callable[[Lane, list[Part]], None]
Hold = Callable[[Lane, bool, str], None]
"""Asks that nothing more of a lane be delivered, or takes that back; the word says for whose sake."""

_BIG = 1 << 16
"""From this size on a ZeroMQ frame is handed on without a copy."""
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_TURN = 200
"""Messages that one socket may deliver before the loop turns to others."""


_MOST_SOCKETS = 1 << 14
"""Five or more for each kernel; ZeroMQ's own bound would end at two hundred kernels."""
_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def new_socket(kind: int) -> zmq.Socket[bytes]:
    """A socket without limits of its own, of the one context that all channels of this process share.

    A context of ZeroMQ has two threads, which a kernel that stands idle does not need for itself. It lasts as long as
    the process; a forked one makes its own.
    """
    # Bounds belong to the tunnel, which stops the source; ZeroMQ's own would drop messages.
    context = _contexts.get(os.getpid())
    if context is None:
        context = _contexts[os.getpid()] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
    socket = context.socket(kind)
    socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
    return socket


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn ZeroMQ's errors into `PortInUse` and `TransportError`; `what` is the address, or what fails."""
    try:
        yield
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise PortInUse(port=what.rpartition(":")[2]) from error
        raise TransportError(detail=f"{what}: {error}") from error


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits."""
    return bool(cast("int", BareSocket.get(socket, _EVENTS)) & _POLLIN)


def receive(socket: zmq.Socket[bytes]) -> list[Part]:
    """The next message, small frames as bytes. Raises `zmq.Again` if there is none."""
    parts: list[Part] = []
    more = True
    while more:
        frame = BareSocket.recv(socket, _LAST, copy=False)
        parts.append(frame.buffer if len(frame) >= _BIG else frame.bytes)
        more = frame.more
    return parts


def send(socket: zmq.Socket[bytes], parts: Sequence[Part], last: memoryview | None = None) -> None:
    """Send a message, big frames without a copy. `last`: goes uncopied in the last part's place. Raises `zmq.ZMQError`."""
    rest = len(parts)
    for part in parts:
        rest -= 1
        flags = _MORE if rest else _LAST
        if last is not None and not rest:
            BareSocket.send(socket, zmq.Frame(last, copy=False), flags, copy=False)
        elif len(part) < _BIG:
            BareSocket.send(socket, part, flags)
        else:
            BareSocket.send(socket, part, flags, copy=False)


class LoopSocket:
    """One socket on the running loop. `on_message` is called from the loop with the frames of each message.

    `outbox` counts what is sent: to `reader`, or where that is None to whom the first part of each message names.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[list[Part]], None],
        outbox: Outbox | None = None,
        reader: bytes | None = b"",
    ) -> None:
        self.socket = socket
        self._outbox, self._reader = outbox, reader
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = cast("int", socket.getsockopt(zmq.FD))
        self._paused = False
        self._scheduled = False
        self._loop.add_reader(self._fd, self._read)
        self._look_again()

    def send(self, parts: Sequence[Part]) -> None:
        """Send a message. One that the socket does not take is told to the log."""
        last: memoryview | None = None
        if self._outbox is not None:
            last = self._outbox.count(bytes(parts[0]) if self._reader is None else self._reader, parts)
        try:
            send(self.socket, parts, last)
        except zmq.Again:
            log.warning("a kernel channel did not take a message")
        except zmq.ZMQError as error:
            if not self.socket.closed:
                log.warning("a kernel channel failed: %s", error)
            return
        self._look_again()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading; ZeroMQ keeps what comes meanwhile."""
        self._paused = paused
        if not paused:
            self._look_again()

    def close(self) -> None:
        """Close it; what was not sent is dropped. May be called twice."""
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self.socket.close(0)

    def _look_again(self) -> None:
        if not self._scheduled and not self._paused and readable(self.socket):
            self._scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._scheduled = False
        for _ in range(_TURN):
            if self._paused or self.socket.closed or not readable(self.socket):
                return
            try:
                parts = receive(self.socket)
            except zmq.Again:
                return
            self._on_message(parts)
        self._scheduled = True
        self._loop.call_soon(self._read)


LANES = {"shell": Lane.SHELL, "stdin": Lane.STDIN, "control": Lane.CONTROL}
