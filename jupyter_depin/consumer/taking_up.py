"""A rental outlives its process: another one takes it up, with the kernel, its variables and its bill.

The journal says which leases have a kernel that runs, and its owner's mark lets one process at a time hold each (ADR 3).
The provider sends the newcomer what the old process had not taken, and then how the kernel stands; only then is it
known that there is anything to be taken up. The kernel's HMAC key stays, for it is the kernel's; the local sockets are
new. While no process holds a rental nobody signs anything: the provider stops the kernel at the arrears limit, and ends
the lease after its grace.

Rejected: to end what a dead process left as soon as another one looks, as for rentals without a running kernel. A
server that crashed would cost its user every variable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace

import anyio

from jupyter_depin.consumer.backend import Backend
from jupyter_depin.consumer.opening import OpenedLease
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.drivers.clock import unix_ns
from jupyter_depin.errors import DepinError, LeaseEnded, NotTakenUp, RentalHeld, RentalNotFound
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.money import NOTHING, NS_PER_SECOND
from jupyter_depin.protocol.reason import SENTENCES
from jupyter_depin.protocol.record import LaunchedKernel, RunningKernel

log = logging.getLogger(__name__)

_LEDGER_S = 5
_SHORTEST_NAME = 4
"""So many hex digits of a rental's id are taken as its name, if no other begins with them."""


only_taking_up: ContextVar[bool] = ContextVar("only_taking_up", default=False)
"""Set while a kernel is put back: what is not there any more is not to be rented anew, for nobody asked for that."""


def named(journal: Journal, name: str) -> RunningKernel:
    """The running kernel of a rental, named by the beginning of its id. Raises `RentalNotFound`."""
    matching = [each for each in journal.running() if each.lease.channel_id.hex().startswith(name.lower())]
    if len(name) < _SHORTEST_NAME or len(matching) != 1:
        raise RentalNotFound(rental=name)
    return matching[0]


def of_kernel(journal: Journal, kernel_id: str) -> RunningKernel | None:
    """What an earlier process left running under a kernel id, if anything. Asked before a kernel is rented."""
    return next((each for each in journal.running() if each.lease.kernel_id == kernel_id), None)


def kept_until_ns(record: LeaseRecord, journal: Journal, keep_s: int) -> int | None:
    """Until when a lease that nobody holds is kept for whoever takes it up (Unix ns).

    None if a process holds it, or if it has no kernel. Asked by a starting server; the time begins when it is first
    asked for.
    """
    since_ns = journal.orphaned_ns(record.channel_id, unix_ns())
    return None if since_ns is None else since_ns + min(keep_s, record.offer.grace_s) * NS_PER_SECOND


def kept(record: LeaseRecord, backend: Backend) -> bool:
    """Whether a lease that nobody holds is left for somebody to take up. Asked by recovery, which else ends it."""
    until_ns = kept_until_ns(record, backend.journal, backend.config.keep_s)
    return until_ns is not None and unix_ns() < until_ns


async def over(channel_id: bytes, backend: Backend) -> bool:
    """Whether the ledger has closed a lease. Asked before it is taken up: what is closed must not be signed for.

    A ledger that does not answer in time says nothing: the provider will.
    """
    with anyio.move_on_after(_LEDGER_S):
        try:
            return await backend.ledger.closing(channel_id) is not None
        except DepinError as error:
            log.info("rental=%s the payment network was not asked: %s", channel_id.hex(), error)
    return False


def again(
    record: LeaseRecord,
    backend: Backend,
    on_change: Callable[[Rental], None],
    *,
    settle_wait_s: int | None = None,
) -> Rental:
    """The rental of a lease that an earlier process opened. The caller has claimed it."""
    voucher = backend.journal.voucher(record.channel_id)
    opened = OpenedLease(
        offer=record.offer,
        deposit=record.deposit,
        channel_id=record.channel_id,
        key=Wallet(record.voucher_key),
        address=record.address,
        paid=voucher.voucher.amount if voucher else NOTHING,
        elapsed_ns=unix_ns() - record.ready_ns if record.ready_ns else 0,
        served_ns=record.served_ns,
    )
    config = backend.config
    return Rental(
        opened=opened,
        config=config if settle_wait_s is None else replace(config, settle_wait_s=settle_wait_s),
        endpoint=backend.endpoint,
        ledger=backend.ledger,
        journal=backend.journal,
        kernel_id=record.kernel_id,
        on_change=on_change,
        recovered=True,
    )


def with_its_key(local: LocalInfo, kernel: LaunchedKernel) -> LocalInfo:
    """New sockets for a kernel that signs with the key it was launched with."""
    return replace(local, key=kernel.key, signature_scheme=kernel.signature_scheme)


def take_up(
    running: RunningKernel, local: LocalInfo, backend: Backend, on_change: Callable[[Rental], None]
) -> Rental:
    """Claim a rental and serve its kernel at `local`, which has the kernel's own key.

    The caller runs it next, and then awaits `settled_in`. Raises `RentalHeld`, `PortInUse`.
    """
    record = running.lease
    if not backend.journal.claim(record.channel_id):
        raise RentalHeld(rental=record.channel_id.hex()[:16])
    rental = again(record, backend, on_change)
    try:
        rental.resume(local, running.kernel)
    except BaseException:
        rental.forget()
        backend.journal.release(record.channel_id)
        raise
    return rental


async def settled_in(rental: Rental, patience_s: float) -> None:
    """Wait until the provider has said that the kernel runs.

    Raises `LeaseEnded` (the rental settles itself) and, if nobody answers, `NotTakenUp`: then, or if the caller gives up
    meanwhile, it is let go as it was.
    """
    try:
        with anyio.move_on_after(patience_s):
            await rental.stands.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await rental.leave()
        raise
    if rental.reason is not None:
        raise LeaseEnded(reason=SENTENCES[rental.reason])
    if not rental.stands.is_set():
        await rental.leave()
        raise NotTakenUp(rental=rental.channel_id.hex()[:16])
