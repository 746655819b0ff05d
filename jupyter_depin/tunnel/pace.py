"""How fast output that was kept may be given out: below what a reader takes, or it would be thrown away at the goal.

jupyter_server drops a kernel's output beyond 1000 messages or 1 MB a second, taken over 3 s (`_limit_rate` in its
`services/kernels/connection/channels.py`). So the pace is kept in such a window, with a margin for what is said live,
and in a short one too, so that a cell fills steadily and not in jerks.

Rejected: a bucket of tokens (one big message goes into debt, and the window of the other side is counted exactly).
"""

from __future__ import annotations

from collections import deque

from jupyter_depin.protocol.money import NS_PER_SECOND


class Span:
    """At most so many messages and bytes in any stretch of `ns`; a message beyond the bytes goes alone."""

    def __init__(self, messages: int, size: int, ns: int) -> None:
        self._messages, self._size, self._ns = messages, size, ns
        self._gone: deque[tuple[int, int]] = deque()
        self._sum = 0

    def wait(self, size: int, now: int) -> int:
        """How many ns a message of that size has to wait; 0 for none."""
        while self._gone and now - self._gone[0][0] >= self._ns:
            self._sum -= self._gone.popleft()[1]
        messages, total, wait = len(self._gone), self._sum, 0
        for at, gone in self._gone:
            if messages < self._messages and total + size <= self._size:
                break
            messages, total, wait = messages - 1, total - gone, at + self._ns - now
        return wait

    def went(self, size: int, now: int) -> None:
        """One was given out."""
        self._gone.append((now, size))
        self._sum += size


class Pace:
    """The pace of one reader. `share` of what jupyter_server takes is used. Times are ns of any steady clock."""

    WINDOW_NS = 3 * NS_PER_SECOND
    MESSAGES, BYTES = 3 * 1000, 3 * 1_000_000
    """What jupyter_server takes in the window by default."""

    def __init__(self, share: float = 0.8, steps: int = 60) -> None:
        messages, size = int(self.MESSAGES * share), int(self.BYTES * share)
        self._spans = (
            Span(messages, size, self.WINDOW_NS),
            Span(messages // steps, size // steps, self.WINDOW_NS // steps),
        )

    def wait(self, size: int, now: int) -> int:
        """How many ns a message with so many bytes that count has to wait; 0 for none."""
        return max(span.wait(size, now) for span in self._spans)

    def went(self, size: int, now: int) -> None:
        """A message was given out."""
        for span in self._spans:
            span.went(size, now)
