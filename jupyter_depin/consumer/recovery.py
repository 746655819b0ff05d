"""Rentals that a process left unsettled, because it was killed or the network was away, are settled by the next one.

The journal says what was signed. If the provider has collected meanwhile, only the receipt is missing; if it still
serves, the lease is taken up once more and ended properly; if it cannot be reached, the vault is asked to close.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

import anyio

from jupyter_depin.consumer.backend import Backend
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.taking_up import again, kept, over
from jupyter_depin.drivers.clock import unix_ns
from jupyter_depin.drivers.settlement import confirm
from jupyter_depin.errors import DepinError, ProviderGone
from jupyter_depin.journal import LeaseRecord
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.market import close_digest
from jupyter_depin.protocol.money import NS_PER_SECOND

log = logging.getLogger(__name__)

_PROVIDER_S = 10
"""How long a provider may take to answer for a rental that is over anyway."""
_COLLECT_NS = 600 * NS_PER_SECOND
"""How long a provider that answers may take to collect. It can still do so when the vault has been asked to close."""


async def recover(
    backend: Backend,
    on_change: Callable[[Rental], None],
    alive: Callable[[LeaseRecord], bool] = lambda _: False,
    say: Callable[[str], None] | None = None,
    *,
    keeping: bool = False,
) -> int:
    """Settle what can be settled now; returns how many are left. Called at the first rental and by `rentals`.

    `alive`: whether this very process still rents it; such a lease is nobody's to recover. `say` is told
    why each of those that are left is. `keeping`: a kernel that still runs is left for a while to whoever takes it up.
    """
    left = 0
    journal = backend.journal

    def tell(record: LeaseRecord, reason: object) -> None:
        log.info("rental=%s is still not settled: %s", record.channel_id.hex(), reason)
        if say is not None:
            say(f"{record.channel_id.hex()[:16]}  {reason}")

    for record in [*journal.open_leases("payer"), *journal.unsettled("payer")]:
        if alive(record):
            continue
        if keeping and kept(record, backend) and not await over(record.channel_id, backend):
            left += 1
            tell(record, "Its kernel runs, and `jupyter depin attach` takes it up.")
            continue
        if not journal.claim(record.channel_id):
            tell(record, "A running program of yours holds it and will settle it.")
            continue
        try:
            with backend.at_work_on(record.channel_id):
                await _settle(record, backend, on_change)
        except DepinError as error:
            left += 1
            tell(record, error)
            journal.release(record.channel_id)
    return left


async def _settle(record: LeaseRecord, backend: Backend, on_change: Callable[[Rental], None]) -> None:
    ledger, journal = backend.ledger, backend.journal
    try:
        if await ledger.closing(record.channel_id) is not None:
            # Nobody was here when it ended: not before what was served, as far as this side heard of it.
            began = record.ready_ns or record.opened_ns
            journal.end(
                record.channel_id,
                EndReason.PROVIDER_STOPPED.value,
                record.served_ns,
                began + record.served_ns,
            )
        await confirm(record.channel_id, ledger=ledger, journal=journal)
        journal.end(record.channel_id, EndReason.PROVIDER_STOPPED.value, record.served_ns)
        return
    except DepinError as error:
        log.info("rental=%s %s", record.channel_id.hex(), error)
    rental = again(record, backend, on_change, settle_wait_s=_PROVIDER_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rental.run)
        await rental.settle(EndReason.STOPPED_BY_USER)
    if rental.failure is not None:
        ended_ns = record.ended_ns or unix_ns()
        if not rental.reached or unix_ns() - ended_ns > _COLLECT_NS:
            await _close_alone(record, backend)
            return
        raise rental.failure


async def _close_alone(record: LeaseRecord, backend: Backend) -> None:
    """End a lease whose provider does not: the vault gives it time to claim, then the rest comes back.

    Raises `SettlementPending` with the day on which that is, and what the ledger raises.
    """
    ledger, journal, channel_id = backend.ledger, backend.journal, record.channel_id
    state = await ledger.channel(channel_id)
    if state is not None and state.closing_at is None:
        signature = Wallet(record.voucher_key).sign(close_digest(ledger.asset.domain, channel_id))
        transaction = await ledger.request_close(backend.wallet, record.terms, signature)
        journal.save_transaction(channel_id, "request-close", transaction)
        state = await ledger.channel(channel_id)
    if state is not None and state.closing_at is not None:
        if await ledger.now() < state.closing_at:
            raise ProviderGone(
                until=datetime.fromtimestamp(state.closing_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            )
        journal.save_transaction(channel_id, "finalize", await ledger.finalize(backend.wallet, record.terms))
    await confirm(channel_id, ledger=ledger, journal=journal)
