"""A link over UDP whose packets are lost by a function call, between this process and one in a network of its own.

Two iroh nodes on one machine find each other past a proxy when the way through it is slow. So the far program runs in a
network namespace with nothing but a loopback device: it makes the proxy's far sockets there and passes them here.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

ROOT = Path(__file__).parents[1]
_FDS = 8


def apart(*command: str) -> list[str] | None:
    """A command that runs in a network of its own; None where this machine cannot do that."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    alone = [program, "--dev-bind", "/", "/", "--unshare-net", "--die-with-parent", "--"]
    tried = subprocess.run([*alone, "true"], capture_output=True, check=False)
    return [*alone, *command] if tried.returncode == 0 else None


def hand_over(door: socket.socket, sockets: list[socket.socket], word: dict[str, Any]) -> None:
    """Pass sockets and a word to the program that started this one. Called by the far program."""
    fds = array.array("i", [each.fileno() for each in sockets])
    door.sendmsg([json.dumps(word).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def udp_to(port: int) -> socket.socket:
    """A far socket, for what the proxy passes on to a port there. Called by the far program."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect(("127.0.0.1", port))
    return made


@contextlib.asynccontextmanager
async def far(module: str, *arguments: str) -> AsyncIterator[tuple[dict[str, Any], list[socket.socket]]]:
    """Run a module of the tests in a network of its own; gives its word and the sockets that it passes."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = apart(sys.executable, "-m", module, str(there.fileno()), *arguments)
    assert command is not None
    with here:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, pass_fds=[there.fileno()])
        there.close()
        try:
            word, fds, _, _ = await asyncio.to_thread(socket.recv_fds, here, 1 << 16, _FDS)
            assert word, "the far program ended early"
            yield json.loads(word), [socket.socket(fileno=fd) for fd in fds]
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(process.wait, 60)


class UdpProxy(asyncio.DatagramProtocol):
    """Passes packets between a port here and a far socket. Made by `udp_proxy`. `lost`: how many it did not pass."""

    def __init__(self) -> None:
        self.lost = 0
        self._down = False
        self._peer: Any = None
        self._near: Any = None
        self._far: Any = None
        self._news = asyncio.Event()

    @property
    def address(self) -> str:
        ip, port = self._near.get_extra_info("sockname")
        return f"{ip}:{port}"

    def cut(self) -> None:
        """Lose every packet from now on, until `mend`."""
        self._down = True

    def mend(self) -> None:
        self._down = False

    async def loses(self, count: int) -> None:
        """Wait until so many more packets are lost."""
        until = self.lost + count
        while self.lost < until:
            self._news.clear()
            await self._news.wait()

    async def move(self, far_socket: socket.socket) -> None:
        """Go on from another far socket: the other side sees a peer that changed its address."""
        before, self._far = self._far, None
        loop = asyncio.get_running_loop()
        self._far, _ = await loop.create_datagram_endpoint(lambda: _Far(self), sock=far_socket)
        if before is not None:
            before.close()

    def close(self) -> None:
        for transport in (self._near, self._far):
            if transport is not None:
                transport.close()

    def connection_made(self, transport: Any) -> None:
        self._near = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._peer = addr
        if self._passes() and self._far is not None:
            self._far.sendto(data)

    def back(self, data: bytes) -> None:
        """A packet from the far side. Called by the far socket's protocol."""
        if self._passes() and self._peer is not None:
            self._near.sendto(data, self._peer)

    def _passes(self) -> bool:
        if self._down:
            self.lost += 1
            self._news.set()
        return not self._down


class _Far(asyncio.DatagramProtocol):
    def __init__(self, proxy: UdpProxy) -> None:
        self._proxy = proxy

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._proxy.back(data)

    def error_received(self, exc: Exception) -> None:
        """The far program's port is closed."""


@contextlib.asynccontextmanager
async def udp_proxy(far_socket: socket.socket) -> AsyncIterator[UdpProxy]:
    """A proxy that listens here and passes on through a far socket."""
    loop = asyncio.get_running_loop()
    _, proxy = await loop.create_datagram_endpoint(UdpProxy, local_addr=("127.0.0.1", 0))
    try:
        await proxy.move(far_socket)
        yield proxy
    finally:
        proxy.close()
