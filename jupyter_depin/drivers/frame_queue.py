"""What waits to be written on one stream, joined into few writes: each await of the transport costs a wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from jupyter_depin.protocol.frames import Part

_JOIN = 1 << 16
"""Queued small frames are joined up to so many bytes per write."""


class FrameQueue:
    """Pieces to write on one stream, with a wake-up for its writer."""

    def __init__(self) -> None:
        self._pieces: deque[Part] = deque()
        self._wake = asyncio.Event()
        self.size = 0

    def put(self, pieces: Sequence[Part]) -> None:
        """Add pieces behind the others."""
        self._pieces.extend(pieces)
        self.size += sum(map(len, pieces))
        self._wake.set()

    def clear(self) -> None:
        """Forget what waits: its connection is gone."""
        self._pieces.clear()
        self.size = 0

    async def next(self) -> Part:
        """Wait for something to write. Called by the stream's writer task."""
        while not self._pieces:
            self._wake.clear()
            await self._wake.wait()
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
