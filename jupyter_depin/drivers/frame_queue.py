"""What waits to be written on one stream. It leaves in few writes, since each one wakes a thread of the transport.

Pieces that are put in one turn of the loop leave together at its end, and from there, without a task that would have to
be woken for it; only what the stream does not take at once is waited for, by the task in `run`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from jupyter_depin.errors import DepinError
from jupyter_depin.protocol.frames import Part
from jupyter_depin.transport import Stream

_JOIN = 1 << 16
"""Queued small frames are joined up to so many bytes per write."""
_AT_ONCE = 16
"""Writes in a row that may succeed at once before the loop turns to others."""


class FrameQueue:
    """Pieces for one stream, in order. `size`: bytes that wait; `written`: bytes that were handed over so far."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[Part] = deque()
        self._stream: Stream | None = None
        self._due = False
        self._stuck: asyncio.Event = asyncio.Event()
        self._failure: DepinError | None = None
        self.size = self.written = 0

    def put(self, pieces: Sequence[Part]) -> None:
        """Add pieces behind the others."""
        self._pieces.extend(pieces)
        self.size += sum(map(len, pieces))
        self._soon()

    def clear(self) -> None:
        """Forget what waits: its connection is gone."""
        self._pieces.clear()
        self.size = 0

    async def run(self, stream: Stream) -> None:
        """Write to a stream until it fails or the caller is cancelled. Raises what the stream raises."""
        self._stream, self._failure = stream, None
        self._stuck.clear()
        self._soon()
        try:
            while True:
                await self._stuck.wait()
                if self._failure is not None:
                    raise self._failure
                await stream.settled()
                self._stuck.clear()
                self._soon()
        finally:
            self._stream = None

    def _soon(self) -> None:
        if not self._due and self._stream is not None and self._pieces and not self._stuck.is_set():
            self._due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        try:
            for _ in range(_AT_ONCE):
                if self._stream is None or not self._pieces:
                    return
                piece = self._next()
                self.written += len(piece)
                if not self._stream.begin(piece if isinstance(piece, bytes) else memoryview(piece)):
                    self._stuck.set()
                    return
        except DepinError as failure:
            self._failure = failure
            self._stuck.set()
            return
        self._soon()

    def _next(self) -> Part:
        first = self._pieces.popleft()
        self.size -= len(first)
        if not self._pieces or len(first) >= _JOIN:
            return first
        batch, size = [first], len(first)
        while self._pieces and size + len(self._pieces[0]) <= _JOIN:
            batch.append(self._pieces.popleft())
            size += len(batch[-1])
        self.size -= size - len(first)
        return b"".join(batch) if len(batch) > 1 else first
