"""Where ZMTP connections come from: a `Listener` at an endpoint takes them, a `Dialler` makes one and makes it again.

Endpoints are written as ZeroMQ does: `tcp://127.0.0.1:5555`, `ipc:///run/k-1`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from jupyter_depin.channels.peer import Owner, Peer
from jupyter_depin.errors import PortInUse, TransportError
from jupyter_depin.protocol.frames import Part

log = logging.getLogger(__name__)

_BACKLOG = 100
_FIRST_S, _OFTEN_S, _LONGEST_S = 0.01, 0.2, 10.0
"""How soon a connection is tried again: first soon, then five times a second, then ever more seldom."""
_SLOWING = 1.02
"""By how much each pause is longer then, so that a kernel that starts late waits no more than this share longer."""
_SETTLED_S = 1.0
"""A connection that lasted so long is made again at once; a kernel that only hangs up must not keep this side busy."""
MESSAGE = 256
"""Bytes that a message which waits counts on top of its own."""


class Listener:
    """A bound endpoint. Made by the client side. `peer` makes what takes each connection. Raises `PortInUse`, `TransportError`."""

    def __init__(self, endpoint: str, peer: Callable[[], Peer]) -> None:
        self._socket, self._path = _bound(endpoint)
        self._file = os.stat(self._path) if self._path else None
        loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        # The system takes connections from here on, so nothing is missed before the loop does.
        self._starting = loop.create_task(self._start(loop, peer))

    def close(self) -> None:
        """Take no more connections; those that were made stay. May be called twice."""
        self._starting.cancel()
        if self._server is not None:
            self._server.close()
        self._socket.close()
        if self._file is not None:
            # Somebody else may have the name by now.
            with suppress(OSError):
                if os.path.samestat(os.stat(self._path), self._file):
                    os.unlink(self._path)
            self._file = None

    async def _start(self, loop: asyncio.AbstractEventLoop, peer: Callable[[], Peer]) -> None:
        tcp = self._socket.family in (socket.AF_INET, socket.AF_INET6)
        make = loop.create_server if tcp else loop.create_unix_server
        # Known before it serves, so that it can be closed at any time.
        self._server = await make(peer, sock=self._socket, backlog=_BACKLOG, start_serving=False)
        await self._server.start_serving()


class Dialler:
    """One connection to a kernel's endpoint, made again whenever it is lost; what is sent meanwhile waits.

    Made by the kernel side. `peer` makes what takes the connection, and is given its owner. `first` is sent on each
    connection before anything else; `on_known` is called when the kernel has it. `on_full` is told when much waits or is
    not read, and when that is over.
    """

    def __init__(
        self,
        endpoint: str,
        peer: Callable[[Owner], Peer],
        on_message: Callable[[list[Part]], None],
        *,
        limit: int,
        first: Sequence[Part] = (),
        on_known: Callable[[], None] = lambda: None,
        on_full: Callable[[bool], None] = lambda full: None,
        on_oversize: Callable[[int, int], None] = lambda size, parts: None,
    ) -> None:
        self._endpoint, self._make = endpoint, peer
        self._on_message, self._first, self._on_known = on_message, first, on_known
        self._limit, self._on_full, self._on_oversize = limit, on_full, on_oversize
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None
        self._waiting: deque[Sequence[Part]] = deque()
        self._waits = 0
        self._causes: set[str] = set()
        self._pause_s = _FIRST_S
        self._since: float | None = None
        self._again: asyncio.TimerHandle | None = None
        self._closed = False
        self._dialling = self._loop.create_task(self._dial())

    def send(self, parts: Sequence[Part]) -> None:
        """Send a message, now or once there is a connection."""
        if self._peer is not None and self._peer.is_ready and not self._waiting:
            self._peer.send(parts)
        elif not self._closed:
            self._waiting.append(parts)
            self._waits += sum(map(len, parts)) + MESSAGE
            if self._waits >= self._limit:
                self._full("waits", True)

    def pending(self) -> bool:
        """Whether the kernel has said something that was not read yet."""
        return self._peer is not None and self._peer.pending()

    def close(self) -> None:
        """End it; what was sent leaves if the kernel takes it soon. May be called twice."""
        self._closed = True
        self._dialling.cancel()
        if self._again is not None:
            self._again.cancel()
        if self._peer is not None:
            self._peer.close()
        self._waiting.clear()
        self._waits = 0
        for cause in list(self._causes):
            self._full(cause, False)

    # -- `Owner`

    def ready(self, peer: Peer) -> None:
        """The kernel knows this socket."""
        if self._closed:
            peer.close()
            return
        self._since = self._loop.time()
        if self._first:
            peer.send(self._first)
        peer.ask()
        while self._waiting:
            peer.send(self._waiting.popleft())
        self._waits = 0
        self._full("waits", False)

    def message(self, peer: Peer, parts: list[Part]) -> None:
        """The kernel says something."""
        if not self._closed:
            self._on_message(parts)

    def oversize(self, peer: Peer, size: int, parts: int) -> None:
        """It says more than is carried."""
        if not self._closed:
            self._on_oversize(size, parts)

    def full(self, peer: Peer, full: bool) -> None:
        """It does not read, or does again."""
        if not self._closed:
            self._full("unread", full)

    def answered(self, peer: Peer) -> None:
        """The kernel has what was sent first."""
        if not self._closed and peer is self._peer:
            self._on_known()

    def lost(self, peer: Peer) -> None:
        """The connection is over: the kernel's end, or its trouble."""
        self._peer = None
        if self._since is not None:
            settled = self._loop.time() - self._since > _SETTLED_S
            self._pause_s = _FIRST_S if settled else min(self._pause_s, _OFTEN_S)
        self._since = None
        self._full("unread", False)
        self._later()

    # --

    async def _dial(self) -> None:
        kind, _, place = self._endpoint.partition("://")
        try:
            if kind == "ipc":
                await self._loop.create_unix_connection(self._made, _path(place))
            else:
                host, _, port = place.rpartition(":")
                await self._loop.create_connection(self._made, host.strip("[]"), int(port))
        except OSError:
            self._later()

    def _made(self) -> Peer:
        self._peer = self._make(self)
        return self._peer

    def _later(self) -> None:
        if not self._closed:
            self._again = self._loop.call_later(self._pause_s, self._redial)
            longer = 2 if self._pause_s < _OFTEN_S else _SLOWING
            self._pause_s = min(longer * self._pause_s, _LONGEST_S)

    def _redial(self) -> None:
        self._dialling = self._loop.create_task(self._dial())

    def _full(self, cause: str, full: bool) -> None:
        before = bool(self._causes)
        (self._causes.add if full else self._causes.discard)(cause)
        if bool(self._causes) != before:
            self._on_full(not before)


