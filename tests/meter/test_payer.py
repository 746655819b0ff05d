"""The consumer's meter: what it signs for a claim, and what it never signs."""

from __future__ import annotations

import pytest

from jupyter_depin.errors import LocalProtocolError, RemoteProtocolError
from jupyter_depin.meter.events import CapReached, ClaimTooHigh, SignVoucher
from jupyter_depin.meter.payer import DRIFT, Payer
from jupyter_depin.protocol.money import Amount, Rate, served_for

S = 10**9
RATE = Rate(3600 * 100)  # 100 base units a second


def payer(*, rate: Rate = RATE, cap: int = 10**6, tick_s: int = 5, arrears_s: int = 15) -> Payer:
    return Payer(rate, tick_s * S, Amount(cap), arrears_ns=arrears_s * S)


def paid_up_to(m: Payer, seconds: int) -> None:
    """An honest provider claimed each tick until then."""
    m.start(0)
    for now in range(5, seconds + 1, 5):
        m.receive(now * S, now * S)
        assert m.next_event() == SignVoucher(Amount(now * 100))


def test_a_true_claim_is_paid_exactly(play):
    p = play(payer()) >> (0, "start")
    p = p >> (5 * S, "receive", 5 * S) << SignVoucher(Amount(500))
    p = p >> (10 * S, "receive", 9 * S + 999_999_999) << SignVoucher(Amount(999))
    p.over()


def test_silence_is_not_paid(play):
    m = payer()
    (play(m) >> (0, "start") >> (900 * S, "handle_timer")).over()
    assert m.get_timer() is None
    assert m.paid == 0


def test_a_lost_voucher_is_signed_again_and_never_a_lower_one(play):
    p = play(payer()) >> (0, "start") >> (5 * S, "receive", 5 * S) << SignVoucher(Amount(500))
    p = p >> (10 * S, "receive", 5 * S) << SignVoucher(Amount(500))
    p = p >> (15 * S, "receive", 1 * S) << SignVoucher(Amount(500))
    p.over()


def test_a_claim_of_nothing_is_answered_with_nothing(play):
    (play(payer()) >> (0, "start") >> (5 * S, "receive", 0)).over()


def test_a_claim_beyond_the_clock_is_paid_up_to_the_tolerance_only(play):
    allowed = 100 * S + 5 * S + 100 * S // DRIFT
    m = payer()
    paid_up_to(m, 95)
    p = play(m) >> (100 * S, "receive", 900 * S) << ClaimTooHigh(900 * S, allowed)
    p = p << SignVoucher(Amount(10_505))
    p.over()


