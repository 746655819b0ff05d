"""From the last voucher to the receipt: whatever crashed in between, money moves once and both receipts agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_depin.chain.memory import MemoryLedger
from jupyter_depin.drivers.settlement import collect, confirm
from jupyter_depin.errors import ChainUnreachable, SettlementPending
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet, verify_voucher
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.protocol.market import Offer, Opening, Terms, open_digest
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.voucher import SignedVoucher, Voucher

DEPOSIT = Amount(1_000_000)
NODE = NodeId(b"\4" * 32)


class Party:
    """A lease between two parties with a journal each, on one ledger; `opened` and `voucher` make it progress."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000
        self.open_by = self.now + 60
        self.ledger = MemoryLedger(gift=10 * DEPOSIT, clock=lambda: self.now)
        self.payer, self.key, self.provider = Wallet.generate(), Wallet.generate(), Wallet.generate()
        self.mine, self.theirs = Journal(folder / "payer.sqlite"), Journal(folder / "payee.sqlite")
        asset = self.ledger.asset
        offer = Offer(
            self.provider.address, NODE, bytes(32), asset, Rate(3_600_000), Amount(0), 3600, 5, 30, 60, 1,
            2_000_000, "A card",
        )  # fmt: skip
        self.terms = Terms(
            self.payer.address, self.key.address, self.provider.address, asset.token, Amount(0), offer.rate, 3600,
            bytes(32), bytes(32),
        )  # fmt: skip
        self.id = self.terms.channel_id(asset.domain)
        self.mine.save_lease(
            LeaseRecord.of_payer(
                self.id, self.terms, offer, DEPOSIT, NodeAddress(NODE), self.key, "k", 1, self.open_by
            )
        )
        self.theirs.save_lease(
            LeaseRecord.of_payee(self.id, self.terms, offer, DEPOSIT, NODE, 1, self.open_by)
        )

    async def open(self) -> None:
        domain = self.ledger.asset.domain
        await self.ledger.deposit(self.payer, DEPOSIT)
        signature = self.payer.sign(open_digest(domain, self.id, DEPOSIT, self.open_by))
        await self.ledger.open(self.provider, self.terms, Opening(DEPOSIT, self.open_by, signature))
        self.now += 600

    def pay(self, amount: int, *, heard: bool = True) -> None:
        domain = self.ledger.asset.domain
        voucher = Voucher(self.id, Amount(amount))
        signed = SignedVoucher(voucher, self.key.sign(voucher.digest(domain)))
        verified = verify_voucher(signed, self.key.address, domain)
        self.mine.save_voucher(verified)
        if heard:
            self.theirs.save_voucher(verified)

    def end(self) -> None:
        for journal in (self.mine, self.theirs):
            journal.end(self.id, "stopped_by_user", 600 * 10**9)

    async def collect(self):
        return await collect(self.id, ledger=self.ledger, wallet=self.provider, journal=self.theirs)

    async def confirm(self):
        return await confirm(self.id, ledger=self.ledger, journal=self.mine)


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path)


async def test_both_receipts_and_the_ledger_agree(party):
    await party.open()
    for amount in (100_000, 250_000, 600_000):
        party.pay(amount)
    party.end()
    theirs, mine = await party.collect(), await party.confirm()
    for receipt in (theirs, mine):
        assert receipt.chain_agrees
        assert (receipt.paid, receipt.collected_on_chain, receipt.refunded) == (600_000, 600_000, 400_000)
        assert receipt.vouchers == 3
        assert receipt.served_ns == 600 * 10**9
    assert theirs.transactions == mine.transactions
    assert await party.ledger.balance(party.provider.address) == 10 * DEPOSIT + 600_000
    assert await party.ledger.escrow(party.payer.address) == 400_000
    assert party.theirs.unsettled("payee") == []
    assert party.mine.unsettled("payer") == []


async def test_doing_it_again_changes_nothing(party):
    await party.open()
    party.pay(1000)
    party.end()
    first = await party.collect()
    assert await party.collect() == first
    assert await party.confirm() == await party.confirm()
    assert await party.ledger.balance(party.provider.address) == 10 * DEPOSIT + 1000


async def test_a_crash_between_transaction_and_journal_costs_nothing(party, monkeypatch):
    await party.open()
    party.pay(5000)
    party.end()

    class Crash(Exception):
        pass

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_transaction", crash)
        with pytest.raises(Crash):
            await party.collect()
    assert party.theirs.unsettled("payee")
    receipt = await party.collect()
    assert receipt.chain_agrees
    assert [transaction.kind for transaction in receipt.transactions] == ["settle"]
    assert await party.ledger.balance(party.provider.address) == 10 * DEPOSIT + 5000


