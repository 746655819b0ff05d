"""Joins what a kernel prints while its renter's slow link is behind, so that the link carries what is still worth it.

Late is a link whose oldest message under way is not taken after three quarters of a second. On a link that keeps up
everything goes at once, so no delay is ever added to one; and on a late one nothing waits here for longer than it would
wait there, nor for more than two seconds. Whatever comes after that goes behind what is on its way already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from jupyter_depin.coalescing.coalescer import Coalescer
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.protocol.money import NS_PER_SECOND

LATE_NS = NS_PER_SECOND * 3 // 4
LONGEST_NS = 2 * NS_PER_SECOND
MOST_BYTES = 1 << 18
"""So much is joined at most."""
_LOOK_S = 0.1
_TELL_NS = 5 * NS_PER_SECOND
_MARK_NS = NS_PER_SECOND // 20
"""The time of sending is noted no more often than this."""


class Joining:
    """Stands between one kernel's channels and `say`, its way to the renter. Made by the tenancy for each kernel.

    `key` and `scheme` sign the kernel's messages. `tell` hears now and then how many bytes were spared since it last did.
    Raises `ValueError` for a scheme that nobody knows.
    """

    def __init__(
        self,
        driver: TunnelDriver,
        say: Callable[[Lane, Sequence[Part]], None],
        key: bytes,
        scheme: str,
        tell: Callable[[int], None],
    ) -> None:
        self._driver, self._say, self._tell = driver, say, tell
        self._spared = 0
        self._told_at = steady_ns()
        self._coalescer = Coalescer(key, scheme)
        self._marks: deque[tuple[int, int]] = deque()
        self._held_since = 0
        self._looks = False

    def said(self, lane: Lane, parts: Sequence[Part]) -> None:
        """A message of the kernel. Called by its channels."""
        if lane is Lane.STDIN:
            # Whoever is asked should have read what stands above the question.
            self.flush()
        if lane is not Lane.IOPUB or not (self._driver.thrifty or self._coalescer.size):
            self._say(lane, parts)
        elif not self._late():
            self.flush()
            self._send(parts)
        else:
            self._hold(parts)

    def flush(self) -> None:
        """Let go of what waits. Called before the kernel's end is told."""
        if self._coalescer.size:
            self._spared += self._coalescer.size
            for parts in self._coalescer.take():
                self._spared -= sum(map(len, parts))
                self._send(parts)
            if self._spared > 0 and steady_ns() - self._told_at >= _TELL_NS:
                self._tell(self._spared)
                self._spared, self._told_at = 0, steady_ns()

    # --

    def _hold(self, parts: Sequence[Part]) -> None:
        first = not self._coalescer.size
        if not self._coalescer.put(parts):
            self.flush()
            self._send(parts)
        elif self._coalescer.size >= MOST_BYTES:
            self.flush()
        elif first:
            self._held_since = steady_ns()
            self._look_soon()

    def _send(self, parts: Sequence[Part]) -> None:
        self._say(Lane.IOPUB, parts)
        now = steady_ns()
        if not self._marks or now - self._marks[-1][1] >= _MARK_NS:
            sent, _ = self._driver.tunnel.counts(Lane.IOPUB)
            self._marks.append((sent, now))

    def _late(self) -> bool:
        sent, taken = self._driver.tunnel.counts(Lane.IOPUB)
        if self._marks and self._marks[-1][0] > sent:
            # A renter without memory counts from the beginning.
            self._marks.clear()
        while self._marks and self._marks[0][0] <= taken:
            self._marks.popleft()
        return bool(self._marks) and self._driver.thrifty and steady_ns() - self._marks[0][1] >= LATE_NS

    def _look_soon(self) -> None:
        if not self._looks:
            self._looks = True
            self._driver.later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looks = False
        if not self._coalescer.size:
            return
        if not self._late() or steady_ns() - self._held_since >= LONGEST_NS:
            self.flush()
        else:
            self._look_soon()
