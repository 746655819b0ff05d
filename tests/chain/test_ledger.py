"""One suite for both ledgers: what payers, providers and bystanders can and cannot do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest

from jupyter_depin.chain import ChannelState, Ledger
from jupyter_depin.chain.memory import SLACK_S
from jupyter_depin.errors import EmptyWallet, TransactionFailed, VouchersSkipped
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.market import Opening, Terms, close_digest, open_digest
from jupyter_depin.protocol.money import NS_PER_SECOND, Amount, Rate, owed
from jupyter_depin.protocol.voucher import Claim, Voucher

RATE = Rate(3_600_000)  # 1000 a second
FEE = Amount(700)
DEPOSIT = Amount(50_000_000)
LENGTH_S = 1800


@dataclass
class Party:
    """A payer with escrow, its voucher key, a provider, and the terms between them."""

    ledger: Ledger
    payer: Wallet
    key: Wallet
    provider: Wallet
    terms: Terms

    @property
    def channel_id(self) -> bytes:
        return self.terms.channel_id(self.ledger.asset.domain)

    async def state(self) -> ChannelState:
        state = await self.ledger.channel(self.channel_id)
        assert state is not None
        return state

    async def opening(
        self, deposit: int = DEPOSIT, valid_s: int = 300, signer: Wallet | None = None
    ) -> Opening:
        open_by = await self.ledger.now() + valid_s
        digest = open_digest(self.ledger.asset.domain, self.channel_id, Amount(deposit), open_by)
        return Opening(Amount(deposit), open_by, (signer or self.payer).sign(digest))

    async def open(self, deposit: int = DEPOSIT) -> None:
        await self.ledger.open(self.provider, self.terms, await self.opening(deposit))

    def claim(self, amount: int, signer: Wallet | None = None) -> Claim:
        digest = Voucher(self.channel_id, Amount(amount)).digest(self.ledger.asset.domain)
        return Claim(self.terms, Amount(amount), (signer or self.key).sign(digest))

    async def settle(self, *claims: Claim, close: bool = False) -> str:
        return await self.ledger.settle(self.provider, claims, close=close)


async def meet(
    world: Any, *, escrow: int = 200_000_000, opened: bool = True, other: Party | None = None
) -> Party:
    payer, provider = await world.wallet(escrow), other.provider if other else await world.wallet()
    key = Wallet.generate()
    terms = Terms(
        payer=payer.address,
        signer=key.address,
        provider=provider.address,
        token=world.ledger.asset.token,
        open_fee=FEE,
        rate=RATE,
        max_seconds=LENGTH_S,
        grant_id=bytes(32),
        lease_hash=os.urandom(32),
    )
    if escrow:
        await world.ledger.deposit(payer, Amount(escrow))
    party = Party(world.ledger, payer, key, provider, terms)
    if opened:
        await party.open()
    return party


# -- escrow


async def test_deposit_and_withdraw_move_money_between_wallet_and_escrow(world):
    async with world() as w:
        alice = await w.wallet(1000)
        await w.ledger.deposit(alice, Amount(600))
        assert (await w.ledger.balance(alice.address), await w.ledger.escrow(alice.address)) == (400, 600)
        await w.ledger.withdraw(alice, Amount(250))
        assert (await w.ledger.balance(alice.address), await w.ledger.escrow(alice.address)) == (650, 350)


async def test_an_empty_wallet_is_told_what_it_holds_and_what_it_needs(world):
    async with world() as w:
        alice = await w.wallet(1_500_000)
        with pytest.raises(EmptyWallet) as empty:
            await w.ledger.deposit(alice, Amount(2_000_001))
        assert empty.value.facts == {"balance": "1.5", "symbol": "DEMO", "needed": "2.000001"}
        await w.ledger.deposit(alice, Amount(1_000_000))
        with pytest.raises(EmptyWallet) as empty:
            await w.ledger.withdraw(alice, Amount(1_200_000))
        assert empty.value.facts == {"balance": "1", "symbol": "DEMO", "needed": "1.2"}


async def test_locked_money_cannot_be_withdrawn(world):
    async with world() as w:
        party = await meet(w)
        with pytest.raises(EmptyWallet):
            await w.ledger.withdraw(party.payer, Amount(200_000_000 - DEPOSIT + 1))
        await w.ledger.withdraw(party.payer, Amount(200_000_000 - DEPOSIT))
        assert await w.ledger.escrow(party.payer.address) == 0


async def test_several_deposits_of_one_wallet_at_once_all_count(world):
    async with world() as w:
        alice = await w.wallet(1000)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(w.ledger.deposit, alice, Amount(200))
        assert await w.ledger.escrow(alice.address) == 800


# -- opening


async def test_opening_locks_the_deposit(world):
    async with world() as w:
        party = await meet(w)
        state = await party.state()
        assert (state.deposit, state.settled, state.closing_at, state.closed) == (DEPOSIT, 0, None, False)
        assert abs(state.opened_at - await w.ledger.now()) < 60
        assert await w.ledger.escrow(party.payer.address) == 200_000_000 - DEPOSIT
        assert await w.ledger.closing(party.channel_id) is None


async def test_a_lease_that_was_never_opened_is_unknown(world):
    async with world() as w:
        party = await meet(w, opened=False)
        assert await w.ledger.channel(party.channel_id) is None
        assert await w.ledger.closing(party.channel_id) is None


async def test_a_lease_opens_once(world):
    async with world() as w:
        party = await meet(w)
        opening = await party.opening()
        with pytest.raises(TransactionFailed, match="opened before"):
            await w.ledger.open(party.provider, party.terms, opening)
        await party.settle(party.claim(0), close=True)
        with pytest.raises(TransactionFailed, match="opened before"):
            await w.ledger.open(party.provider, party.terms, opening)


async def test_a_forged_opening_locks_nothing(world):
    async with world() as w:
        party = await meet(w, opened=False)
        forged = await party.opening(signer=party.provider)
        with pytest.raises(TransactionFailed, match="not signed by 0x" + party.payer.address.hex()):
            await w.ledger.open(party.provider, party.terms, forged)
        raised = replace(await party.opening(deposit=1000), deposit=DEPOSIT)
        with pytest.raises(TransactionFailed, match="not signed"):
            await w.ledger.open(party.provider, party.terms, raised)
        assert await w.ledger.channel(party.channel_id) is None


async def test_a_late_opening_is_refused(world):
    async with world() as w:
        party = await meet(w, opened=False)
        opening = await party.opening(valid_s=60)
        await w.advance(120)
        with pytest.raises(TransactionFailed, match="valid until"):
            await w.ledger.open(party.provider, party.terms, opening)


async def test_an_opening_needs_enough_escrow(world):
    async with world() as w:
        party = await meet(w, escrow=1_000_000, opened=False)
        with pytest.raises(EmptyWallet) as empty:
            await party.open()
        assert empty.value.facts == {"balance": "1", "symbol": "DEMO", "needed": "50"}


@pytest.mark.parametrize(
    "change", [{"max_seconds": 0}, {"signer": bytes(20)}, {"provider": bytes(20)}, {"grant_id": b"g" * 32}]
)
async def test_terms_that_cannot_work_are_refused(world, change):
    async with world() as w:
        party = await meet(w, opened=False)
        party.terms = replace(party.terms, **change)
        with pytest.raises(TransactionFailed):
            await party.open()


async def test_a_deposit_below_the_opening_fee_is_refused(world):
    async with world() as w:
        party = await meet(w, opened=False)
        with pytest.raises(TransactionFailed, match="opening fee"):
            await party.open(deposit=FEE - 1)


# -- settling


async def test_a_voucher_pays_the_provider_and_the_next_one_only_the_difference(world):
    async with world() as w:
        party = await meet(w)
        await party.settle(party.claim(20_000))
        assert await w.ledger.balance(party.provider.address) == 20_000
        await party.settle(party.claim(30_000))
        assert await w.ledger.balance(party.provider.address) == 30_000
        assert (await party.state()).settled == 30_000


async def test_anybody_may_relay_a_settlement_but_only_the_provider_is_paid(world):
    async with world() as w:
        party, stranger = await meet(w), await w.wallet()
        await w.ledger.settle(stranger, [party.claim(20_000)], close=False)
        assert await w.ledger.balance(party.provider.address) == 20_000
        assert await w.ledger.balance(stranger.address) == 0


async def test_a_settlement_cannot_take_more_than_the_time_that_passed(world):
    async with world() as w:
        party = await meet(w)
        await party.settle(party.claim(DEPOSIT))
        got = (await party.state()).settled
        state = await party.state()
        least = FEE + owed(RATE, SLACK_S * NS_PER_SECOND)
        most = least + owed(RATE, (await w.ledger.now() - state.opened_at) * NS_PER_SECOND)
        assert least <= got <= most < DEPOSIT


async def test_time_beyond_the_lease_is_not_paid(world):
    async with world() as w:
        party = await meet(w, opened=False)
        await party.open(deposit=150_000_000)
        await w.advance(LENGTH_S + 3000)
        await party.settle(party.claim(150_000_000))
        assert (await party.state()).settled == FEE + owed(RATE, (LENGTH_S + SLACK_S) * NS_PER_SECOND)


async def test_a_settlement_cannot_take_more_than_the_deposit(world):
    async with world() as w:
        party = await meet(w, opened=False)
        await party.open(deposit=60_000)
        await w.advance(LENGTH_S)
        await party.settle(party.claim(999_999))
        assert await w.ledger.balance(party.provider.address) == 60_000


async def test_the_opening_fee_needs_no_voucher(world):
    async with world() as w:
        party = await meet(w)
        await party.settle(Claim(party.terms, Amount(0)))
        assert await w.ledger.balance(party.provider.address) == FEE


async def test_a_settled_voucher_pays_nothing_the_second_time(world):
    async with world() as w:
        party = await meet(w)
        claim = party.claim(20_000)
        await party.settle(claim, claim)
        await party.settle(claim)
        assert await w.ledger.balance(party.provider.address) == 20_000


@pytest.mark.parametrize("lie", ["other key", "other amount", "cut off", "none", "high s"])
async def test_a_badly_signed_voucher_pays_nothing_and_says_so(world, lie):
    async with world() as w:
        party = await meet(w)
        claim = party.claim(20_000)
        if lie == "other key":
            claim = party.claim(20_000, signer=party.provider)
        elif lie == "other amount":
            claim = replace(claim, amount=Amount(20_001))
        elif lie == "cut off":
            claim = replace(claim, signature=claim.signature[:40])
        elif lie == "none":
            claim = replace(claim, signature=b"")
        else:
            order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
            s = order - int.from_bytes(claim.signature[32:64], "big")
            claim = replace(
                claim,
                signature=claim.signature[:32] + s.to_bytes(32, "big") + bytes([55 - claim.signature[64]]),
            )
        with pytest.raises(VouchersSkipped, match="not signed by the lease's key"):
            await party.settle(claim)
        assert await w.ledger.balance(party.provider.address) == 0


async def test_a_voucher_of_one_lease_pays_nothing_for_another(world):
    async with world() as w:
        party = await meet(w)
        other = await meet(w, other=party)
        moved = replace(party.claim(20_000), terms=replace(other.terms, signer=party.key.address))
        with pytest.raises(VouchersSkipped, match="not open"):
            await party.settle(moved)
        with pytest.raises(VouchersSkipped, match="not signed"):
            await party.settle(replace(party.claim(20_000), terms=other.terms))
        assert await w.ledger.balance(party.provider.address) == 0


async def test_bad_rows_do_not_hold_up_the_good_ones(world):
    async with world() as w:
        good = await meet(w)
        bad, unopened = await meet(w, other=good), await meet(w, opened=False, other=good)
        rows = (bad.claim(20_000, signer=bad.payer), good.claim(30_000), unopened.claim(10_000))
        with pytest.raises(VouchersSkipped, match="skipped 2 of 3"):
            await good.settle(*rows)
        assert await w.ledger.balance(good.provider.address) == 30_000


async def test_a_batch_is_for_one_provider(world):
    async with world() as w:
        one, two = await meet(w), await meet(w)
        with pytest.raises(TransactionFailed, match="one provider"):
            await one.settle(one.claim(1000), two.claim(1000))
        with pytest.raises(TransactionFailed, match="no voucher"):
            await one.settle()


# -- closing


async def test_settle_and_close_pays_refunds_and_tells_how_it_ended(world):
    async with world() as w:
        party = await meet(w)
        before = await party.state()
        transaction = await party.settle(party.claim(45_000), close=True)
        closing = await w.ledger.closing(party.channel_id)
        assert closing is not None
        assert (closing.settled, closing.refunded, closing.transaction) == (
            45_000,
            DEPOSIT - 45_000,
            transaction,
        )
        assert transaction.startswith("0x")
        assert len(transaction) == 66
        state = await party.state()
        assert (state.closed, state.opened_at) == (True, before.opened_at)
        assert await w.ledger.escrow(party.payer.address) == 200_000_000 - 45_000
        assert await w.ledger.balance(party.provider.address) == 45_000


async def test_a_closed_lease_pays_nothing(world):
    async with world() as w:
        party = await meet(w)
        await party.settle(party.claim(10_000), close=True)
        await party.settle(party.claim(10_000))  # all of it was paid: nothing to complain about
        with pytest.raises(VouchersSkipped, match="not open"):
            await party.settle(party.claim(20_000))
        assert await w.ledger.balance(party.provider.address) == 10_000


async def test_only_the_provider_closes_at_once(world):
    async with world() as w:
        party = await meet(w)
        with pytest.raises(TransactionFailed, match="only 0x" + party.provider.address.hex()):
            await w.ledger.settle(party.payer, [party.claim(10)], close=True)
        assert not (await party.state()).closed


async def test_the_voucher_key_starts_the_close_and_the_provider_can_still_redeem(world):
    async with world() as w:
        party, stranger = await meet(w), await w.wallet()
        signature = party.key.sign(close_digest(w.ledger.asset.domain, party.channel_id))
        await w.ledger.request_close(stranger, party.terms, signature)
        closing_at = (await party.state()).closing_at
        assert closing_at is not None
        assert 3500 < closing_at - await w.ledger.now() <= 3600
        with pytest.raises(TransactionFailed, match="requested before"):
            await w.ledger.request_close(stranger, party.terms, signature)
        with pytest.raises(TransactionFailed, match=f"possible from {closing_at}"):
            await w.ledger.finalize(stranger, party.terms)
        await party.settle(party.claim(33_000))
        await w.advance(3600)
        transaction = await w.ledger.finalize(stranger, party.terms)
        closing = await w.ledger.closing(party.channel_id)
        assert closing is not None
        assert (closing.settled, closing.refunded, closing.transaction) == (
            33_000,
            DEPOSIT - 33_000,
            transaction,
        )
        assert await w.ledger.escrow(party.payer.address) == 200_000_000 - 33_000
        with pytest.raises(TransactionFailed, match="not open"):
            await w.ledger.finalize(stranger, party.terms)


async def test_nobody_else_starts_the_close(world):
    async with world() as w:
        party = await meet(w)
        digest = close_digest(w.ledger.asset.domain, party.channel_id)
        with pytest.raises(TransactionFailed, match="not signed"):
            await w.ledger.request_close(party.provider, party.terms, party.provider.sign(digest))
        with pytest.raises(TransactionFailed, match="not signed"):
            await w.ledger.request_close(party.provider, party.terms, b"")
        await w.ledger.request_close(party.payer, party.terms, b"")  # the payer itself needs no signature
        assert (await party.state()).closing_at is not None


async def test_an_abandoned_lease_ends_after_its_settlement_window_and_owes_the_opening_fee(world):
    async with world() as w:
        party = await meet(w)
        await w.advance(LENGTH_S + 7000)
        with pytest.raises(TransactionFailed, match="possible from"):
            await w.ledger.finalize(party.payer, party.terms)
        await w.advance(7200 - 7000)
        await w.ledger.finalize(party.payer, party.terms)
        closing = await w.ledger.closing(party.channel_id)
        assert closing is not None
        assert (closing.settled, closing.refunded) == (FEE, DEPOSIT - FEE)
        assert await w.ledger.escrow(party.provider.address) == FEE
        assert await w.ledger.escrow(party.payer.address) == 200_000_000 - FEE


async def test_a_close_never_takes_longer_than_the_settlement_window(world):
    async with world() as w:
        party = await meet(w)
        await w.advance(LENGTH_S + 7200 - 60)
        await w.ledger.request_close(party.payer, party.terms, b"")
        state = await party.state()
        assert state.closing_at == state.opened_at + LENGTH_S + 7200


async def test_what_is_unopened_cannot_be_closed(world):
    async with world() as w:
        party = await meet(w, opened=False)
        with pytest.raises(TransactionFailed, match="not open"):
            await w.ledger.request_close(party.payer, party.terms, b"")
        with pytest.raises(TransactionFailed, match="not open"):
            await w.ledger.finalize(party.payer, party.terms)


# -- providers


async def test_a_provider_registers_changes_its_node_and_adds_stake(world):
    async with world() as w:
        node, moved = NodeId(os.urandom(32)), NodeId(os.urandom(32))
        provider = await w.wallet(2000)
        assert await w.ledger.provider(provider.address) is None
        await w.ledger.register(provider, node, Amount(600))
        record = await w.ledger.provider(provider.address)
        assert record is not None
        assert (record.node, record.stake, record.active) == (node, 600, True)
        await w.ledger.register(provider, moved, Amount(100))
        record = await w.ledger.provider(provider.address)
        assert record is not None
        assert (record.node, record.stake) == (moved, 700)
        assert await w.ledger.balance(provider.address) == 1300
        assert (await w.ledger.register(provider, moved, Amount(0))).startswith("0x")


async def test_a_registration_needs_the_least_stake_and_the_money_for_it(world):
    async with world() as w:
        provider = await w.wallet(550)
        with pytest.raises(
            TransactionFailed, match=r"A stake of 0\.000499 DEMO is below .* `stake = \"0\.0005\"`"
        ):
            await w.ledger.register(provider, NodeId(b"n" * 32), Amount(499))
        with pytest.raises(EmptyWallet):
            await w.ledger.register(provider, NodeId(b"n" * 32), Amount(551))
        assert await w.ledger.provider(provider.address) is None


async def test_a_node_acts_for_one_provider(world):
    async with world() as w:
        node = NodeId(os.urandom(32))
        first, second = await w.wallet(1000), await w.wallet(1000)
        await w.ledger.register(first, node, Amount(500))
        with pytest.raises(TransactionFailed, match="acts for the provider 0x" + first.address.hex()):
            await w.ledger.register(second, node, Amount(500))