def test_a_long_tick_in_the_offer_is_no_licence_to_claim_ahead(play):
    p = play(payer(tick_s=7200, arrears_s=7200)) >> (0, "start")
    p = p >> (S, "receive", 7200 * S) << ClaimTooHigh(7200 * S, 11 * S + S // DRIFT)
    p = p << SignVoucher(Amount(1100))
    p.over()


def test_of_a_long_cut_the_arrears_are_paid_however_often_they_are_claimed(play):
    m = payer()
    paid_up_to(m, 60)
    most = 60 * S + S // 100 - 1 + 15 * S + 5 * S  # 60 s paid to the unit, the arrears, the tolerance.
    p = play(m)
    for _ in range(50):
        p = p >> (600 * S, "receive", 600 * S) << ClaimTooHigh(600 * S, most) << SignVoucher(Amount(8_000))
    p.over()
    p = p >> (601 * S, "receive", 600 * S) << ClaimTooHigh(600 * S, most + S + S // DRIFT)
    p = p << SignVoucher(Amount(8_101))
    p.over()


def test_a_restored_payer_pays_the_arrears_and_not_the_time_away(play):
    m = payer()
    m.restore(Amount(6000))
    p = play(m) >> (-600 * S, "start")
    p = p >> (0, "receive", 75 * S) << SignVoucher(Amount(7500))
    p = p >> (0, "receive", 600 * S) << ClaimTooHigh(600 * S, 80 * S + S // 100 - 1)
    p = p << SignVoucher(Amount(8000))
    p.over()


def test_an_hour_asleep_counts_as_far_as_the_provider_serves_unpaid(play):
    p = play(payer(arrears_s=3600)) >> (0, "start")
    p = p >> (3600 * S, "receive", 3600 * S) << SignVoucher(Amount(360_000))
    p.over()


def test_before_the_kernel_is_ready_nothing_is_paid(play):
    p = play(payer()) >> (9 * S, "receive", 4 * S) << ClaimTooHigh(4 * S, 0)
    p.over()


def test_the_cap_is_told_once_and_never_passed(play):
    m = payer(cap=700)
    end = served_for(RATE, Amount(700))
    p = play(m) >> (0, "start")
    p = p >> (10 * S, "receive", end - 1) << SignVoucher(Amount(700))
    p = p >> (10 * S, "receive", end) << SignVoucher(Amount(700)) << CapReached(Amount(700))
    p = p >> (20 * S, "receive", 20 * S) << SignVoucher(Amount(700))
    p.over()


def test_the_final_claim_stops_the_clock(play):
    m = payer()
    p = play(m) >> (0, "start") >> (3 * S, "final", 3 * S) << SignVoucher(Amount(300))
    p = p >> (9000 * S, "final", 3 * S) << SignVoucher(Amount(300))
    p.over()
    p = p >> (9000 * S, "receive", 9000 * S)
    p = p << ClaimTooHigh(9000 * S, 8 * S + 3 * S // DRIFT) << SignVoucher(Amount(800))
    p.over()


def test_without_a_kernel_the_clock_stands(play):
    m = payer()
    p = play(m) >> (0, "start") >> (10 * S, "receive", 10 * S) << SignVoucher(Amount(1000))
    p = p >> (12 * S, "rest") >> (15 * S, "rest")
    allowed = 17 * S + 12 * S // DRIFT
    p = p >> (900 * S, "receive", 900 * S) << ClaimTooHigh(900 * S, allowed) << SignVoucher(Amount(1700))
    p = p >> (901 * S, "receive", 900 * S) << ClaimTooHigh(900 * S, allowed) << SignVoucher(Amount(1700))
    p.over()
    # Another kernel: it goes on where it stood.
    p = p >> (1000 * S, "start") >> (1010 * S, "receive", 22 * S) << SignVoucher(Amount(2200))
    p = p >> (1010 * S, "receive", 90 * S) << ClaimTooHigh(90 * S, allowed + 10 * S + 10 * S // DRIFT)
    p = p << SignVoucher(Amount(2701))
    p.over()


def test_a_kernel_cannot_have_been_ready_again_before_it_ended(play):
    p = play(payer(arrears_s=3600)) >> (0, "start") >> (60 * S, "rest") >> (20 * S, "start")
    p = p >> (61 * S, "receive", 900 * S) << ClaimTooHigh(900 * S, 66 * S + 60 * S // DRIFT + S // DRIFT)
    p = p << SignVoucher(Amount(6603))
    p.over()


@pytest.mark.parametrize("last", ["rest", "start"])
def test_what_is_said_of_kernels_after_the_final_claim_moves_nothing(play, last):
    p = play(payer()) >> (0, "start") >> (3 * S, "final", 3 * S) << SignVoucher(Amount(300))
    p = p >> (9 * S, "rest") >> (9 * S, last)
    p = p >> (900 * S, "receive", 900 * S) << ClaimTooHigh(900 * S, 8 * S + 3 * S // DRIFT)
    p = p << SignVoucher(Amount(800))
    p.over()


def test_a_free_kernel_needs_no_vouchers(play):
    (play(payer(rate=Rate(0), cap=0)) >> (0, "start") >> (900 * S, "receive", 900 * S)).over()


def test_a_restored_payer_never_signs_less_than_before(play):
    m = payer()
    m.restore(Amount(5000))
    p = play(m) >> (-40 * S, "start") >> (0, "receive", 30 * S) << SignVoucher(Amount(5000))
    p = p >> (20 * S, "receive", 60 * S) << SignVoucher(Amount(6000))
    p.over()


@pytest.mark.parametrize("claim", [-1, 1.5, True, None])
def test_a_claim_that_is_no_time_is_the_providers_fault(claim):
    m = payer()
    m.start(0)
    with pytest.raises(RemoteProtocolError):
        m.receive(claim, 0)


def test_wrong_steps_are_our_bugs():
    m = payer()
    m.start(0)
    with pytest.raises(LocalProtocolError):
        m.start(0)
    with pytest.raises(LocalProtocolError):
        m.restore(Amount(1))
    with pytest.raises(LocalProtocolError):
        Payer(RATE, 0, Amount(1), arrears_ns=S)
    with pytest.raises(LocalProtocolError):
        Payer(RATE, 2, Amount(1), arrears_ns=1)