async def test_a_crash_before_the_receipt_costs_nothing(party, monkeypatch):
    await party.open()
    party.pay(5000)
    party.end()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_receipt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await party.collect()
    receipt = await party.collect()
    assert len(receipt.transactions) == 1
    assert receipt.collected_on_chain == 5000


async def test_a_ledger_that_does_not_answer_leaves_it_unsettled(party, monkeypatch):
    await party.open()
    party.pay(5000)
    party.end()

    async def away(*_, **__):
        raise ChainUnreachable(url="x")

    with monkeypatch.context() as patch:
        patch.setattr(party.ledger, "settle", away)
        with pytest.raises(ChainUnreachable):
            await party.collect()
    assert [record.channel_id for record in party.theirs.unsettled("payee")] == [party.id]
    assert (await party.collect()).chain_agrees


async def test_a_lease_that_was_never_opened_costs_nobody_anything(party):
    party.end()
    party.now = party.open_by + 1
    for receipt in (await party.collect(), await party.confirm()):
        assert (receipt.paid, receipt.collected_on_chain, receipt.refunded) == (0, 0, 0)
        assert receipt.chain_agrees
        assert receipt.transactions == ()


async def test_while_the_order_holds_nobody_says_that_it_was_never_opened(party):
    """Its transaction may be mined though its sender heard of a failure: the deposit must come back then."""
    party.end()
    party.now = party.open_by
    for settling in (party.collect, party.confirm):
        with pytest.raises(SettlementPending, match="may still be opened"):
            await settling()
    assert party.theirs.receipts() == party.mine.receipts() == []
    await party.open()
    for receipt in (await party.collect(), await party.confirm()):
        assert (receipt.collected_on_chain, receipt.refunded) == (0, DEPOSIT)
        assert receipt.chain_agrees
    assert await party.ledger.escrow(party.payer.address) == DEPOSIT


async def test_an_opening_between_two_questions_is_not_overlooked(party, monkeypatch):
    party.end()
    now = party.ledger.now

    async def meanwhile():
        await party.open()
        return await now()

    monkeypatch.setattr(party.ledger, "now", meanwhile)
    with pytest.raises(SettlementPending, match="not collected"):
        await party.confirm()
    assert (await party.collect()).refunded == DEPOSIT


async def test_a_lease_without_a_voucher_gives_everything_back(party):
    await party.open()
    party.end()
    receipt = await party.collect()
    assert (receipt.paid, receipt.collected_on_chain, receipt.refunded) == (0, 0, DEPOSIT)
    assert receipt.chain_agrees
    assert await party.ledger.escrow(party.payer.address) == DEPOSIT


async def test_the_consumer_waits_for_the_provider(party):
    await party.open()
    party.pay(1)
    party.end()
    with pytest.raises(SettlementPending):
        await party.confirm()
    assert party.mine.unsettled("payer")
    await party.collect()
    assert (await party.confirm()).collected_on_chain == 1


async def test_a_lease_that_nobody_wrote_down_is_not_settled(party, tmp_path):
    await party.open()
    empty = Journal(tmp_path / "empty.sqlite")
    with pytest.raises(SettlementPending):
        await confirm(party.id, ledger=party.ledger, journal=empty)
    with pytest.raises(SettlementPending):
        await collect(party.id, ledger=party.ledger, wallet=party.provider, journal=empty)


async def test_a_voucher_that_never_arrived_shows_in_the_payers_receipt(party):
    await party.open()
    party.pay(1000)
    party.pay(2000, heard=False)
    party.end()
    assert (await party.collect()).chain_agrees
    mine = await party.confirm()
    assert (mine.paid, mine.collected_on_chain, mine.refunded) == (2000, 1000, DEPOSIT - 1000)
    assert not mine.chain_agrees


async def test_a_channel_that_was_closed_from_the_other_side_is_found_closed(party):
    """The payer's own close won the race: nothing is left to collect, and the books say so."""
    await party.open()
    party.pay(1000)
    party.end()
    await party.ledger.request_close(party.payer, party.terms, b"")
    party.ledger.advance(10**6)
    transaction = await party.ledger.finalize(party.payer, party.terms)
    receipt = await party.collect()
    assert (receipt.paid, receipt.collected_on_chain) == (1000, 0)
    assert not receipt.chain_agrees
    assert receipt.transactions[-1].id == transaction
