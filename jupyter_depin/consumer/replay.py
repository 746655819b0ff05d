"""Output that a provider kept while the link was down, on its way to the clients: in order, and at a pace that they take.

What is said live meanwhile waits behind it, and so does whatever must not be heard before it: the reply to a cell, the
kernel's end. Live output alone is never paced for long: who prints faster than a server takes is the server's affair.

Rejected: pacing at the provider (it does not know whether a server or a program reads); merging output (a message is
signed and numbered by the kernel, and clients count displays).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.tunnel.events import Kept
from jupyter_depin.tunnel.pace import Pace

_EACH = 640
"""Bytes that each message counts on top of its own, so that empty ones are bounded too."""
_MOST = 16 << 20
"""Bytes that may wait here; what is more stays with the provider."""
_MOST_LIVE = (1000, 1 << 20)
"""Live messages and bytes that are given out at the pace of what was kept before them."""
_PATIENCE_S, _TRICKLE = 30, 16 << 10
"""So long the link may stand still (so few bytes come) until what was announced is not waited for any more."""


@dataclass(slots=True)
class _Item:
    give: Callable[[], None]
    size: int
    counted: int | None
    """Bytes that count for the pace; None for what has no pace."""
    kept: bool


class Replay:
    """What waits for the clients of one rental. `later` calls back after some seconds.

    `hold` is told to keep more of the kernel's output at the provider, and to let it come again. `came`: the bytes that
    came over the link so far, or None while there is none.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], None],
        hold: Callable[[bool], None],
        came: Callable[[], int | None],
    ) -> None:
        self._later, self._hold, self._came = later, hold, came
        self._pace = Pace()
        self._queue: deque[_Item] = deque()
        self._behind: list[Callable[[], None]] = []
        self._behind_size = 0
        self._frames = self._messages = 0
        self._size = self._kept = 0
        self._live, self._live_size = 0, 0
        self._over_at = 0
        self._ringing = self._ending = self._holding = self._looking = False
        self._seen: int | None = None
        self.active = False
        """Whether output must come through here. While it must not, it goes to the clients at once."""

    def expect(self, kept: Kept) -> None:
        """The link is back, and so much was kept: it comes next."""
        self._frames, self._messages = kept.frames, kept.messages
        self.active = self.active or self._coming
        self._seen = None
        self._look_later()
        self._none_left()
        self._go()

    def all_came(self) -> None:
        """Nothing of what was kept is still to come, whatever the provider has announced."""
        self._frames = self._messages = 0
        self._none_left()
        self._go()

    def take(self, give: Callable[[], None], size: int, counted: int, stands_for: int = 1) -> None:
        """Output came, of `size` bytes, of which `counted` count: `give` hands it out. `stands_for`: messages kept."""
        kept = self._coming
        if self._frames:
            self._frames -= 1
        elif self._messages:
            self._messages = max(0, self._messages - stands_for)
        self._add(_Item(give, size + _EACH, counted, kept))
        self._none_left()
        self._go()

    def after(self, give: Callable[[], None]) -> None:
        """Do this when all that came before is given out; at once if nothing waits."""
        if self._queue:
            self._add(_Item(give, 0, None, kept=False))
        else:
            give()

    def behind(self, give: Callable[[], None], size: int) -> None:
        """Do this when all that was kept has come and is given out.

        `size`: bytes that are held for it. A provider that announces output and sends none is not believed for long.
        """
        if not self._coming:
            self.after(give)
            return
        self._behind.append(give)
        self._behind_size += size
        if self._behind_size > _MOST:
            self.release()

    def release(self) -> None:
        """Give everything out now: another kernel is started, or all is over."""
        self._frames = self._messages = 0
        self._none_left()
        while self._queue:
            self._give()
        self.active = False
        self._let_come()

    # --

    @property
    def _coming(self) -> bool:
        return bool(self._frames or self._messages)

    def _look_later(self) -> None:
        if self._coming and not self._looking:
            self._looking = True
            self._later(_PATIENCE_S, self._look)

    def _look(self) -> None:
        """Whether what was announced is on its way: a big message may need its time, so bytes count."""
        self._looking = False
        came = None if self._holding or self._queue else self._came()
        if self._coming and came is not None and self._seen is not None and came - self._seen < _TRICKLE:
            self.all_came()
        self._seen = came
        self._look_later()

    def _none_left(self) -> None:
        if not self._coming and self._behind:
            behind, self._behind, self._behind_size = self._behind, [], 0
            for give in behind:
                self._add(_Item(give, 0, None, kept=False))

    def _add(self, item: _Item) -> None:
        self._queue.append(item)
        self._size += item.size
        if item.kept:
            self._kept += 1
        elif item.counted is not None:
            self._live += 1
            self._live_size += item.size
        if self._size > _MOST and not self._holding:
            self._holding = True
            self._hold(True)

    def _give(self) -> None:
        item = self._queue.popleft()
        self._size -= item.size
        if item.kept:
            self._kept -= 1
        elif item.counted is not None:
            self._live -= 1
            self._live_size -= item.size
        item.give()

    def _go(self) -> None:
        """Give out what may go now, and come back for the rest."""
        if not (self._kept or self._coming) and (
            self._live > _MOST_LIVE[0] or self._live_size > _MOST_LIVE[1]
        ):
            self.release()
            return
        now = steady_ns()
        while self._queue and not self._ringing:
            counted = self._queue[0].counted
            if counted is not None:
                wait = self._pace.wait(counted, now)
                if wait:
                    self._ringing = True
                    self._later(wait / 1e9, self._ring)
                    break
                self._pace.went(counted, now)
                self._over_at = now + Pace.WINDOW_NS
            self._give()
        if self._size <= _MOST // 2:
            self._let_come()
        if self.active and not self._queue and not self._coming:
            self.active = now < self._over_at
            if self.active and not self._ending:
                self._ending = True
                self._later((self._over_at - now) / 1e9, self._end)

    def _ring(self) -> None:
        self._ringing = False
        self._go()

    def _end(self) -> None:
        self._ending = False
        self._go()

    def _let_come(self) -> None:
        if self._holding:
            self._holding = False
            self._hold(False)
