"""What waits to be written on one stream. It leaves in few writes, since each one wakes a thread of the transport.

Pieces that are put in one turn of the loop leave together at its end, and from there, without a task that would have to
be woken for it; only what the stream does not take at once is waited for, by the task in `run`.

A thrifty queue compresses what leaves it, at the moment at which it leaves: whatever waits for a narrow link by then is
one batch. Compressing at the entrance was rejected: it would flush for each message, and what a cut makes worthless
would have been compressed for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice, takewhile

from jupyter_depin.errors import DepinError
from jupyter_depin.protocol.compressed import Compressor
from jupyter_depin.protocol.frames import Part
from jupyter_depin.transport import Stream

_JOIN = 1 << 16
"""Queued small frames are joined up to so many bytes per write."""
_AT_ONCE = 16
"""Writes in a row that may succeed at once before the loop turns to others."""


class FrameQueue:
    """Pieces for one stream, in order. `size`: bytes that wait; `written`: bytes that were handed over so far.

    `spared`: bytes that compression kept from being written. `compressed`: the bytes of the
    longest message that it compresses (0: none); may be set at any time, up to `MAX_COMPRESSED`.
    `small`: only small messages come, so that compression shall use little memory.
    """

    def __init__(self, *, small: bool = False) -> None:
        self._small = small
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[Part] = deque()
        self._stream: Stream | None = None
        self._due = False
        self._stuck: asyncio.Event = asyncio.Event()
        self._failure: DepinError | None = None
        self._most, self._compresses = 0, False
        self._stretch: Compressor | None = None
        self.size = self.written = self.spared = 0

    @property
    def compressed(self) -> int:
        """The longest message that is compressed from here on."""
        return self._most

    @compressed.setter
    def compressed(self, most: int) -> None:
        self._most = most
        self._compresses = bool(most) or self._stretch is not None

    def put(self, pieces: Sequence[Part]) -> None:
        """Add the pieces of one message behind the others; the first of them is `bytes`."""
        if len(pieces) == 1:
            self._pieces.append(pieces[0])
        else:
            # Only a message begins with `bytes` from here on: that is how its beginning is found again.
            self._pieces.extend((pieces[0], *[memoryview(piece) for piece in pieces[1:]]))
        self.size += sum(map(len, pieces))
        self._soon()

    def clear(self) -> None:
        """Forget what waits: its connection is gone."""
        self._pieces.clear()
        self.size = 0
        self._stretch, self._compresses = None, bool(self._most)

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
        if self._compresses:
            return self._next_compressed()
        return self._next_plain()

    def _next_compressed(self) -> Part:
        stretch = self._stretch
        if type(self._pieces[0]) is bytes:
            compress = self._fits()
            if stretch is not None and not compress:
                self._stretch, self._compresses = None, bool(self._most)
                return stretch.end()
            if stretch is None and compress:
                stretch = self._stretch = Compressor(small=self._small)
        if stretch is None:
            return self._next_plain()
        batch: list[Part] = []
        size = 0
        while self._pieces and size < _JOIN:
            piece = self._pieces[0]
            if type(piece) is bytes and batch and not self._fits():
                break
            self._pieces.popleft()
            if len(piece) > _JOIN and type(piece) is memoryview:
                self._pieces.appendleft(piece[_JOIN:])
                piece = piece[:_JOIN]
            batch.append(piece)
            size += len(piece)
        self.size -= size
        packed = stretch.pack(batch)
        self.spared += size - len(packed)
        return packed

    def _fits(self) -> bool:
        """Whether the message that is next may be compressed."""
        rest = takewhile(lambda piece: type(piece) is not bytes, islice(self._pieces, 1, None))
        return len(self._pieces[0]) + sum(map(len, rest)) <= self._most

    def _next_plain(self) -> Part:
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
