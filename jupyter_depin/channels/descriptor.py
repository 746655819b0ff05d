"""What the system knows of a connection, whatever loop it runs on. Asked by `Peer` about its transport."""

from __future__ import annotations

import asyncio
import socket
import sys

_BYTES_ACKED, _TCP_INFO = 120, 128
"""Where Linux' `struct tcp_info` has the bytes that were acknowledged (linux/tcp.h, since 4.1), and where that ends."""


def acknowledged(transport: asyncio.Transport) -> int:
    """What a TCP connection's other end has acknowledged, in bytes; 0 where that is not known."""
    if not sys.platform.startswith("linux"):
        return 0
    with _copy(transport) as copy:
        if copy.family == socket.AF_UNIX:
            # Its buffer is filled again as soon as something leaves.
            return 0
        info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
    return int.from_bytes(info[_BYTES_ACKED:_TCP_INFO], sys.byteorder) if len(info) >= _TCP_INFO else 0


def unread(transport: asyncio.Transport) -> bool:
    """Whether the other end has said something that was not read yet, or has closed."""
    # Only a copy can be asked without disturbing the loop.
    with _copy(transport) as copy:
        copy.setblocking(False)
        try:
            copy.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def _copy(transport: asyncio.Transport) -> socket.socket:
    """Another descriptor of its socket, on any system; to be closed."""
    told = transport.get_extra_info("socket")
    return socket.fromfd(told.fileno(), told.family, told.type)
