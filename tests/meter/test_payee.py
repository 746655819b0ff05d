"""The provider's meter: what it claims, when it pauses, when it ends."""

from __future__ import annotations

import pytest

from jupyter_depin.errors import LocalProtocolError, VoucherRefused
from jupyter_depin.meter.events import (
    EndLease,
    PauseKernel,
    TickDue,
    UnpauseKernel,
    VoucherAccepted,
    VoucherStale,
)
from jupyter_depin.meter.payee import Payee, State
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

S = 10**9
LEASE = b"\x01" * 32
RATE = Rate(3600 * 100)  # 100 base units a second
# Time that no payment covers yet costs nothing until it makes a whole base unit: 10 ms at this rate, less 1 ns.
UNIT = S // 100


def payee(*, rate: Rate = RATE, cap: int = 10**6, max_s: int = 10**6, arrears_s: int = 15) -> Payee:
    return Payee(rate, 5 * S, arrears_s * S, 60 * S, Amount(cap), max_ns=max_s * S, channel_id=LEASE)


def voucher(amount: int, channel_id: bytes = LEASE) -> VerifiedVoucher:
    return VerifiedVoucher(Voucher(channel_id, Amount(amount)), b"s" * 65)


def test_a_tick_claims_what_was_served_and_a_voucher_settles_it(play):
    m = payee()
    p = play(m) >> (100 * S, "start") >> (105 * S, "handle_timer") << TickDue(5 * S)
    assert (m.owed(105 * S), m.arrears(105 * S)) == (500, 500)
    p = p >> (106 * S, "receive", voucher(500)) << VoucherAccepted(voucher(500))
    p.over()
    assert (m.owed(106 * S), m.arrears(106 * S), m.paid) == (600, 100, 500)
    assert m.get_timer() == 110 * S


@pytest.mark.parametrize(("patience_s", "ends_s"), [(180, 180), (10, 60)])
def test_a_lease_that_gets_no_kernel_ends(play, patience_s, ends_s):
    m = payee()
    m.open(100 * S, patience_s * S)
    assert m.get_timer() == (100 + ends_s) * S
    p = play(m) >> (150 * S, "rest") >> ((99 + ends_s) * S, "handle_timer")
    p.over()
    p = p >> ((900 + ends_s) * S, "handle_timer") << EndLease(EndReason.START_FAILED, 0)
    p.over()
    assert m.state is State.ENDED


def test_a_late_timer_claims_once(play):
    m = payee(arrears_s=300)
    p = play(m) >> (0, "start") >> (23 * S, "handle_timer") << TickDue(23 * S)
    p.over()
    assert m.get_timer() == 25 * S


def test_unpaid_service_pauses_at_the_limit_even_when_the_timer_is_late(play):
    m = payee()
    limit = 15 * S + UNIT - 1
    p = play(m) >> (0, "start") >> (40 * S, "handle_timer") << TickDue(limit) << PauseKernel(15 * S)
    p.over()
    assert m.served_ns(40 * S) == limit
    assert m.state is State.PAUSED


def test_the_clock_stands_while_paused_and_claims_go_on(play):
    m = payee()
    limit = 15 * S + UNIT - 1
    p = play(m) >> (0, "start")
    for tick in (5, 10, 15):
        p = p >> (tick * S, "handle_timer") << TickDue(tick * S)
    p = p >> (16 * S, "handle_timer") << PauseKernel(15 * S)
    p = p >> (20 * S, "handle_timer") << TickDue(limit)
    p = (
        p
        >> (30 * S, "receive", voucher(1500))
        << TickDue(limit)
        << VoucherAccepted(voucher(1500))
        << UnpauseKernel()
    )
    p.over()
    assert m.served_ns(31 * S) == limit + S


