"""The payer's driver against a provider that claims without end: the same claim again costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jupyter_depin.chain.memory import ASSET
from jupyter_depin.drivers import meter
from jupyter_depin.drivers.meter import PayerDriver
from jupyter_depin.errors import JournalUnavailable
from jupyter_depin.keys import Wallet, recover
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.market import Offer
from jupyter_depin.protocol.messages import ServedClaim, VoucherGiven, VoucherNotTaken
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

S = 10**9
LEASE = b"\x01" * 32
OFFER = Offer(
    Wallet(b"\x01" * 32).address, NodeId(b"\4" * 32), bytes(32), ASSET, Rate(3600 * 100), Amount(0), 3600, 5, 15, 60, 1,
    2_000_000, "A card",
)  # fmt: skip


class Books:
    """A journal that notes what is written; `failure` is raised instead."""

    def __init__(self) -> None:
        self.vouchers: list[int] = []
        self.failure: Exception | None = None

    def start(self, channel_id: bytes, ready_ns: int) -> None:
        raise JournalUnavailable(path=Path("x"), reason="full")

    def save_voucher(self, voucher: VerifiedVoucher, served_ns: int = 0) -> None:
        if self.failure is not None:
            raise self.failure
        self.vouchers.append(voucher.voucher.amount)


class Renter:
    """A payer's driver on a clock that stands unless it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr(meter, "steady_ns", lambda: self.now)
        self.key, self.books = Wallet(b"\x02" * 32), Books()
        self.sent: list[VoucherGiven] = []
        self.changes = 0
        books: Any = self.books
        self.driver = PayerDriver(
            offer=OFFER, cap=Amount(10**6), channel_id=LEASE, key=self.key, journal=books,
            send=self.sent.append, on_change=self.changed,
        )  # fmt: skip
        self.driver.start(0)

    def changed(self) -> None:
        self.changes += 1

    def claim(self, seconds: int, times: int = 1) -> None:
        for _ in range(times):
            self.driver.receive(ServedClaim(seconds * S))


@pytest.fixture
def renter(monkeypatch: pytest.MonkeyPatch) -> Renter:
    return Renter(monkeypatch)


def test_a_repeated_claim_is_answered_without_a_signature_or_a_write(renter, monkeypatch):
    renter.now = 5 * S
    renter.claim(5)
    changes = renter.changes
    monkeypatch.setattr(Wallet, "sign", None)
    renter.claim(5, times=1000)
    assert renter.books.vouchers == [500]
    assert renter.changes == changes
    assert renter.sent == [renter.sent[0]] * 1001
    assert recover(Voucher(LEASE, Amount(500)).digest(ASSET.domain), renter.sent[0].signature) == (
        renter.key.address
    )


def test_claims_beyond_the_clock_are_told_once(renter, caplog):
    renter.now = 5 * S
    renter.claim(900, times=1000)
    assert [record.getMessage().count("the provider claims") for record in caplog.records] == [1]
    # What the clock and the tolerance allow, and no more for a thousand claims.
    assert renter.books.vouchers == [1000]
    assert renter.driver.served_ns == 10 * S + 5 * S // 2000


def test_a_voucher_that_could_not_be_written_is_not_sent_the_next_time_either(renter):
    renter.now = 5 * S
    renter.books.failure = JournalUnavailable(path=Path("x"), reason="full")
    for _ in range(2):
        with pytest.raises(JournalUnavailable):
            renter.claim(5)
    assert renter.sent == []
    renter.books.failure = None
    renter.claim(5)
    assert renter.books.vouchers == [500]


def test_the_clock_runs_from_the_first_launch_whether_or_not_it_can_be_written_down(renter):
    renter.now = 10 * S
    renter.claim(10)
    assert renter.books.vouchers == [1000]


def test_a_refusal_is_shown_in_bounds_and_told_once(renter, caplog):
    for i in range(1000):
        renter.driver.receive(VoucherNotTaken(Amount(1), f"{i}\x1b[2J\u202e" + "x" * 10_000))
    assert renter.driver.refused.isprintable()
    assert len(renter.driver.refused) == 200
    (record,) = caplog.records
    assert record.getMessage().isprintable()
