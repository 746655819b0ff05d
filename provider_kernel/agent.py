"""The lending daemon: makes offers, opens leases, keeps tenancies, collects what they earned.

Nothing is spent on a stranger before it is known that the lease is paid for: offers are signed once and kept, a
promised slot lapses by itself, and a kernel starts only after the channel is open on the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil

import anyio
from anyio.abc import TaskGroup

from jupyter_depin.chain import Ledger
from jupyter_depin.drivers.clock import unix_now, unix_ns
from jupyter_depin.drivers.handshake import answer, outward, questions, refusal
from jupyter_depin.errors import (
    DepinError,
    EmptyWallet,
    LeaseRefused,
    NoFreeSlot,
    OfferExpired,
    PromiseLapsed,
    RemoteProtocolError,
    StrangersRefused,
    TransportError,
    UnknownLease,
)
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet, recover
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import VERSION
from jupyter_depin.protocol.identity import NodeId, Ticket
from jupyter_depin.protocol.market import Lease, Offer, Opening, Terms, open_digest
from jupyter_depin.protocol.messages import (
    Answer,
    AskLease,
    AskOffers,
    Attached,
    AttachTunnel,
    LeaseGiven,
    LeaseOpened,
    OffersGiven,
    OpenLease,
    Request,
)
from jupyter_depin.protocol.money import NS_PER_SECOND, format_amount, owed
from jupyter_depin.protocol.voucher import attach_digest
from jupyter_depin.transport import Connection, Endpoint, Stream
from jupyter_depin.transport.alone import alone
from provider_kernel.collector import Collector
from provider_kernel.config import ProviderConfig
from provider_kernel.farewells import Farewells
from provider_kernel.observer import receive
from provider_kernel.offers import OfferBook
from provider_kernel.output import OutputJournals
from provider_kernel.sandbox import Sandbox
from provider_kernel.tenancy import Tenancy
from provider_kernel.visitors import HANDSHAKE_S, Promise, Visitor, Visitors

log = logging.getLogger(__name__)

PROMISE_S = 60
"""How long a slot is kept for somebody who was promised it."""
_LONGEST_ORDER_S = 900
"""An opening that failed is kept in mind until its order no longer holds, so nobody may order for years ahead."""
_WIND_DOWN_S = 20
_GOODBYE_S = 2


class Agent:
    """One provider on one node. `run()` serves until `stop()`; then every lease is ended and settled."""

    def __init__(
        self,
        *,
        config: ProviderConfig,
        endpoint: Endpoint,
        ledger: Ledger,
        wallet: Wallet,
        journal: Journal,
        sandbox: Sandbox,
        trusted: frozenset[NodeId] = frozenset(),
    ) -> None:
        self._config, self._endpoint, self._ledger = config, endpoint, ledger
        self._wallet, self._journal, self._sandbox = wallet, journal, sandbox
        self._trusted, self._payers = trusted, config.welcome_payers
        self._offers = OfferBook(config, endpoint.node, ledger.asset, wallet, sandbox)
        self._slots: list[Tenancy | Promise | None] = [None] * config.slots
        self._promises: dict[bytes, Promise] = {}
        self._visitors = Visitors()
        self._tenancies: dict[bytes, Tenancy] = {}
        self._farewells = Farewells()
        self._outputs = OutputJournals(config.output_root, *config.output_room)
        self._opening: set[bytes] = set()
        self._collector = Collector(ledger, wallet, journal, self._tenancies, self._serves)
        self._stopping = anyio.Event()

    @property
    def ticket(self) -> Ticket:
        """What a consumer needs to reach this agent."""
        return Ticket(self._endpoint.address(), self._wallet.address, self._config.observing)

    async def run(self) -> None:
        """Serve until `stop`, then end and settle every lease. Called once by the command line."""
        self._recover()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._collector.run)
            tasks.start_soon(receive, self._endpoint, tasks, self._serve)
            await self._stopping.wait()
            for tenancy in self._tenancies.values():
                tenancy.end(EndReason.PROVIDER_STOPPED)
            with anyio.move_on_after(_WIND_DOWN_S):
                for tenancy in list(self._tenancies.values()):
                    await tenancy.finished.wait()
                    await tenancy.heard(_GOODBYE_S)
            tasks.cancel_scope.cancel()
        await self._endpoint.close()

    def stop(self) -> None:
        """End every lease and leave. Called from the loop, on a signal."""
        self._stopping.set()

    # -- one connection

    async def _serve(self, connection: Connection, tasks: TaskGroup) -> None:
        visitor = Visitor(connection.peer, anyio.CancelScope())
        try:
            with visitor.scope:
                self._admit(visitor)
                await self._converse(visitor, connection, tasks)
        except TimeoutError:
            log.debug("a visitor took too long")
        except TransportError as error:
            log.debug("a consumer left: %s", error)
        except DepinError as error:
            log.info("a consumer was sent away: %s", error)
            await connection.close(str(outward(error)))
        except Exception:
            # Other people's kernels run here: whatever one connection brings up, it ends that connection alone.
            log.exception("a connection failed")
        finally:
            self._leave(visitor)
            with anyio.CancelScope(shield=True):
                await connection.close("over")

    async def _converse(self, visitor: Visitor, connection: Connection, tasks: TaskGroup) -> None:
        with anyio.fail_after(HANDSHAKE_S):
            control = await connection.accept_stream()
        requests = questions(control)
        while True:
            with anyio.fail_after(visitor.patience(unix_now())):
                request = await alone(connection, anext(requests, None))
            if request is None:
                return
            visitor.asks()
            if isinstance(request, AttachTunnel):
                with anyio.fail_after(HANDSHAKE_S):
                    tenancy = await self._attach(request, connection, control)
                if tenancy is not None:
                    self._leave(visitor)
                    await tenancy.carry(connection, control, request.memory)
                else:
                    # What it says next is a tunnel's. It hangs up when it has read why not.
                    with anyio.move_on_after(HANDSHAKE_S):
                        await alone(connection, connection.closed())
                return
            reply: Answer
            try:
                reply = await self._answer(request, visitor, tasks)
            except (TransportError, RemoteProtocolError):
                raise
            except DepinError as error:
                log.info("refused %s: %s", type(request).__name__, error)
                reply = refusal(error)
            with anyio.fail_after(HANDSHAKE_S):
                await answer(control, reply)

    def _admit(self, visitor: Visitor) -> None:
        """Let a visitor in, and show another one out where there are too many."""
        leaving = self._visitors.admit(visitor)
        if leaving is not None:
            leaving.scope.cancel()
            self._leave(leaving)

    def _leave(self, visitor: Visitor) -> None:
        """It is no visitor any more: it has gone, or has a lease. May be called twice."""
        self._visitors.leave(visitor)
        self._withdraw(visitor)

    def _withdraw(self, visitor: Visitor) -> None:
        """Take back what it was promised, unless somebody is just having that opened."""
        promise, visitor.promise = visitor.promise, None
        if promise is not None and not promise.opening and self._slots[promise.slot] is promise:
            self._slots[promise.slot] = None
            self._promises = {d: p for d, p in self._promises.items() if p is not promise}

    async def _answer(
        self, request: Request, visitor: Visitor, tasks: TaskGroup
    ) -> OffersGiven | LeaseGiven | LeaseOpened:
        match request:
            case AskOffers():
                if request.version != VERSION:
                    raise LeaseRefused(reason=f"it speaks version {VERSION}, you speak {request.version}")
                return OffersGiven(self._offers.few(unix_now(), self._taken))
            case AskLease():
                return self._promise(request, visitor)
            case OpenLease():
                return await self._open(request, visitor, tasks)
            case AttachTunnel():
                raise RemoteProtocolError(detail="attach twice")

    def _anybody(self, peer: NodeId) -> bool:
        """Whether a node is welcome, whoever pays for it."""
        return (
            peer in self._trusted
            or self._sandbox.name != "none"
            or self._config.accept_strangers_without_a_sandbox
        )

    def _promise(self, request: AskLease, visitor: Visitor) -> LeaseGiven:
        if self._stopping.is_set():
            raise LeaseRefused(reason="it is about to stop")
        # Who pays is known only when the lease is opened.
        if not self._anybody(visitor.peer) and not self._payers:
            raise StrangersRefused
        self._withdraw(visitor)
        offer = self._offers.known(request.offer)
        now = unix_now()
        if offer is None or offer.expires <= now:
            raise OfferExpired(ago=f"{now - offer.expires} s" if offer else "some time")
        slot = self._free_slot(offer, now)
        lease = Lease(
            offer=request.offer,
            provider=self._wallet.address,
            slot=offer.slot,
            consumer=request.consumer,
            max_seconds=min(request.max_seconds, offer.max_seconds),
            accept_by=now + PROMISE_S,
            salt=secrets.token_bytes(32),
        )
        digest = lease.digest(self._ledger.asset.domain)
        promise = Promise(lease, offer, slot)
        self._slots[slot] = promise
        self._promises[digest] = visitor.promise = promise
        return LeaseGiven(lease, self._wallet.sign(digest))

    def _taken(self, slot: int) -> bool:
        holder = self._slots[slot]
        if isinstance(holder, Promise):
            return not holder.lapsed(unix_now())
        return holder is not None and not holder.slot_free.is_set()

    def _free_slot(self, offer: Offer, now: int) -> int:
        slot = self._offers.slot(offer)
        if self._taken(slot):
            raise NoFreeSlot(slots=len(self._slots))
        self._promises = {d: p for d, p in self._promises.items() if not p.lapsed(now)}
        return slot

    async def _open(self, request: OpenLease, visitor: Visitor, tasks: TaskGroup) -> LeaseOpened:
        terms, opening, peer = request.terms, request.opening, visitor.peer
        domain = self._ledger.asset.domain
        if self._stopping.is_set():
            raise LeaseRefused(reason="it is about to stop")
        promise = self._promises.get(terms.lease_hash)
        if promise is None or promise.lapsed(unix_now()):
            raise PromiseLapsed
        agreed = Terms(
            payer=terms.payer,
            signer=promise.lease.consumer,
            provider=self._wallet.address,
            token=self._ledger.asset.token,
            open_fee=promise.offer.open_fee,
            rate=promise.offer.rate,
            max_seconds=promise.lease.max_seconds,
            grant_id=bytes(32),
            lease_hash=terms.lease_hash,
        )
        if terms != agreed:
            raise LeaseRefused(reason="the terms are not those that were promised")
        needed = owed(terms.rate, promise.offer.arrears_s * NS_PER_SECOND)
        if opening.deposit < needed:
            asset = self._ledger.asset
            least = f"{format_amount(needed, asset.decimals)} {asset.symbol}"
            raise LeaseRefused(
                reason=f"a deposit of {format_amount(opening.deposit, asset.decimals)} {asset.symbol} does not cover"
                f" the {least} that may be owed before the kernel is paused"
            )
        channel_id = terms.channel_id(domain)
        if (
            recover(open_digest(domain, channel_id, opening.deposit, opening.open_by), opening.signature)
            != terms.payer
        ):
            raise LeaseRefused(reason="the payer did not sign this opening")
        if not self._anybody(peer) and terms.payer not in self._payers:
            self._withdraw(visitor)
            raise StrangersRefused
        if opening.open_by > unix_now() + _LONGEST_ORDER_S:
            raise LeaseRefused(reason=f"the order to open holds for more than {_LONGEST_ORDER_S} s")
        if promise.opening:
            raise LeaseRefused(reason="this lease is being opened already")
        promise.opening = True
        self._opening.add(channel_id)
        try:
            transaction = await self._lock(channel_id, terms, promise, opening, peer)
        finally:
            promise.opening = False
            self._opening.discard(channel_id)
        self._promises.pop(terms.lease_hash, None)
        tenancy = Tenancy(
            channel_id=channel_id,
            terms=terms,
            deposit=opening.deposit,
            offer=promise.offer,
            sandbox=self._sandbox,
            limits=self._config.limits,
            folder=self._config.kernel_folder(channel_id),
            journal=self._journal,
            collect=self._collector.collect,
            trusted=peer in self._trusted,
            backlog=self._outputs.of(channel_id),
            thrift=self._config.thrift,
        )
        self._slots[promise.slot] = tenancy
        self._tenancies[channel_id] = tenancy
        tasks.start_soon(self._keep, tenancy)
        try:
            self._journal.save_transaction(channel_id, "open", transaction)
        except DepinError as error:
            # Only the receipt lacks it; the money is locked, and the renter shall have a kernel for it.
            log.warning("lease=%s %s", channel_id.hex(), error)
        return LeaseOpened(transaction)

    async def _lock(
        self, channel_id: bytes, terms: Terms, promise: Promise, opening: Opening, peer: NodeId
    ) -> str:
        """Have the deposit locked. Journalled first, for whatever becomes of the transaction must be found again."""
        free = await self._ledger.escrow(terms.payer)
        if free < opening.deposit:
            asset = self._ledger.asset
            raise EmptyWallet(
                balance=format_amount(free, asset.decimals),
                symbol=asset.symbol,
                needed=format_amount(opening.deposit, asset.decimals),
            )
        self._journal.save_lease(
            LeaseRecord.of_payee(
                channel_id, terms, promise.offer, opening.deposit, peer, unix_ns(), opening.open_by
            )
        )
        try:
            return await self._ledger.open(self._wallet, terms, opening)
        except BaseException:
            # It may be on its way all the same: the collector asks the ledger, and gives the deposit back.
            with contextlib.suppress(DepinError):
                self._journal.end(channel_id, EndReason.START_FAILED.value, 0)
            self._promises.pop(terms.lease_hash, None)
            self._slots[promise.slot] = None
            self._collector.wake()
            raise

    async def _attach(self, request: AttachTunnel, connection: Connection, control: Stream) -> Tenancy | None:
        tenancy = self._tenancies.get(request.channel_id)
        try:
            if tenancy is None:
                raise UnknownLease
            digest = attach_digest(self._ledger.asset.domain, request.channel_id, connection.peer)
            if recover(digest, request.signature) != tenancy.terms.signer:
                raise LeaseRefused(reason="this node has no right to the lease")
        except DepinError as error:
            await answer(control, refusal(error))
            return None
        await answer(control, Attached())
        return tenancy

    # -- tenancies and money

    async def _keep(self, tenancy: Tenancy) -> None:
        try:
            await tenancy.run()
        except Exception:
            log.exception("lease=%s failed", tenancy.channel_id.hex())
            self._collector.wake()
        await self._farewells.say(tenancy)
        self._tenancies.pop(tenancy.channel_id, None)
        self._collector.wake()

    def _serves(self, channel_id: bytes) -> bool:
        return channel_id in self._tenancies or channel_id in self._opening

    def _recover(self) -> None:
        """Leases that an earlier life of this agent served are over: their kernels died with it."""
        for record in self._journal.open_leases("payee"):
            self._journal.end(record.channel_id, EndReason.PROVIDER_LOST_KERNEL.value, record.served_ns)
        shutil.rmtree(self._config.kernel_root, ignore_errors=True)
        self._outputs.clear()
