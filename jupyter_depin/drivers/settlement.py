"""From the last voucher to a receipt on which both sides and the ledger agree. Idempotent: it may be called again.

Every step looks at the ledger first, so that a crash between a transaction and its entry in the journal costs nothing.
"""

from __future__ import annotations

import logging

from jupyter_depin.chain import Closing, Ledger
from jupyter_depin.drivers.clock import unix_ns
from jupyter_depin.errors import SettlementPending
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.receipt import Receipt
from jupyter_depin.protocol.voucher import Claim

log = logging.getLogger(__name__)


async def collect(channel_id: bytes, *, ledger: Ledger, wallet: Wallet, journal: Journal) -> Receipt:
    """Provider: redeem the newest voucher and close the lease. Called at its end and again after failures.

    Raises `ChainUnreachable`, `WrongChain`, `TransactionFailed`, and `SettlementPending` while the lease may still be
    opened; the journal then still says that it is unsettled.
    """
    record = _record(journal, channel_id)
    closing = await ledger.closing(channel_id)
    if closing is None:
        if await _never_opened(record, ledger):
            return _conclude(record, journal, None)
        voucher = journal.voucher(channel_id)
        claim = (
            Claim(record.terms, Amount(0))
            if voucher is None
            else Claim(record.terms, voucher.voucher.amount, voucher.signature)
        )
        transaction = await ledger.settle(wallet, [claim], close=True)
        journal.save_transaction(channel_id, "settle", transaction)
        closing = await ledger.closing(channel_id)
    return _conclude(record, journal, closing)


async def confirm(channel_id: bytes, *, ledger: Ledger, journal: Journal) -> Receipt:
    """Consumer: check on the ledger how the lease was closed. Called once the provider says so, and at recovery.

    Raises `SettlementPending` while it is not closed, and `ChainUnreachable`, `WrongChain`.
    """
    record = _record(journal, channel_id)
    closing = await ledger.closing(channel_id)
    if closing is None and not await _never_opened(record, ledger):
        raise SettlementPending(reason="the provider has not collected yet")
    return _conclude(record, journal, closing)


async def _never_opened(record: LeaseRecord, ledger: Ledger) -> bool:
    """Whether it can no longer be opened either. Raises `SettlementPending` while the payer's order still holds.

    Anybody may relay that order, and a transaction whose sender heard of a failure may be mined all the same.
    """
    if await ledger.channel(record.channel_id) is not None:
        return False
    if await ledger.now() <= record.open_by:
        raise SettlementPending(reason="it may still be opened")
    # Asked again: it may have been opened in time, between the two questions.
    return await ledger.channel(record.channel_id) is None


def _record(journal: Journal, channel_id: bytes) -> LeaseRecord:
    record = journal.lease(channel_id)
    if record is None:
        raise SettlementPending(reason="the journal does not know this rental")
    return record


def _conclude(record: LeaseRecord, journal: Journal, closing: Closing | None) -> Receipt:
    """Write the receipt. Without a closing the lease was never opened on the ledger: nothing was locked or paid."""
    voucher = journal.voucher(record.channel_id)
    paid = voucher.voucher.amount if voucher else Amount(0)
    collected = closing.settled if closing else Amount(0)
    refunded = closing.refunded if closing else Amount(0)
    deposit = record.deposit if closing else Amount(0)
    transactions = journal.transactions(record.channel_id)
    if closing and closing.transaction and closing.transaction not in {t.id for t in transactions}:
        journal.save_transaction(record.channel_id, "settle", closing.transaction)
        transactions = journal.transactions(record.channel_id)
    receipt = Receipt(
        channel_id=record.channel_id,
        title=record.title,
        provider=record.terms.provider,
        node=record.node,
        started_ns=record.started_ns,
        ended_ns=record.ended_ns or unix_ns(),
        served_ns=record.served_ns,
        rate_per_hour=record.terms.rate,
        asset=record.asset,
        vouchers=journal.voucher_count(record.channel_id),
        paid=paid,
        refunded=refunded,
        collected_on_chain=collected,
        transactions=tuple(transactions),
        chain_agrees=collected == paid and collected + refunded == deposit,
    )
    journal.save_receipt(receipt)
    return receipt
