"""Whether one end of a tunnel compresses what it sends: by hand, because the peer asks for it, or because it must.

Measured is how fast the peer takes what waits for it. That says something only while enough waits; a link that is cut
and a peer that does not read take nothing at all, which is no finding, and what comes in one burst after such a stop
takes the finding back. Slow is a link that was found slow several times in a row. It stays so for minutes after the
last such finding, then one trial is made; each trial that fails makes the next wait longer.

A long way is not a narrow one, but QUIC begins with little under way at once and spreads that over the round trip: a
cell's three kilobytes of answer come in packets some 15 ms apart at 200 ms. So on a long way small messages are
compressed, whatever the link's width: the answer is one packet then.

Rejected: the round-trip time as a sign of narrowness, what the transport lets us write (its buffers hold
megabytes), asking the system (it does not know the way beyond the first hop).
"""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_depin.protocol.compressed import MAX_COMPRESSED
from jupyter_depin.protocol.messages import Wish
from jupyter_depin.protocol.money import NS_PER_SECOND

BUSY_BYTES = 1 << 16
"""While fewer bytes wait for the peer, nothing is measured."""
SLOW_BYTES_PER_S = 250_000
"""Below this (2 Mbit/s) a link is slow."""
LEAST_NS = NS_PER_SECOND
"""No finding of slowness is taken from a shorter time."""
IN_A_ROW = 3
STAY_NS = 120 * NS_PER_SECOND
"""How long a link counts as slow after it was last found so; doubled by each trial that fails, up to `LONGEST_NS`."""
LONGEST_NS = 16 * 60 * NS_PER_SECOND
FAR_MS = 50.0
"""From this round trip on the way is long."""
FAR_BYTES = 1 << 14
"""The longest message that is compressed because of that: longer ones fill several packets all the same."""
TRIAL_NS = 60 * NS_PER_SECOND
"""A link that is slow again so soon after a trial began has failed it."""


@dataclass(frozen=True, slots=True)
class Count:
    """Totals of one end at one time: bytes that the peer took, that were written, and that were spared on the way."""

    at: int
    taken: int
    written: int
    spared: int


class Thrift:
    """The judge of one direction. Driven by `TunnelDriver`; times are integer ns.

    `wish`: this end's own. `asked`: the peer's, which counts where this end's own is "auto".
    """

    def __init__(self, wish: Wish = "auto") -> None:
        self.wish = wish
        self.asked: Wish = "auto"
        self.slow = self.far = False
        self._since: Count | None = None
        self._found = 0
        self._stay = STAY_NS
        self._until = 0
        self._trial_from: int | None = None

    @property
    def on(self) -> bool:
        """Whether this end compresses."""
        wish = self.asked if self.wish == "auto" else self.wish
        return self.slow if wish == "auto" else wish == "on"

    @property
    def most(self) -> int:
        """Bytes of the longest message that this end compresses; 0 if it compresses none."""
        if self.on:
            return MAX_COMPRESSED
        return FAR_BYTES if self.far and "off" not in (self.wish, self.asked) else 0

    def way(self, rtt_ms: float) -> None:
        """The round-trip time of the path in use, as the transport knows it."""
        self.far = rtt_ms >= FAR_MS

    def moved(self, count: Count, waiting: int) -> None:
        """The peer has taken something, or something big was sent; `waiting` bytes are not taken yet."""
        since = self._since
        if since is not None and count.taken > since.taken:
            took_ns = max(1, count.at - since.at)
            written = count.written - since.written
            carried = written + count.spared - since.spared
            taken = count.taken - since.taken
            if 0 < written < carried:
                # What was taken was smaller on its way.
                taken = taken * written // carried
            if taken * NS_PER_SECOND >= SLOW_BYTES_PER_S * took_ns:
                self._found, since = 0, None
            elif took_ns >= LEAST_NS:
                self._is_slow(count.at)
                since = None
        if waiting < BUSY_BYTES:
            since = None
        elif since is None:
            since = count
        self._since = since
        if self.slow and count.at >= self._until:
            self.slow, self._trial_from = False, count.at
            self._found = IN_A_ROW - 1

    def cut(self) -> None:
        """The connection is gone: what it was about to take says nothing."""
        self._since = None

    def _is_slow(self, now: int) -> None:
        self._found += 1
        if self._found < IN_A_ROW:
            return
        if not self.slow:
            failed = self._trial_from is not None and now - self._trial_from < TRIAL_NS
            self._stay = min(2 * self._stay, LONGEST_NS) if failed else STAY_NS
        self.slow, self._until = True, now + self._stay
