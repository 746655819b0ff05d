"""From a ticket to an opened lease: look at the offers, lock the deposit, get the promise, sign, open.

Nothing is signed before the offer was checked, and nothing is locked before a slot is promised.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from jupyter_depin.chain import Ledger
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.offers import ranked
from jupyter_depin.drivers.clock import unix_now, unix_ns
from jupyter_depin.drivers.handshake import ask
from jupyter_depin.errors import (
    BadTicket,
    ConfigError,
    ConnectionLost,
    EmptyWallet,
    LeaseError,
    LeaseRefused,
    LimitTooLow,
    NoFreeSlot,
    RemoteProtocolError,
    TransportError,
    UnknownProvider,
    WrongAddress,
)
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet, recover
from jupyter_depin.protocol.frames import VERSION
from jupyter_depin.protocol.identity import NodeAddress, NodeId, Signer, Ticket, checksummed
from jupyter_depin.protocol.market import Lease, Offer, Opening, Terms, open_digest
from jupyter_depin.protocol.messages import (
    AskLease,
    AskOffers,
    AttachTunnel,
    LeaseGiven,
    LeaseOpened,
    OffersGiven,
    OpenLease,
)
from jupyter_depin.protocol.money import (
    NOTHING,
    NS_PER_SECOND,
    Amount,
    Rate,
    format_amount,
    owed,
    parse_amount,
)
from jupyter_depin.protocol.voucher import attach_digest
from jupyter_depin.transport import Connection, Endpoint, Stream

log = logging.getLogger(__name__)

_ANOTHER_MAY = (TransportError, LeaseError, RemoteProtocolError, BadTicket, EmptyWallet, LimitTooLow)
"""What one provider fails with, and the next one may not."""
_ANSWER_S = 15
_PROMISE_S = 120
"""The longest promise that is taken: our order to lock the deposit holds as long as it does, and then `_OPEN_S`."""
_OPEN_S = 150
"""The provider waits for the ledger before it answers an opening: up to 120 s for a transaction's receipt (`EvmLedger`),
and some questions before. Whoever left sooner would lock a second deposit elsewhere while the first is being locked."""


@dataclass(frozen=True)
class OpenedLease:
    """A lease whose channel is open. `link`: the connection it was made on, to attach the tunnel to.

    `paid`, `served_ns` and `elapsed_ns` (since the kernel became ready) are set for a lease taken up again from the
    journal.
    """

    offer: Offer
    deposit: Amount
    channel_id: bytes
    key: Wallet
    address: NodeAddress
    link: tuple[Connection, Stream] | None = None
    paid: Amount = NOTHING
    elapsed_ns: int = 0
    served_ns: int = 0

    def attach(self, node: NodeId, *, memory: bytes) -> AttachTunnel:
        """The request that joins a connection of `node`, this process's own, to the lease's tunnel."""
        digest = attach_digest(self.offer.asset.domain, self.channel_id, node)
        return AttachTunnel(self.channel_id, self.key.sign(digest), memory)


async def open_lease(
    config: ConsumerConfig,
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    wallet: Signer,
    journal: Journal,
    purse: anyio.Lock,
    kernel_id: str,
) -> OpenedLease:
    """Rent from the first provider that will. Called by the runtime. Raises why the last one would not.

    `purse` is held from the look at the wallet until the deposit is locked: two rentals may not count on the same money.
    """
    if not config.tickets:
        raise ConfigError(detail="no provider is known; add a ticket to config.toml or to the kernel spec")
    failure: Exception | None = None
    for text in config.tickets:
        try:
            return await _open_at(
                Ticket.parse(text), config, endpoint=endpoint, ledger=ledger, wallet=wallet, journal=journal,
                purse=purse, kernel_id=kernel_id,
            )  # fmt: skip
        except _ANOTHER_MAY as error:
            log.info("%s", error)
            failure = error
    assert failure is not None
    raise failure


async def _open_at(
    ticket: Ticket,
    config: ConsumerConfig,
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    wallet: Signer,
    journal: Journal,
    purse: anyio.Lock,
    kernel_id: str,
) -> OpenedLease:
    connection = await endpoint.connect(ticket.address)
    try:
        if connection.peer != ticket.address.node:
            raise WrongAddress(found=connection.peer.hex(), expected=ticket.address.node.hex())
        control = await connection.open_stream()
        asset = ledger.asset
        cap = Rate(parse_amount(config.max_rate_per_hour, asset.decimals))
        with _patience(_ANSWER_S):
            given = await ask(control, AskOffers(VERSION), OffersGiven)
        offers = ranked(
            given.offers, ticket=ticket, node=connection.peer, asset=asset, cap=cap, now=unix_now()
        )
        await _check_registered(ledger, ticket)
        key = Wallet.generate()
        offer, lease = await _promised(control, offers, key, config)
        deposit = _deposit(offer, lease, config)
        terms = Terms(
            payer=wallet.address,
            signer=key.address,
            provider=offer.provider,
            token=asset.token,
            open_fee=offer.open_fee,
            rate=offer.rate,
            max_seconds=lease.max_seconds,
            grant_id=bytes(32),
            lease_hash=lease.digest(asset.domain),
        )
        channel_id = terms.channel_id(asset.domain)
        open_by = lease.accept_by + _OPEN_S
        opening = Opening(
            deposit, open_by, wallet.sign(open_digest(asset.domain, channel_id, deposit, open_by))
        )
        async with purse:
            await _fund(ledger, wallet, deposit)
            journal.save_lease(
                LeaseRecord.of_payer(
                    channel_id, terms, offer, deposit, ticket.address, key, kernel_id, unix_ns(), open_by
                )
            )
            with _patience(_OPEN_S):
                opened = await ask(control, OpenLease(terms, opening), LeaseOpened)
        if await ledger.channel(channel_id) is None:
            raise LeaseRefused(reason="it says that the deposit is locked, but the payment network does not")
        journal.save_transaction(channel_id, "open", opened.transaction)
        return OpenedLease(offer, deposit, channel_id, key, ticket.address, (connection, control))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await connection.close("no deal")
        raise


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionLost(detail=f"no answer for {seconds:.0f} s") from error


async def _check_registered(ledger: Ledger, ticket: Ticket) -> None:
    record = await ledger.provider(ticket.provider)
    if record is None or not record.active:
        raise UnknownProvider(provider=checksummed(ticket.provider))
    if record.node != ticket.address.node:
        raise WrongAddress(found=ticket.address.node.hex(), expected=record.node.hex())


async def _promised(
    control: Stream, offers: list[Offer], key: Wallet, config: ConsumerConfig
) -> tuple[Offer, Lease]:
    failure: NoFreeSlot | None = None
    for offer in offers:
        request = AskLease(
            offer.digest(), key.address, min(config.max_seconds, offer.max_seconds), secrets.token_bytes(32)
        )
        try:
            with _patience(_ANSWER_S):
                given = await ask(control, request, LeaseGiven)
        except NoFreeSlot as error:
            failure = error
            continue
        lease = given.lease
        asked = (request.offer, offer.provider, offer.slot, key.address)
        if (lease.offer, lease.provider, lease.slot, lease.consumer) != asked or not (
            0 < lease.max_seconds <= request.max_seconds
        ):
            raise LeaseRefused(reason="it promised something else than was asked for")
        if lease.accept_by > unix_now() + _PROMISE_S:
            # A date of the provider's choosing would let it lock the deposit long after we have gone elsewhere.
            raise LeaseRefused(
                reason=f"its promise holds for more than {_PROMISE_S} s, or its clock is ahead"
            )
        if recover(lease.digest(offer.asset.domain), given.signature) != offer.provider:
            raise LeaseRefused(reason="its promise is not signed by its wallet")
        return offer, lease
    assert failure is not None
    raise failure


def _deposit(offer: Offer, lease: Lease, config: ConsumerConfig) -> Amount:
    whole = owed(offer.rate, lease.max_seconds * NS_PER_SECOND)
    least = max(1, owed(offer.rate, offer.arrears_s * NS_PER_SECOND), offer.open_fee)
    limit = parse_amount(config.max_spend, offer.asset.decimals)
    if limit < least:
        raise LimitTooLow(
            cap=config.max_spend,
            symbol=offer.asset.symbol,
            needed=format_amount(least, offer.asset.decimals),
        )
    return Amount(max(least, min(whole, limit)))


async def _fund(ledger: Ledger, wallet: Signer, deposit: Amount) -> None:
    """Bring the escrow up to the deposit from the wallet. Raises `EmptyWallet`."""
    asset = ledger.asset
    free = await ledger.escrow(wallet.address)
    if free >= deposit:
        return
    missing = Amount(deposit - free)
    balance = await ledger.balance(wallet.address)
    if balance < missing:
        raise EmptyWallet(
            balance=format_amount(balance + free, asset.decimals),
            symbol=asset.symbol,
            needed=format_amount(deposit, asset.decimals),
        )
    await ledger.deposit(wallet, missing)
