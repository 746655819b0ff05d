"""The wait for a process that the agent started: many may wait, none of them blocks the loop.

A pidfd becomes readable when its process ends, so a waiter needs neither a thread nor a task that somebody has to own,
and it works from whichever loop awaits it. Rejected: asyncio's subprocesses (they belong to the loop that started them
and need a child watcher), a poll in a loop. Where there are no pidfds, a thread waits, and does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import anyio
import anyio.to_thread


class Child:
    """A started process. Called by the sandboxes, which close it in `destroy`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        # Opened before anything can reap the process, so that it cannot mean another one.
        self._pidfd = open_pidfd(process.pid)

    def status(self) -> int | None:
        """Its exit status (negative: the signal that ended it), or None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for its end and return the status. Safe to cancel, and to call from several tasks at once."""
        while (status := self.status()) is None:
            if self._pidfd is None:
                await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            else:
                await ended(self._pidfd)
        return status

    def kill(self) -> None:
        """SIGKILL to this process alone. No effect once it has ended."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Forget the process, which must have ended and been waited for."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def open_pidfd(pid: int) -> int | None:
    """A descriptor that stands for process `pid` for good, or None where the system has none (or the process ended)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


async def ended(pidfd: int) -> None:
    """Return when the process behind `pidfd` has ended."""
    # Each waiter has a descriptor of its own, for a loop knows one reader per descriptor.
    own = os.dup(pidfd)
    try:
        await anyio.wait_readable(own)
    finally:
        os.close(own)


def ordinary_status(status: int) -> int:
    """Turn a shell-like status (128 + signal) into Popen's (minus the signal). bubblewrap reports the former."""
    return -(status - 128) if 128 < status <= 128 + signal.NSIG else status
