"""The provider's meter: what was served, what to claim, when to pause, when to end.

A deadline takes effect at its own moment, however late the driver's timer rings: service beyond it is given, not sold.
So the time served is a function of the start, the vouchers and their arrival alone, unpaid service never counts beyond
`arrears_ns`, and what is owed never exceeds the deposit.

Rejected: counting until the kernel is really stopped. A busy provider would then serve, and claim, time that nobody
agreed to risk. Rejected: ticks only while serving. A paused kernel whose voucher was lost would never be paid for.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from jupyter_depin.errors import LocalProtocolError, VoucherRefused
from jupyter_depin.meter.events import (
    EndLease,
    PauseKernel,
    PayeeEvent,
    TickDue,
    UnpauseKernel,
    VoucherAccepted,
    VoucherStale,
)
from jupyter_depin.protocol.money import Amount, Rate, amount, owed, served_for
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.voucher import VerifiedVoucher

_FOREVER = 1 << 80
"""A time in ns that never comes (38 million years): what any payment covers when the rate is zero."""


class State(Enum):
    """Where a payee stands."""

    IDLE = auto()
    """The kernel is not ready; the clock stands."""
    SERVING = auto()
    """The kernel runs and so does the clock."""
    PAUSED = auto()
    """The kernel is stopped for arrears; the clock stands."""
    RESTING = auto()
    """There is no kernel, the lease is kept for another; the clock stands."""
    RESTING_UNPAID = auto()
    """There is no kernel, and the next one must not run before arrears are paid; the clock stands."""
    ENDED = auto()
    """Nothing is served any more; vouchers for what was served are still taken."""


class Step(Enum):
    """What moves a payee from state to state."""

    START = auto()
    STARVE = auto()
    FEED = auto()
    REST = auto()
    END = auto()


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.IDLE, Step.START): State.SERVING,
    (State.SERVING, Step.STARVE): State.PAUSED,
    (State.PAUSED, Step.FEED): State.SERVING,
    (State.IDLE, Step.REST): State.IDLE,
    (State.SERVING, Step.REST): State.RESTING,
    (State.PAUSED, Step.REST): State.RESTING_UNPAID,
    (State.RESTING, Step.REST): State.RESTING,
    (State.RESTING_UNPAID, Step.REST): State.RESTING_UNPAID,
    (State.RESTING_UNPAID, Step.FEED): State.RESTING,
    (State.RESTING, Step.START): State.SERVING,
    (State.RESTING_UNPAID, Step.START): State.PAUSED,
    # The timer may have ended the lease just before a kernel got ready, or exited.
    (State.ENDED, Step.START): State.ENDED,
    (State.ENDED, Step.REST): State.ENDED,
    (State.IDLE, Step.END): State.ENDED,
    (State.RESTING, Step.END): State.ENDED,
    (State.RESTING_UNPAID, Step.END): State.ENDED,
    (State.SERVING, Step.END): State.ENDED,
    (State.PAUSED, Step.END): State.ENDED,
    (State.ENDED, Step.END): State.ENDED,
}


class Payee:
    """One tenancy's payee.

    `rate` per hour; `tick_ns` between claims; `arrears_ns`: unpaid service before the kernel is paused; `grace_ns`: how
    long it stays paused, or without a kernel, before the lease ends; `cap`: the deposit; `max_ns`: the lease's length from `start` on, pauses
    included; `channel_id`: the lease whose vouchers are taken.
    """

    def __init__(
        self,
        rate: Rate,
        tick_ns: int,
        arrears_ns: int,
        grace_ns: int,
        cap: Amount,
        *,
        max_ns: int,
        channel_id: bytes,
    ) -> None:
        if not 0 < tick_ns <= arrears_ns or grace_ns <= 0 or max_ns <= 0:
            raise LocalProtocolError(
                detail=f"a payee with tick {tick_ns}, arrears {arrears_ns}, grace {grace_ns}"
            )
        self.state = State.IDLE
        self.paid = Amount(0)
        self._rate, self._tick_ns, self._arrears_ns, self._grace_ns = rate, tick_ns, arrears_ns, grace_ns
        self._cap, self._max_ns, self._channel_id = amount(cap), max_ns, channel_id
        self._served_ns = 0
        self._running_since = 0
        self._next_tick = 0
        self._lease_end = 0
        self._grace_end = 0
        self._rest_end = 0
        self._first_end: int | None = None
        self._events: deque[PayeeEvent] = deque()

    # -- what the driver tells

    def restore(self, paid: Amount, served_ns: int) -> None:
        """Take over the journal's newest amount and time served. Called before `start`, after a restart."""
        if self.state is not State.IDLE:
            raise LocalProtocolError(detail=f"payee restored while {self.state.name.lower()}")
        self.paid, self._served_ns = amount(paid), served_ns

    def open(self, now: int, patience_ns: int) -> None:
        """The lease is open: it ends after `patience_ns`, or after the grace if that is longer, unless a kernel is ready."""
        self._first_end = now + max(patience_ns, self._grace_ns)

    def start(self, now: int) -> None:
        """Start the clock, or let it run on. Called the moment a kernel is ready."""
        self.handle_timer(now)
        if self.state is State.IDLE:
            self._next_tick = now + self._tick_ns
            self._lease_end = now + self._max_ns
        self._move(Step.START)
        self._running_since = now

    def rest(self, now: int) -> None:
        """Stop the clock until the next `start`. Called the moment there is no kernel; may be called twice.

        The grace counts from the first call: kernels that never get ready do not lengthen it.
        """
        self.handle_timer(now)
        if self.state in (State.SERVING, State.PAUSED):
            self._bank(now)
            self._rest_end = now + self._grace_ns
        self._move(Step.REST)

    def receive(self, voucher: VerifiedVoucher, now: int) -> None:
        """Take a voucher. Called for each one that arrives, also after the end.

        Vouchers are cumulative: one that is worth no more than the last is ignored, overpaying is the payer's affair.
        Raises `VoucherRefused` for another lease's voucher and for one above the deposit, which nobody could collect.
        """
        self.handle_timer(now)
        if voucher.voucher.channel_id != self._channel_id:
            raise VoucherRefused(reason="it is for another rental")
        if voucher.voucher.amount > self._cap:
            raise VoucherRefused(reason=f"{voucher.voucher.amount} is above the deposit of {self._cap}")
        if voucher.voucher.amount <= self.paid:
            self._events.append(VoucherStale(voucher.voucher.amount, self.paid))
            return
        self.paid = voucher.voucher.amount
        self._events.append(VoucherAccepted(voucher))
        if self.state in (State.PAUSED, State.RESTING_UNPAID) and self._unpaid_ns() < self._tick_ns:
            self._move(Step.FEED)
            self._running_since = now
            self._events.append(UnpauseKernel())

    def stop(self, now: int) -> None:
        """Stop the clock for good, for a reason that is not the meter's. May be called twice."""
        self.handle_timer(now)
        self._bank(now)
        self._move(Step.END)

    def handle_timer(self, now: int) -> None:
        """Let everything happen that is due by `now`, in the order in which it fell due."""
        while (due := self.get_timer()) is not None and due <= now:
            if self.state is State.IDLE:
                self._end(EndReason.START_FAILED, due)
            elif due == self._next_tick:
                # A timer that rings late catches up with one claim, not with many.
                self._events.append(TickDue(self.served_ns(now)))
                self._next_tick += (1 + (now - due) // self._tick_ns) * self._tick_ns
            elif due == self._lease_end:
                self._end(EndReason.LEASE_OVER, due)
            elif self.state in (State.PAUSED, State.RESTING_UNPAID):
                self._end(EndReason.ARREARS, due)
            elif self.state is State.RESTING:
                self._end(EndReason.KERNEL_SHUTDOWN, due)
            elif self.served_ns(due) >= self._covered_ns(self._cap):
                self._end(EndReason.CAP_REACHED, due)
            else:
                self._bank(due)
                self._move(Step.STARVE)
                self._grace_end = due + self._grace_ns
                self._events.append(PauseKernel(self._unpaid_ns()))

    # -- what the driver asks

    def served_ns(self, now: int) -> int:
        """The time served until `now`: never beyond a limit that has been reached, even before its timer rings."""
        if self.state is not State.SERVING:
            return self._served_ns
        running = max(0, min(now, self._lease_end) - self._running_since)
        return min(self._served_ns + running, self._limit_ns())

    def owed(self, now: int) -> Amount:
        """What the time served until `now` costs in all; never above the deposit."""
        return owed(self._rate, self.served_ns(now))

    def arrears(self, now: int) -> Amount:
        """What is owed and not yet paid."""
        return Amount(max(0, self.owed(now) - self.paid))

    def next_event(self) -> PayeeEvent | None:
        """The oldest event not yet taken, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> int | None:
        """When `handle_timer` must be called next, or None."""
        match self.state:
            case State.SERVING:
                used_up = self._running_since + self._limit_ns() - self._served_ns
                return min(self._next_tick, self._lease_end, used_up)
            case State.RESTING:
                return min(self._next_tick, self._lease_end, self._rest_end)
            case State.PAUSED | State.RESTING_UNPAID:
                # The rest began after the pause, so its grace ends later.
                return min(self._next_tick, self._lease_end, self._grace_end)
            case State.IDLE:
                return self._first_end
            case State.ENDED:
                return None

    # -- inside

    def _covered_ns(self, paid: Amount) -> int:
        return served_for(self._rate, paid) if self._rate else _FOREVER

    def _limit_ns(self) -> int:
        """Serve until here: the unpaid part may not pass the arrears limit, nor the whole the deposit."""
        return max(
            self._served_ns, min(self._covered_ns(self.paid) + self._arrears_ns, self._covered_ns(self._cap))
        )

    def _unpaid_ns(self) -> int:
        return max(0, self._served_ns - self._covered_ns(self.paid))

    def _bank(self, now: int) -> None:
        """Add the running stretch to what was served."""
        self._served_ns = self.served_ns(now)
        self._running_since = max(self._running_since, now)

    def _end(self, reason: EndReason, due: int) -> None:
        self._bank(due)
        self._move(Step.END)
        self._events.append(EndLease(reason, self._served_ns))

    def _move(self, step: Step) -> None:
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise LocalProtocolError(detail=f"payee: {step.name.lower()} while {self.state.name.lower()}")
        self.state = after
