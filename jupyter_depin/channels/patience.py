"""Lets go of a client that reads nothing, so that it does not stop the others of the same kernel.

One client that is slow slows the kernel, and loses nothing. But where one takes nothing at all for a while, and another
of the same socket would take more, the first is cut off: its ZeroMQ drops what was kept for it and connects again.

ZeroMQ names neither its connections nor what each has taken. So they are looked up among this process's open files, by
the address that they were accepted at, and asked whether they would take a byte, and how many they have taken: one that
is never writable, and of which nothing leaves, has a full buffer at its other end. Slowness is no such thing, however
great. That costs nothing until somebody stands still. Where a system does not tell, nobody is cut off.

Rejected: `XPUB_NODROP` (one subscriber stops all) and its opposite (which drops for the slow as well as for the dead);
a monitor per socket (a socket and a descriptor more for each, all the time, to tell what is rarely asked).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from jupyter_depin.channels.outbox import Outbox

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_LOOKS = 30
"""So many looks in a row at which nothing has moved, and a connection that took nothing at any of them is cut off."""
_OPEN_FILES = "/dev/fd"
_BYTES_ACKED, _TCP_INFO = 120, 128
"""Where Linux' `struct tcp_info` has the bytes that were acknowledged (linux/tcp.h, since 4.1), and where that ends."""


class Patience:
    """Watches the connections of one bound socket while its outbox is over its bound. Made by the client side."""

    def __init__(self, url: str, outbox: Outbox) -> None:
        self._url, self._outbox = url, outbox
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looks = self._passed = 0
        self._took: set[int] = set()
        self._left: dict[int, int] = {}

    def watch(self, on: bool) -> None:
        """Begin or stop to look. Called when the outbox goes over its bound, and when it is below again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if on:
            self._begin()
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _begin(self) -> None:
        self._passed, self._looks = self._outbox.passed, 0
        self._took.clear()
        self._left.clear()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_S, self._look)
        if self._outbox.passed != self._passed:
            self._begin()
            return
        self._looks += 1
        idle = []
        for inode, connection in _accepted(self._url):
            if inode in self._took or _takes(connection) or self._moves(inode, connection):
                self._took.add(inode)
                connection.close()
            else:
                idle.append(connection)
        if self._looks >= _LOOKS:
            if self._took:
                for connection in idle:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                        log.warning("a client of %s that did not read was cut off", self._url)
            self._begin()
        for connection in idle:
            connection.close()

    def _moves(self, inode: int, connection: socket.socket) -> bool:
        """Whether anything has left since the last look, or may have."""
        left = _left(connection)
        return left is None or self._left.setdefault(inode, left) != left


def _left(connection: socket.socket) -> int | None:
    """A number that changes when the other end takes something; None where this system has none."""
    if not sys.platform.startswith("linux"):
        return None
    if connection.family == socket.AF_UNIX:
        # Its buffer is filled again as soon as something leaves; only what the outbox counts tells of it.
        return 0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
    except OSError:
        return None
    if len(info) < _TCP_INFO:
        return None
    return int.from_bytes(info[_BYTES_ACKED:_TCP_INFO], sys.byteorder)


def _takes(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def _accepted(url: str) -> Iterator[tuple[int, socket.socket]]:
    """This process's ends of connections that were made to `url`, with their inodes. The caller closes them."""
    transport, _, address = url.partition("://")
    place = address if transport == "ipc" else int(address.rpartition(":")[2])
    # Where a system does not show its open files, nobody is cut off.
    for name in os.listdir(_OPEN_FILES) if os.path.isdir(_OPEN_FILES) else ():
        with suppress(OSError):
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            copy = os.dup(int(name))
            try:
                connection = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                continue
            try:
                bound = connection.getsockname()
                # Only of a connection: the socket that listens has nobody at its other end.
                connection.getpeername()
            except OSError:
                connection.close()
                continue
            if (bound[1] if isinstance(bound, tuple) and len(bound) > 1 else bound) == place:
                yield status.st_ino, connection
            else:
                connection.close()