def test_a_small_payment_keeps_it_paused_until_less_than_a_tick_is_unpaid(play):
    m = payee()
    p = (
        play(m)
        >> (0, "start")
        >> (16 * S, "handle_timer")
        << TickDue(15 * S + UNIT - 1)
        << PauseKernel(15 * S)
    )
    p = p >> (17 * S, "receive", voucher(1000)) << VoucherAccepted(voucher(1000))
    p = p >> (18 * S, "receive", voucher(1001)) << VoucherAccepted(voucher(1001)) << UnpauseKernel()
    p.over()


def test_a_pause_that_outlasts_the_grace_ends_the_lease(play):
    m = payee()
    limit = 15 * S + UNIT - 1
    p = play(m) >> (0, "start") >> (16 * S, "handle_timer") << TickDue(limit) << PauseKernel(15 * S)
    p = p >> (limit + 60 * S - 1, "handle_timer") << TickDue(limit)
    p = p >> (limit + 60 * S, "handle_timer") << EndLease(EndReason.ARREARS, limit)
    p.over()
    assert m.get_timer() is None


def test_the_lease_ends_when_the_deposit_is_served_and_not_a_nanosecond_later(play):
    m = payee(cap=700)
    p = play(m) >> (0, "start") >> (5 * S, "handle_timer") << TickDue(5 * S)
    end = 7 * S + UNIT - 1
    assert m.get_timer() == end
    p = p >> (9 * S, "handle_timer") << EndLease(EndReason.CAP_REACHED, end)
    p.over()
    assert m.owed(10**6 * S) == 700


def test_the_lease_ends_when_its_length_is_over_pauses_included(play):
    m = payee(max_s=30)
    p = (
        play(m)
        >> (0, "start")
        >> (16 * S, "handle_timer")
        << TickDue(15 * S + UNIT - 1)
        << PauseKernel(15 * S)
    )
    p = p >> (20 * S, "receive", voucher(2000)) << TickDue(15 * S + UNIT - 1)
    p = p << VoucherAccepted(voucher(2000)) << UnpauseKernel()
    p = (
        p
        >> (60 * S, "handle_timer")
        << TickDue(25 * S + UNIT - 1)
        << EndLease(EndReason.LEASE_OVER, 25 * S + UNIT - 1)
    )
    p.over()


def test_a_lower_or_equal_voucher_is_reported_and_ignored(play):
    m = payee()
    p = play(m) >> (0, "start") >> (S, "receive", voucher(100)) << VoucherAccepted(voucher(100))
    p = p >> (S, "receive", voucher(100)) << VoucherStale(Amount(100), Amount(100))
    p = p >> (S, "receive", voucher(60)) << VoucherStale(Amount(60), Amount(100))
    p.over()
    assert m.paid == 100


@pytest.mark.parametrize(
    "bad", [voucher(701), voucher(100, b"\x02" * 32)], ids=["above deposit", "other lease"]
)
def test_a_voucher_that_cannot_be_collected_is_refused(bad):
    m = payee(cap=700)
    m.start(0)
    with pytest.raises(VoucherRefused):
        m.receive(bad, S)
    assert m.paid == 0


def test_overpaying_is_the_payers_affair_and_extends_the_arrears_limit(play):
    m = payee()
    p = play(m) >> (0, "start") >> (0, "receive", voucher(10_000)) << VoucherAccepted(voucher(10_000))
    p = p >> (114 * S, "handle_timer") << TickDue(114 * S)
    p.over()
    assert m.arrears(114 * S) == 1400


def test_the_last_voucher_is_taken_after_the_end(play):
    m = payee()
    p = play(m) >> (0, "start") >> (3 * S, "stop")
    p = p >> (9 * S, "receive", voucher(300)) << VoucherAccepted(voucher(300))
    p.over()
    assert (m.served_ns(99 * S), m.arrears(99 * S)) == (3 * S, 0)


def test_a_free_kernel_never_pauses(play):
    m = payee(rate=Rate(0), cap=0)
    p = play(m) >> (0, "start") >> (9999 * S, "handle_timer") << TickDue(9999 * S)
    p.over()
    assert m.owed(9999 * S) == 0