def _bound(endpoint: str) -> tuple[socket.socket, str]:
    """A socket that listens at an endpoint, and its path if it has one in the file system."""
    kind, _, place = endpoint.partition("://")
    path = _path(place) if kind == "ipc" else ""
    listening: socket.socket | None = None
    try:
        if kind == "ipc":
            listening = socket.socket(socket.AF_UNIX)
            if not path.startswith("\0"):
                # As ZeroMQ does: who had the name before keeps its connections, and gets no more.
                with suppress(FileNotFoundError):
                    os.unlink(path)
            listening.bind(path)
        else:
            host, _, port = place.rpartition(":")
            found = socket.getaddrinfo(
                None if host == "*" else host.strip("[]"),
                int(port),
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
            # Where a name stands for both, ZeroMQ's clients ask IPv4.
            family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
            listening = socket.socket(family)
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except (OSError, ValueError, OverflowError) as error:
        if listening is not None:
            listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortInUse(port=place.rpartition("-" if kind == "ipc" else ":")[2]) from error
        raise TransportError(detail=f"{endpoint}: {error}") from error
    return listening, "" if path.startswith("\0") else path


def _path(place: str) -> str:
    """A Unix socket's name; ZeroMQ writes those that are in no file system with an `@` in front."""
    return "\0" + place[1:] if place.startswith("@") else place
