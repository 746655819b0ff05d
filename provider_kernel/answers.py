"""What a tenancy answers its consumer on the lanes of orders and of money: kept for it, but not without bound.

An answer stays here until the consumer has acknowledged it. One that asks and never acknowledges is asked to wait: while
a lane is full of answers, nothing more is taken from it, so what it sends next stays with the consumer. It goes on by
itself, for acknowledgements travel on the control stream, which is read all the while.

Rejected: ending such a connection. A grace of a day fills the lane of money with honest claims, and whoever comes back
after it reads them all.
"""

from __future__ import annotations

from collections.abc import Callable

from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.messages import LeaseFact, ToPayer, encode
from jupyter_depin.tunnel.events import LaneDrained, LaneFull

_ANSWERED = (Lane.LEASE, Lane.PAYMENT)
_HOLDER = "answers"


class Answers:
    """The words of one tenancy that are not its kernel's. Made and called by the tenancy."""

    def __init__(self, driver: TunnelDriver) -> None:
        self._driver = driver
        self._waiting: Callable[[], LeaseFact] | None = None

    def say(self, fact: LeaseFact) -> None:
        """Tell the consumer something about its lease."""
        self._driver.send(Lane.LEASE, encode(fact))

    def bill(self, word: ToPayer) -> None:
        """Say something about money. Called by the meter."""
        self._driver.send(Lane.PAYMENT, encode(word))

    def say_once(self, fact: Callable[[], LeaseFact]) -> None:
        """Say how something is: now, or when there is room for it. Of several that wait, the last one is said."""
        if self._driver.tunnel.full(Lane.LEASE):
            self._waiting = fact
        else:
            self.say(fact())

    def noticed(self, event: LaneFull | LaneDrained) -> None:
        """A lane has become full, or has room again."""
        if event.lane in _ANSWERED:
            self._driver.hold(event.lane, isinstance(event, LaneFull), _HOLDER)
        if event == LaneDrained(Lane.LEASE) and self._waiting is not None:
            fact, self._waiting = self._waiting, None
            self.say(fact())
