"""Both meters at once, over a lossy link, with a liar on either side.

What must hold, in words:
  1. The provider never has more unpaid service out than the arrears limit (a base unit of rounding aside).
  2. The kernel is never owed for more than it truly ran.
  3. Vouchers never pass the cap, never fall, and never pass the true time by more than the tolerance.
  4. Two honest ends that hear each other at the end agree to the base unit.
  5. After any cut, one claim and its voucher settle everything between two honest ends.
  6. Of a cut a liar gets what an honest provider could have served meanwhile, however often it claims, and nothing
     for the time in which it has no kernel, as it says itself.
  7. While two honest ends hear each other nothing stays paused, and nothing but the cap, the length or a kernel
     that stays away ends the lease.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jupyter_depin.meter.events import (
    CapReached,
    EndLease,
    PauseKernel,
    SignVoucher,
    TickDue,
    UnpauseKernel,
    VoucherAccepted,
)
from jupyter_depin.meter.payee import Payee
from jupyter_depin.meter.payee import State as PayeeState
from jupyter_depin.meter.payer import DRIFT, Payer
from jupyter_depin.protocol.money import Amount, Rate, owed, served_for
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

S = 10**9
TICK, ARREARS, GRACE = 5 * S, 15 * S, 60 * S
LEASE = b"\x07" * 32


class TwoMeters(RuleBasedStateMachine):
    """A payee and a payer; the drivers between them are punctual, the link and the people are not."""

    @initialize(
        rate=st.one_of(st.integers(1, 10**7), st.integers(10**15, 10**19)),
        cap_s=st.sampled_from([2000, 200, 20, 1, 0]),
        odd=st.integers(0, 1000),
        lag=st.integers(0, TICK),
        liar=st.sampled_from([None, "payee", "payer"]),
        max_s=st.sampled_from([3000, 250, 8]),
    )
    def begin(self, rate, cap_s, odd, lag, liar, max_s):
        self.rate = Rate(rate)
        self.cap = Amount(owed(self.rate, cap_s * S) + odd)
        self.payee = Payee(self.rate, TICK, ARREARS, GRACE, self.cap, max_ns=max_s * S, channel_id=LEASE)
        self.payer = Payer(self.rate, TICK, self.cap, arrears_ns=ARREARS)
        self.payee_lies, self.payer_lies = liar == "payee", liar == "payer"
        self.now = 0
        self.alive, self.stopped = True, False
        self.ran_ns = 0
        self.possible_ns = 0
        self.claims: deque[int] = deque()
        self.vouchers: deque[int] = deque()
        self.signed = [0]
        self.caps_told = 0
        self.ended_for = None
        self.payee.start(0)
        self.lag = lag
        self.payer_started = False

    # -- the drivers

    def take_events(self):
        while (event := self.payee.next_event()) is not None:
            match event:
                case TickDue(served):
                    self.claims.append(served * 3 + 7 * S if self.payee_lies else served)
                case PauseKernel():
                    self.stopped = True
                case UnpauseKernel():
                    self.stopped = False
                case EndLease(reason, served):
                    self.stopped = True
                    self.ended_for = reason
                    assert served == self.payee.served_ns(self.now)
                case VoucherAccepted(voucher):
                    assert voucher.voucher.amount == self.payee.paid
        while (event := self.payer.next_event()) is not None:
            match event:
                case SignVoucher(amount):
                    self.signed.append(amount)
                    self.vouchers.append(amount * 2 // 3 if self.payer_lies else amount)
                case CapReached():
                    self.caps_told += 1

    def pass_time(self, until):
        if self.alive and not self.stopped:
            self.ran_ns += until - self.now
        # The most that a provider can have served which pauses at its arrears, and hears each voucher at once.
        since = max(self.now, self.lag)
        unpaid = served_for(self.rate, self.signed[-1]) + ARREARS
        if self.alive:
            self.possible_ns = min(self.possible_ns + max(0, until - since), unpaid)
        self.now = until
        if not self.payer_started and self.now >= self.lag:
            self.payer.start(self.lag)
            self.payer_started = True
            if not self.alive:
                self.payer.rest(self.lag)

    @rule(ns=st.one_of(st.integers(0, 7 * S), st.integers(14 * S, 40 * S), st.integers(0, 90 * S)))
    def wait(self, ns):
        until = self.now + ns
        while (due := self.payee.get_timer()) is not None and due <= until:
            assert due >= self.now
            self.pass_time(due)
            self.payee.handle_timer(due)
            self.take_events()
        self.pass_time(until)

    @precondition(lambda self: self.claims)
    @rule()
    def deliver_claim(self):
        self.payer.receive(self.claims.popleft(), self.now)
        self.take_events()

    @precondition(lambda self: self.vouchers)
    @rule()
    def deliver_voucher(self):
        amount = Amount(self.vouchers.popleft())
        self.payee.receive(VerifiedVoucher(Voucher(LEASE, amount), b""), self.now)
        self.take_events()

    @precondition(lambda self: self.claims)
    @rule()
    def lose_claim(self):
        self.claims.popleft()

    @precondition(lambda self: self.vouchers)
    @rule()
    def lose_voucher(self):
        self.vouchers.popleft()

    @precondition(lambda self: len(self.claims) > 1)
    @rule()
    def reorder_claims(self):
        self.claims.rotate(1)

    @precondition(lambda self: len(self.vouchers) > 1)
    @rule()
    def reorder_vouchers(self):
        self.vouchers.rotate(1)

    @rule(ns=st.integers(0, 600 * S), flood=st.integers(1, 30))
    def link_cut(self, ns, flood):
        self.wait(ns)
        self.claims.clear()
        self.vouchers.clear()
        if not self.payer_started:
            return
        if self.payee_lies:
            self.claims.extend([self.now * 2] * flood)
        else:
            self.claims.append(self.payee.served_ns(self.now))
        while self.claims:
            self.deliver_claim()
        while self.vouchers:
            self.deliver_voucher()
        if not (self.payee_lies or self.payer_lies):
            assert self.payee.state not in (PayeeState.PAUSED, PayeeState.RESTING_UNPAID)
            assert self.payee.paid == self.payee.owed(self.now)

    @precondition(lambda self: self.alive)
    @rule()
    def kernel_exits(self):
        self.alive = False
        self.payee.rest(self.now)
        if self.payer_started:
            self.payer.rest(self.now)
        self.take_events()

    @precondition(lambda self: not self.alive)
    @rule()
    def kernel_restarts(self):
        self.alive = True
        self.payee.start(self.now)
        if self.payer_started:
            self.payer.start(self.now)
        self.take_events()

    @rule(ticks=st.integers(1, 12))
    def link_holds(self, ticks):
        self.one_tick()
        was_over = self.payee.state is PayeeState.ENDED
        for _ in range(ticks):
            self.one_tick()
        if not (self.payee_lies or self.payer_lies):
            assert self.payee.state is not PayeeState.PAUSED
            assert (
                self.payee.arrears(self.now) <= owed(self.rate, TICK) + 1
                or self.payee.state is PayeeState.ENDED
            )
            ends = {None, EndReason.CAP_REACHED, EndReason.LEASE_OVER}
            if not self.alive:
                ends.add(EndReason.KERNEL_SHUTDOWN)
            assert was_over or self.ended_for in ends

    def one_tick(self):
        self.wait(TICK)
        while self.claims:
            self.deliver_claim()
        while self.vouchers:
            self.deliver_voucher()

    # -- what must hold

    @invariant()
    def exposure_is_bounded(self):
        # Not the meter's own books: the time that the kernel truly ran, against what the provider holds.
        unpaid = owed(self.rate, self.ran_ns) - self.payee.paid
        assert unpaid <= owed(self.rate, ARREARS) + 1 + self.rate // (3600 * S)
        assert self.payee.owed(self.now) <= self.cap

    @invariant()
    def service_is_counted_exactly(self):
        assert self.payee.served_ns(self.now) == self.ran_ns

    @invariant()
    def vouchers_are_bounded_and_rise(self):
        assert self.signed == sorted(self.signed)
        assert self.signed[-1] <= self.cap
        assert self.caps_told <= 1
        elapsed = max(0, self.now - self.lag)
        assert self.signed[-1] <= owed(self.rate, elapsed + TICK + elapsed // DRIFT)
        assert self.signed[-1] <= owed(self.rate, self.possible_ns + TICK + elapsed // DRIFT)
        if not self.payee_lies:
            assert self.signed[-1] <= owed(self.rate, self.ran_ns)

    def teardown(self):
        if not hasattr(self, "payee"):
            return
        self.wait(self.lag)
        self.payee.stop(self.now)
        self.alive = False
        self.take_events()
        served = self.payee.served_ns(self.now)
        self.payer.final(served * 2 + 1000 * S if self.payee_lies else served, self.now)
        self.vouchers.clear()
        self.take_events()
        for amount in self.vouchers:
            self.payee.receive(VerifiedVoucher(Voucher(LEASE, Amount(amount)), b""), self.now)
        self.vouchers_are_bounded_and_rise()
        assert self.payee.state is PayeeState.ENDED
        assert self.payee.served_ns(self.now + 10**6 * S) == served
        if not (self.payee_lies or self.payer_lies):
            assert self.payee.paid == self.signed[-1] == owed(self.rate, served)


TestTwoMeters = TwoMeters.TestCase
TestTwoMeters.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