def test_a_restored_payee_goes_on_from_the_journal(play):
    m = payee()
    m.restore(Amount(1000), 12 * S)
    m.start(0)
    assert (m.paid, m.served_ns(0), m.arrears(3 * S)) == (1000, 12 * S, 500)


def test_without_a_kernel_the_clock_stands_and_claims_go_on(play):
    m = payee()
    p = play(m) >> (0, "start") >> (3 * S, "rest") >> (4 * S, "rest")
    p = p >> (30 * S, "handle_timer") << TickDue(3 * S)
    p = p >> (31 * S, "receive", voucher(300)) << VoucherAccepted(voucher(300))
    p = p >> (32 * S, "start") >> (36 * S, "handle_timer") << TickDue(7 * S)
    p.over()
    assert m.state is State.SERVING
    assert m.owed(36 * S) == 700


def test_a_lease_without_a_kernel_ends_after_the_grace_however_many_starts_fail(play):
    m = payee()
    p = play(m) >> (0, "start") >> (3 * S, "rest") >> (40 * S, "rest") << TickDue(3 * S)
    p = p >> (63 * S - 1, "handle_timer") << TickDue(3 * S)
    p = p >> (63 * S, "handle_timer") << EndLease(EndReason.KERNEL_SHUTDOWN, 3 * S)
    p.over()
    assert m.get_timer() is None


def test_a_lease_without_a_kernel_still_ends_with_its_length(play):
    m = payee(max_s=30)
    p = play(m) >> (0, "start") >> (3 * S, "rest")
    p = p >> (30 * S, "handle_timer") << TickDue(3 * S) << EndLease(EndReason.LEASE_OVER, 3 * S)
    p.over()


def paused_without_a_kernel(play):
    m = payee()
    limit = 15 * S + UNIT - 1
    p = play(m) >> (0, "start") >> (16 * S, "handle_timer") << TickDue(limit) << PauseKernel(15 * S)
    return m, p >> (20 * S, "rest") << TickDue(limit), limit


def test_a_new_kernel_does_not_run_before_the_arrears_are_paid(play):
    m, p, limit = paused_without_a_kernel(play)
    p = p >> (24 * S, "start")
    assert m.state is State.PAUSED
    assert m.served_ns(25 * S) == limit
    p = p >> (24 * S, "receive", voucher(1500)) << VoucherAccepted(voucher(1500)) << UnpauseKernel()
    p.over()
    assert m.served_ns(25 * S) == limit + S


def test_arrears_may_be_paid_while_there_is_no_kernel(play):
    _, p, limit = paused_without_a_kernel(play)
    p = p >> (24 * S, "receive", voucher(1500)) << VoucherAccepted(voucher(1500)) << UnpauseKernel()
    p = p >> (79 * S, "handle_timer") << TickDue(limit)
    p = p >> (80 * S, "handle_timer") << TickDue(limit) << EndLease(EndReason.KERNEL_SHUTDOWN, limit)
    p.over()


def test_without_a_kernel_and_without_pay_the_older_grace_counts(play):
    _, p, limit = paused_without_a_kernel(play)
    p = p >> (90 * S, "handle_timer") << TickDue(limit) << EndLease(EndReason.ARREARS, limit)
    p.over()


def test_a_kernel_that_comes_or_goes_after_the_end_changes_nothing(play):
    m = payee()
    p = play(m) >> (0, "rest") >> (0, "start") >> (S, "stop") >> (2 * S, "start") >> (3 * S, "rest")
    p.over()
    assert (m.state, m.served_ns(9 * S)) == (State.ENDED, S)


def test_wrong_steps_are_our_bugs():
    m = payee()
    m.start(0)
    with pytest.raises(LocalProtocolError):
        m.start(1)
    with pytest.raises(LocalProtocolError):
        m.restore(Amount(1), 1)
    with pytest.raises(LocalProtocolError):
        payee(arrears_s=1)
