"""A kernel that runs under bubblewrap, from its first process to the removal of its last trace.

Three processes of this machine make it up: bubblewrap, which we started and wait for; process 1 of the sandbox, whose
death takes everything in it along; and the kernel, to which signals go.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import struct
from pathlib import Path

import anyio
import psutil

from jupyter_depin.errors import KernelStartFailed, MachineTrouble
from provider_kernel.sandbox import KernelSockets, remove
from provider_kernel.sandbox.cgroup import Cgroup
from provider_kernel.sandbox.child import Child, ended, open_pidfd, ordinary_status
from provider_kernel.sandbox.signals import signal_group, stands_still
from provider_kernel.sandbox.tail import Tail

log = logging.getLogger(__name__)

CREDENTIALS = struct.Struct("iii")
"""`struct ucred`: pid, uid, gid."""

ROUNDS = 20
"""So often is a kernel's process tree looked at while it is stopped."""


class ConfinedKernel:
    """A kernel that `BubblewrapSandbox` started. `group` is set by it when there are control groups."""

    def __init__(self, child: Child, sockets: KernelSockets, tail: Tail, folder: Path, status: int) -> None:
        self._bubblewrap = child
        self._sockets = sockets
        self._tail = tail
        self._folder = folder
        # Open to the end: bubblewrap writes to it again, and a broken pipe would be its exit status.
        self._status: int | None = status
        self._first: int | None = None
        self._first_pidfd: int | None = None
        self._pid: int | None = None
        self.group: Cgroup | None = None

    @property
    def sockets(self) -> KernelSockets:
        """The five channels."""
        return self._sockets

    @property
    def pid(self) -> int:
        """The kernel process as this machine sees it, which leads its process group."""
        return self._bubblewrap.pid if self._pid is None else self._pid

    async def first_process(self) -> int:
        """Wait for the sandbox's process 1 and return its pid. Raises `KernelStartFailed`. Called once, by `start`."""
        told = b""
        while b"\n" not in told:
            assert self._status is not None
            await anyio.wait_readable(self._status)
            piece = os.read(self._status, 4096)
            if not piece:
                raise await self._failure()
            told += piece
        self._first = int(json.loads(told.partition(b"\n")[0])["child-pid"])
        self._first_pidfd = open_pidfd(self._first)
        return self._first

    async def ready(self, messages: socket.socket) -> None:
        """Wait until the kernel says that it listens. Raises `KernelStartFailed`. Called once, by `start`."""
        await anyio.wait_readable(messages)
        said, ancillary, _, _ = messages.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
        if not said:
            raise await self._failure()
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._pid = CREDENTIALS.unpack(content)[0]

    async def wait(self) -> int:
        """Wait for its end and return the exit status (negative: a signal)."""
        return ordinary_status(await self._bubblewrap.wait())

    def interrupt(self, signum: int) -> None:
        """Send a signal to the kernel and the programs that its cells started."""
        if self._pid is not None and self._bubblewrap.status() is None:
            signal_group(self._pid, signum)

    def pause(self) -> None:
        """Stop every process in the sandbox: by the freezer, or one by one until none is left running.

        A kernel whose processes wake each other, or fork faster than they are stopped, is killed: it would run unpaid.
        """
        if self.group is not None and self.group.can_freeze:
            self.group.freeze(True)
            return
        running = self._inside()
        for _ in range(ROUNDS):
            for process in running:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGSTOP)
            running = [process for process in self._inside() if not stands_still(process.pid)]
            if not running:
                return
        log.warning("a kernel that would not be paused was killed")
        self._kill()

    def unpause(self) -> None:
        """Let them run on."""
        if self.group is not None and self.group.can_freeze:
            self.group.freeze(False)
            return
        for process in self._inside():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)

    def stderr_tail(self) -> str:
        """What bubblewrap and the kernel last wrote to standard output and error."""
        return self._tail.text()

    async def destroy(self) -> None:
        """Kill it with everything in its sandbox; remove its folder and its control group."""
        with anyio.CancelScope(shield=True):
            self._kill()
            if self.group is not None and self.group.can_freeze:
                self.group.freeze(False)
            await self._bubblewrap.wait()
            if self._first_pidfd is not None:
                await ended(self._first_pidfd)
            if self.group is not None:
                await self.group.remove()
        self._tail.close()
        self._bubblewrap.close()
        for descriptor in (self._status, self._first_pidfd):
            if descriptor is not None:
                os.close(descriptor)
        self._status = self._first_pidfd = None
        with anyio.CancelScope(shield=True):
            await remove(self._folder)

    def _kill(self) -> None:
        if self._first_pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._first_pidfd, signal.SIGKILL)
        self._bubblewrap.kill()

    def _inside(self) -> list[psutil.Process]:
        """The sandbox's processes but for its first, which only reaps; orphans are that one's children too."""
        if self._first is not None:
            with contextlib.suppress(psutil.Error):
                return list(psutil.Process(self._first).children(recursive=True))
        return []

    async def _failure(self) -> KernelStartFailed:
        status = await self.wait()
        said = self._tail.last_line()
        # Until the kernel has the pipe, bubblewrap writes there, and it speaks of this machine.
        kind = MachineTrouble if said.startswith("bwrap:") else KernelStartFailed
        return kind(reason=said or f"it ended with status {status}")
