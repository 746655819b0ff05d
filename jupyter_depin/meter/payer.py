"""The consumer's meter: how much to sign for a claim.

Vouchers only follow claims; nothing is paid ahead, and a provider that claims nothing is paid nothing. The claim is
believed as far as an honest provider can have served. It serves no faster than this side's clock runs, and never more
than `arrears_ns` beyond the newest voucher, since it pauses there. So the clock counts also while the link was cut and
while this computer slept (the driver passes one that counts suspend), but at each claim it is set back to that limit:
of a long cut only the arrears are paid, however often they are claimed. It stands while there is no kernel, as far as
the provider has said so. It does not know of pauses, which only ever make the honest claim lower. Whatever vouchers were lost, an honest claim stays below both bounds and is paid in
full at once.

Rejected: signing by this side's clock alone, without claims. A paused kernel would then be paid, and the two clocks
would never agree on the last unit. Rejected: believing `arrears_ns` beyond the newest voucher without setting the clock
back. A provider would claim a long cut in many small steps. Rejected: an exact limit without tolerance. The ready
message takes time, and two clocks drift; after hours an honest provider would stand in arrears for good.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from jupyter_depin.errors import LocalProtocolError, RemoteProtocolError
from jupyter_depin.meter.events import CapReached, ClaimTooHigh, PayerEvent, SignVoucher
from jupyter_depin.protocol.money import NS_PER_SECOND, Amount, Rate, amount, owed, served_for

DRIFT = 2000
"""Clocks may drift by one part in 2000 (500 ppm, the most by which NTP slews a clock): 1.8 s an hour."""

MAX_TOLERANCE_NS = 10 * NS_PER_SECOND
"""The most by which the news of a ready kernel may be late, whatever tick an offer names: each ns of it can be stolen."""

_FOREVER = 1 << 80
"""A time in ns that never comes: a free kernel is never paused for arrears."""


class State(Enum):
    """Where a payer stands."""

    IDLE = auto()
    """The kernel is not ready; nothing is owed."""
    PAYING = auto()
    """Claims are answered with vouchers."""
    RESTING = auto()
    """There is no kernel, as the provider has said; the clock stands, and claims of what was served before are paid."""
    SPENT = auto()
    """The cap is signed away; claims get the last voucher again."""
    ENDED = auto()
    """The final claim was answered; the clock stands."""


class Step(Enum):
    """What moves a payer from state to state."""

    START = auto()
    REST = auto()
    SPEND_ALL = auto()
    END = auto()


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.IDLE, Step.START): State.PAYING,
    (State.RESTING, Step.START): State.PAYING,
    (State.IDLE, Step.REST): State.IDLE,
    (State.PAYING, Step.REST): State.RESTING,
    (State.RESTING, Step.REST): State.RESTING,
    # The provider ends a lease whose cap is spent; what it says of its kernels until then moves nothing any more.
    (State.SPENT, Step.START): State.SPENT,
    (State.SPENT, Step.REST): State.SPENT,
    (State.ENDED, Step.START): State.ENDED,
    (State.ENDED, Step.REST): State.ENDED,
    (State.PAYING, Step.SPEND_ALL): State.SPENT,
    (State.RESTING, Step.SPEND_ALL): State.SPENT,
    (State.SPENT, Step.SPEND_ALL): State.SPENT,
    (State.ENDED, Step.SPEND_ALL): State.ENDED,
    (State.IDLE, Step.END): State.ENDED,
    (State.PAYING, Step.END): State.ENDED,
    (State.RESTING, Step.END): State.ENDED,
    (State.SPENT, Step.END): State.ENDED,
    (State.ENDED, Step.END): State.ENDED,
}


class Payer:
    """One rental's payer.

    `rate` per hour; `tick_ns` between claims; `cap`: what may be signed in all; `arrears_ns`: unpaid service before the
    provider pauses the kernel.
    """

    def __init__(self, rate: Rate, tick_ns: int, cap: Amount, *, arrears_ns: int) -> None:
        if not 0 < tick_ns <= arrears_ns:
            raise LocalProtocolError(detail=f"a payer with tick {tick_ns}, arrears {arrears_ns}")
        self.state = State.IDLE
        self.paid = Amount(0)
        self._rate, self._cap, self._arrears_ns = rate, amount(cap), arrears_ns
        self._tolerance_ns = min(tick_ns, MAX_TOLERANCE_NS)
        # A moment and the most that had been served by then.
        self._anchor: tuple[int, int] | None = None
        self._stands_since: int | None = None
        self._cap_told = False
        self._events: deque[PayerEvent] = deque()

    def restore(self, paid: Amount) -> None:
        """Take over the newest voucher's amount from the journal. Called before `start`, after a restart."""
        if self.state is not State.IDLE:
            raise LocalProtocolError(detail=f"payer restored while {self.state.name.lower()}")
        self.paid = amount(paid)

    def start(self, now: int) -> None:
        """Start the clock, for the first time or after a rest. Called once the kernel is known to be ready.

        `now` is the earliest moment at which it can have been ready: the arrival of the news or, if the link was cut in
        between, the moment of the cut; after a restart, the journal's moment. A later one would cheat the provider.
        """
        before = self.state
        self._move(Step.START)
        if before is State.IDLE:
            self._anchor = now, 0
        elif before is State.RESTING and self._stands_since is not None:
            self._anchor = max(now, self._stands_since), self._by_clock_ns(now)
            self._stands_since = None

    def rest(self, now: int) -> None:
        """Stop the clock until the next `start`. Called when the provider says that there is no kernel."""
        if self.state is State.PAYING:
            self._stands_since = now
        self._move(Step.REST)

    def allowed_ns(self, now: int) -> int:
        """The longest service that is believed now, or at the final claim; 0 before the start."""
        if self._anchor is None:
            return 0
        return min(self._by_clock_ns(now), self._limit_ns()) + self._tolerance_ns

    def receive(self, claimed_ns: int, now: int) -> None:
        """Answer the provider's claim of `claimed_ns` of service so far. Called for each claim that arrives.

        A claim that asks for no more than was signed gets the same voucher again: the first may have been lost. Raises
        `RemoteProtocolError` if the claim is no time at all.
        """
        if type(claimed_ns) is not int or claimed_ns < 0:
            raise RemoteProtocolError(detail=f"a claim of {claimed_ns!r} ns")
        allowed = self.allowed_ns(now)
        if allowed == self._limit_ns() + self._tolerance_ns:
            # Elsewhere the clock is left alone, or each claim would round the drift away.
            self._anchor = self._moment(now), self._limit_ns()
        if claimed_ns > allowed:
            self._events.append(ClaimTooHigh(claimed_ns, allowed))
        believed = min(claimed_ns, allowed)
        self.paid = max(self.paid, min(self._cap, owed(self._rate, believed)))
        if self.paid:
            self._events.append(SignVoucher(self.paid))
        # Beyond this time more would be owed than the cap: where the payee ends too, to the nanosecond.
        if self._rate and 0 < believed >= served_for(self._rate, self._cap) and not self._cap_told:
            self._cap_told = True
            self._move(Step.SPEND_ALL)
            self._events.append(CapReached(self._cap))

    def final(self, claimed_ns: int, now: int) -> None:
        """Answer the last claim and stop the clock. Claims that still come are answered as of this moment."""
        if self.state is not State.ENDED:
            self._move(Step.END)
            self._stands_since = self._moment(now)
        self.receive(claimed_ns, now)

    def next_event(self) -> PayerEvent | None:
        """The oldest event not yet taken, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> None:
        """A payer never waits: silence costs it nothing."""

    def handle_timer(self, now: int) -> None:
        """Nothing is ever due."""

    def _moment(self, now: int) -> int:
        """The latest moment that counts: now, or when the clock was stopped."""
        return now if self._stands_since is None else self._stands_since

    def _by_clock_ns(self, now: int) -> int:
        """The longest service for which there was time. Asked after the first start only."""
        assert self._anchor is not None
        since, served_ns = self._anchor
        elapsed = max(0, self._moment(now) - since)
        return served_ns + elapsed + elapsed // DRIFT

    def _limit_ns(self) -> int:
        """Where an honest provider pauses at the latest: it holds the newest voucher or an older one."""
        return served_for(self._rate, self.paid) + self._arrears_ns if self._rate else _FOREVER

    def _move(self, step: Step) -> None:
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise LocalProtocolError(detail=f"payer: {step.name.lower()} while {self.state.name.lower()}")
        self.state = after
