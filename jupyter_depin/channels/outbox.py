"""What ZeroMQ holds for those who do not read, counted in bytes: it says nothing of its queues, and bounds none of them.

Now and then (after a batch of messages) the last frame of a message is handed to ZeroMQ without a copy, as a view that
is watched: when ZeroMQ lets go of that view, everything before it has left for its reader as well. So a small message
costs an addition, and nothing runs in threads until a batch is full. What came after the newest mark is not counted.

The bytes on top of a message's own are about what its frames take in ZeroMQ; so their number is bounded too.

Rejected: ZeroMQ's high-water marks (in messages, and what is above them is dropped or refused without a sign of when
there is room again); its `track=True` (an event object to be polled per message); a queue of our own in front of the
socket (the same bytes twice, and ZeroMQ's own would still be unknown).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from jupyter_depin.protocol.frames import Part

MESSAGE = 640
"""Bytes that each message counts on top of its own."""
_BATCH = 1 << 18
_MOST_TAILS = 256
"""Readers whose uncounted rests are remembered: each is less than a batch."""


class _Mark(weakref.ref[memoryview]):
    """A view that ZeroMQ holds, and what has left once it does not."""

    __slots__ = ("size",)
    size: int


class Outbox:
    """Counts for the sockets of one lane. `on_over(True)` is called when they hold `limit` bytes, then `on_over(False)`
    when half of that has left. Belongs to the running loop; `passed` is how many bytes have left so far.
    """

    def __init__(self, limit: int, on_over: Callable[[bool], None]) -> None:
        self._limit, self._on_over = limit, on_over
        self._batch = min(limit // 16, _BATCH)
        self._loop = asyncio.get_running_loop()
        self._tails: dict[bytes, int] = {}
        self._marks: dict[int, _Mark] = {}
        self._gone: deque[_Mark] = deque()
        self._woken = False
        self.held = self.passed = 0
        self.over = False

    def count(self, reader: bytes, parts: Sequence[Part]) -> memoryview | None:
        """Count a message that is about to be sent to `reader`; a view is to be sent, uncopied, for its last part.

        Called for every message. Messages to one reader leave in order; `reader` may stand for several that read the same.
        """
        size = self._tails.get(reader, 0) + sum(map(len, parts)) + MESSAGE
        if size < self._batch:
            self._tails[reader] = size
            if len(self._tails) > _MOST_TAILS:
                del self._tails[next(iter(self._tails))]
            return None
        self._tails.pop(reader, None)
        view = memoryview(parts[-1])
        mark = _Mark(view, self._let_go)
        mark.size = size
        self._marks[id(mark)] = mark
        self.held += size
        self.look()
        return view

    def look(self) -> None:
        """See what has left. Called from the loop."""
        self._woken = False
        self._collect()
        if not self.over and self.held >= self._limit:
            # From now on each mark that goes wakes the loop; one that went just before is seen here.
            self.over = True
            self._collect()
            if self.held > self._limit // 2:
                self._on_over(True)
            else:
                self.over = False
        elif self.over and self.held <= self._limit // 2:
            self.over = False
            self._on_over(False)

    def close(self) -> None:
        """Its sockets are closed: nothing is held any more. May be called twice."""
        self._marks.clear()
        self._gone.clear()
        self.held = 0
        if self.over:
            self.over = False
            self._on_over(False)

    def _collect(self) -> None:
        while self._gone:
            mark = self._gone.popleft()
            if self._marks.pop(id(mark), None) is not None:
                self.held -= mark.size
                self.passed += mark.size

    def _let_go(self, mark: weakref.ref[memoryview]) -> None:
        """ZeroMQ holds a view no more. Called from a thread of pyzmq's."""
        assert isinstance(mark, _Mark)
        self._gone.append(mark)
        if self.over and not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self.look)
            except RuntimeError:
                # The loop is closed: nobody counts any more.
                return
