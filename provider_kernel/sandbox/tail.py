"""The last words of a kernel: what it wrote to standard error, bounded.

It is read from a pipe. A file would let a stranger fill the owner's disk, and an undrained pipe would stop the kernel.
A kernel that floods is slowed down, not the agent: after each piece the reader rests for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

PIECE = 64 << 10
REST_S = 0.02


class Tail:
    """The last `limit` bytes that arrived on a pipe. Called by the sandboxes; `close` it on the same loop."""

    def __init__(self, limit: int = 16 << 10) -> None:
        self._limit = limit
        self._kept = b""
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rest: asyncio.TimerHandle | None = None

    def follow(self, fd: int) -> None:
        """Own `fd`, a pipe's reading end, and read it from now on. Call it on a running loop."""
        loop = asyncio.get_running_loop()
        try:
            os.set_blocking(fd, False)
            loop.add_reader(fd, self._on_readable)
        except (NotImplementedError, OSError, AttributeError):
            # Windows: neither pipes that do not block nor loops that watch them.
            threading.Thread(
                target=self._read_in_thread, args=(fd,), name="kernel-stderr", daemon=True
            ).start()
        else:
            self._fd, self._loop = fd, loop

    def text(self) -> str:
        """What is kept, with what the pipe still holds."""
        for _ in range(4):  # a pipe holds no more than this; a flood must not keep us here
            if self._fd is None or not self._read(self._fd):
                break
        return self._kept.decode(errors="replace")

    def last_line(self) -> str:
        """The last line that says something: where Python and bubblewrap put the reason. Empty if there is none."""
        lines = [line.strip() for line in self.text().splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def close(self) -> None:
        """Stop reading; what is kept stays. May be called twice."""
        if self._rest is not None:
            self._rest.cancel()
        if self._fd is None or self._loop is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = None

    def _on_readable(self) -> None:
        if self._fd is None or self._loop is None:
            return
        self._loop.remove_reader(self._fd)
        if self._read(self._fd):
            self._rest = self._loop.call_later(REST_S, self._resume)

    def _resume(self) -> None:
        if self._fd is not None and self._loop is not None:
            self._loop.add_reader(self._fd, self._on_readable)

    def _read(self, fd: int) -> bool:
        """Read one piece; False when there is nothing now or nothing ever again."""
        try:
            piece = os.read(fd, PIECE)
        except OSError:
            return False
        self._keep(piece)
        return bool(piece)

    def _keep(self, piece: bytes) -> None:
        self._kept = (self._kept + piece)[-self._limit :]

    def _read_in_thread(self, fd: int) -> None:
        with contextlib.suppress(OSError), os.fdopen(fd, "rb", buffering=0) as pipe:
            while piece := pipe.read(PIECE):
                self._keep(piece)
