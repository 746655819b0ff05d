"""When one end of a tunnel asks whether the other still hears it, and what it makes of the answers.

QUIC would tell too, but late: it doubles its waits, so after an outage of a minute it may stand still for another. Here
something is owed (a message of ours is not acknowledged) or was going on a moment ago, and after a short silence we
ask; a question that stays unanswered makes the connection doubtful, and the owner of the tunnel dials beside it.

Whatever comes counts as an answer, so a big message on a narrow link, of which a part comes now and then, raises no
doubt, and on a link with long queues the answer that is under way overtakes the dial that stands behind it.

A timer that rings far too late means that the machine slept, or that nothing here ran: nobody can tell what became of
the link meanwhile, so it is asked about and doubted at once, but not given up, since the peer had no chance to answer.

Rejected: asking always at the quick pace (each question costs a metered link some 200 bytes), trusting the round-trip
time of QUIC (it does not know how long the other end takes to answer), giving up at the first unanswered question.
"""

from __future__ import annotations

from enum import Enum

from jupyter_depin.protocol.money import NS_PER_SECOND

QUICK_NS = NS_PER_SECOND // 2
"""The least silence after which is asked while something is owed, and the least time between unanswered questions."""
BRISK_NS = NS_PER_SECOND
"""The same while nothing is owed, but something went over the lanes since the last question; it doubles up to the idle
pace when nothing does."""
PATIENCE_NS = NS_PER_SECOND
"""The least time that a question stays unanswered before the connection is doubtful."""
GIVE_UP = 4
"""So many times the patience, and the connection is given up."""
LATE_NS = 2 * NS_PER_SECOND
"""A timer that rings so much too late slept."""
_REMEMBERED = 32
"""Questions whose time is kept."""


class Finding(Enum):
    """What comes of a look at the clock."""

    ASK = "it has been silent for a while"
    DOUBTFUL = "a question is unanswered"
    SILENT = "it is given up"


class Pulse:
    """One connection after the other, as this end hears them. Driven by `Tunnel`; times are integer ns.

    `idle_ns`: the pace at which is asked while nothing goes on (None: this end never asks). `at`: when `ring` is due.
    `rtt_ns`: the smoothed time from a question to its answer, None before the first. `nonce`: the newest question.
    """

    def __init__(self, idle_ns: int | None) -> None:
        self._idle_ns = idle_ns
        self.at: int | None = None
        self.doubtful = False
        self.rtt_ns: int | None = None
        self.nonce = 0
        self._quick_ns, self._patience_ns, self._again_ns = QUICK_NS, PATIENCE_NS, QUICK_NS
        self._heard_at = 0
        self._open_since: int | None = None
        self._asked: dict[int, int] = {}
        self._sampled_from = 0
        self._pace = BRISK_NS
        self._moved = 0

    def begin(self, now: int) -> None:
        """A connection was made. The peer's greeting is due on it as the answer to a question is."""
        self._asked.clear()
        self._heard_at, self.doubtful = now, False
        if self._idle_ns is not None:
            self._open_since, self._pace = now, BRISK_NS
            self.at = now + self._patience_ns

    def end(self) -> None:
        """The connection is gone."""
        self._asked.clear()
        self._open_since, self.at, self.doubtful = None, None, False

    def owe(self, now: int) -> None:
        """A message went out. Called for each of them, so it does next to nothing."""
        at = self.at
        if at is not None and at - now > self._quick_ns and self._open_since is None:
            self.at = now + self._quick_ns

    def heard(self, now: int) -> bool:
        """Some bytes came; whether the connection was doubtful until now. Called for each read."""
        self._heard_at = now
        self._open_since = None
        if not self.doubtful:
            return False
        self.doubtful = False
        self.at = now + self._quick_ns
        return True

    def answered(self, nonce: int, now: int) -> None:
        """The peer answered question `nonce`."""
        asked_at = self._asked.pop(nonce, None)
        if asked_at is None or nonce < self._sampled_from:
            return
        rtt, sample = self.rtt_ns, now - asked_at
        if rtt is None or sample < rtt:
            # A question that was lost once was late, and none is early: downward is believed sooner.
            rtt = sample if rtt is None else (rtt + sample) // 2
        else:
            rtt = (7 * rtt + sample) // 8
        self.rtt_ns = rtt
        self._quick_ns = max(QUICK_NS, 2 * rtt + QUICK_NS // 2)
        self._patience_ns = max(PATIENCE_NS, 2 * rtt + PATIENCE_NS // 2)
        self._again_ns = max(QUICK_NS, 3 * rtt // 2)

    def ring(self, now: int, *, owed: bool, moved: int) -> Finding | None:
        """Call when `at` has passed. On `ASK` and `DOUBTFUL` the peer is to be asked with `question`.

        `owed`: a message of ours is not acknowledged. `moved`: how many messages went over the lanes so far.
        """
        assert self.at is not None
        assert self._idle_ns is not None
        slept = now - self.at > LATE_NS
        if moved != self._moved:
            self._moved, self._pace = moved, BRISK_NS
        if self._open_since is None or slept:
            wait = min(self._idle_ns, self._quick_ns if owed else max(self._pace, self._quick_ns))
            if now - self._heard_at < wait and not slept:
                self.at = self._heard_at + wait
                return None
            self._open_since = now
            if not owed:
                self._pace = min(2 * self._pace, self._idle_ns)
        else:
            # The answer to an earlier question may be held up by an outage: it says nothing of the round trip.
            self._sampled_from = self.nonce + 1
        unanswered = now - self._open_since
        if unanswered >= GIVE_UP * self._patience_ns:
            self.at = None
            return Finding.SILENT
        self.at = now + self._again_ns
        if not self.doubtful and (slept or unanswered >= self._patience_ns):
            self.doubtful = True
            return Finding.DOUBTFUL
        return Finding.ASK

    def question(self, now: int) -> int:
        """A new question's number."""
        if len(self._asked) >= _REMEMBERED:
            # A peer that talks, but answers no question.
            self._asked.clear()
        self.nonce += 1
        self._asked[self.nonce] = now
        return self.nonce
