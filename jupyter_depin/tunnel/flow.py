"""How much a lane may hold for its peer: as much as the link carries in two seconds, as far as it was measured.

What a lane holds lies in front of whatever the kernel says next: 64 MiB of a print loop are nothing on a fast link, and
nine minutes at 1 Mbit/s, through which an interrupt's end would have to wait. So the bound follows the speed at which
the peer acknowledges.

A speed is believed at once when it is higher than the last. A lower one may only mean that there was little to say, so
it counts only where much waited all the while, and then half. Nothing is measured while nothing is under way.

Rejected: the round-trip time (it says nothing of the width), what the transport has taken (its buffers hold megabytes),
one bound per lane (they share the link).
"""

from __future__ import annotations

from jupyter_depin.protocol.money import NS_PER_SECOND

LEAST = 1 << 20
FIRST = 4 << 20
"""Before anything is measured: a figure or two should not stop a kernel."""
AHEAD_S = 2
"""More than a long way's round trip with the delay of an acknowledgement, so that the link never runs dry."""
SAMPLE_NS = NS_PER_SECOND // 10
"""No speed is taken from a shorter time: acknowledgements come in bunches."""


class Flow:
    """The bound for the lanes of one tunnel, in bytes: `limit`, at most `most`. Owned by the tunnel."""

    def __init__(self, most: int) -> None:
        self._most, self._least = most, min(most, LEAST)
        self.limit = min(most, FIRST)
        self._speed = 0
        self._since: int | None = None
        self._taken = 0
        self._pressed = False

    def sent(self, now: int) -> None:
        """Something is under way. Called for each message."""
        if self._since is None:
            self._since, self._taken, self._pressed = now, 0, False

    def taken(self, size: int, waiting: int, now: int) -> None:
        """The peer has acknowledged `size` bytes more; `waiting` are still held for it."""
        if self._since is None:
            return
        self._taken += size
        took = now - self._since
        if waiting and took < SAMPLE_NS:
            return
        speed = self._taken * NS_PER_SECOND // max(took, SAMPLE_NS)
        presses = 2 * waiting >= self.limit
        if speed >= self._speed:
            self._speed = speed
        elif self._pressed and presses:
            self._speed = (self._speed + speed) // 2
        if self._speed * AHEAD_S > self.limit or (self._pressed and presses):
            self.limit = max(self._least, min(self._most, self._speed * AHEAD_S))
        self._since, self._taken, self._pressed = now if waiting else None, 0, presses

    def cut(self) -> None:
        """There is no connection: how long that lasts says nothing of the link."""
        self._since = None
