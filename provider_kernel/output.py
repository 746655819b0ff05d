"""What a kernel says, on its way to its renter: bounded, kept while the renter is away, and the end told last.

While the renter is there, a kernel whose output piles up is stopped (ADR 2). While the renter is away it goes on, and
what it prints goes to a journal on the owner's disk, whose oldest pieces give way (ADR 6).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import MessageTooBig
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.protocol.messages import LeaseFact, LeftOut, OutputMissing, encode
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.tunnel.backlog import Allowance, Backlog
from provider_kernel.spool import Spool

log = logging.getLogger(__name__)

LANE_LIMIT = 64 << 20
"""Bytes that a lane holds for the consumer before the kernel is stopped. An interrupt lets it run on up to twice that."""
_MEMORY = 4 << 20
"""Bytes of output that lie in memory while the consumer is away, or still reads what was kept."""
_URGENT_S = 1.0
"""How long a kernel that was stopped for its output's sake runs on after an interrupt before that is looked at again."""
_NEWS_S = 1.0
"""News of output that was left out comes no more often than this."""
_KERNEL_LANES = (Lane.SHELL, Lane.STDIN, Lane.CONTROL, Lane.IOPUB)
"""What the kernel fills: a hostile one may use any of them to exhaust the owner's memory."""


class OutputJournals:
    """The agent's output journals in `root`, each of `limit` bytes for `age_s` seconds, and of `total` bytes together."""

    def __init__(self, root: Path, limit: int, total: int, age_s: int) -> None:
        self._root, self._limit, self._age_ns = root, limit, age_s * NS_PER_SECOND
        self._together = Allowance(total)

    def clear(self) -> None:
        """Remove what an earlier life of the agent left; the kernels that said it died with it."""
        shutil.rmtree(self._root, ignore_errors=True)

    def of(self, channel_id: bytes) -> Backlog:
        """The journal of a new tenancy. It goes with the tenancy's tunnel."""
        return Backlog(
            Spool(self._root / channel_id.hex()[:12]),
            limit=self._limit,
            age_ns=self._age_ns,
            memory=_MEMORY,
            marker=lambda messages, size: [encode(OutputMissing(messages, size))],
            together=self._together,
        )


class Output:
    """The output of one tenancy's kernels. `on_full` is told to stop the kernel for its output's sake, or to let it go on."""

    def __init__(self, driver: TunnelDriver, backlog: Backlog, on_full: Callable[[bool], None]) -> None:
        self._driver, self._backlog, self._on_full = driver, backlog, on_full
        self._stopped = False
        self._told_left_out = False
        self._last_words: list[LeaseFact] = []
        self._eager = False

    # -- what the kernel says

    def said(self, lane: Lane, parts: Sequence[Part]) -> None:
        """A message of the kernel. Called by its channels."""
        try:
            self._driver.send(lane, *parts)
        except MessageTooBig as error:
            log.info("%s", error)
            self.left_out(lane, sum(map(len, parts)), len(parts))
        if not self._has_room():
            # It may run because of an interrupt.
            self.look()

    def left_out(self, lane: Lane, size: int, parts: int) -> None:
        """A message of the kernel that nobody can carry. Called by its channels, which kept nothing of it."""
        # A kernel must not fill the lane with such news.
        if not self._told_left_out:
            self._told_left_out = True
            self._driver.later(_NEWS_S, lambda: setattr(self, "_told_left_out", False))
            self._driver.send(Lane.LEASE, encode(LeftOut(size, parts)))

    def let_through(self) -> None:
        """An interrupt must reach a kernel that stands still because its output is not read fast enough."""
        if self._stopped and self._has_room():
            self._stop(False)
            self._driver.later(_URGENT_S, self.look)

    def look(self) -> None:
        """Stop the kernel if it must be. Called when a lane is full."""
        if any(self._driver.tunnel.full(lane) for lane in _KERNEL_LANES):
            self._stop(True)

    def drained(self) -> None:
        """A lane has room again, or the consumer is away: let the kernel go on, unless another lane is full."""
        if not any(self._driver.tunnel.full(lane) for lane in _KERNEL_LANES):
            self._stop(False)

    def restarted(self) -> None:
        """Another kernel takes the place of the one that spoke: it must not wait until that one's output is read."""
        messages, size = self._backlog.discard()
        if messages:
            self._driver.send(Lane.IOPUB, encode(OutputMissing(messages, size, restarted=True)))
        self.hurry()

    # -- what comes behind it

    def last(self, fact: LeaseFact) -> None:
        """Say something of the kernel's end, behind the output that still waits for a consumer who was away."""
        self._last_words.append(fact)
        if self._eager or self._driver.tunnel.caught_up(Lane.IOPUB):
            self.hurry()

    def hurry(self) -> bool:
        """Say it now: the consumer has read everything, or there is no more time. Whether there was anything to say."""
        words, self._last_words = self._last_words, []
        for word in words:
            self._driver.send(Lane.LEASE, encode(word))
        return bool(words)

    def end_asked(self) -> None:
        """The consumer wants the end, whatever it has not read."""
        self._eager = True
        self.hurry()

    # --

    def _stop(self, stop: bool) -> None:
        if stop is not self._stopped:
            self._stopped = stop
            self._on_full(stop)

    def _has_room(self) -> bool:
        """Whether a kernel that fills a lane may run on for an interrupt's sake."""
        return self._driver.tunnel.held < 2 * LANE_LIMIT and not self._backlog.brimful
