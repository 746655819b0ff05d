"""The agent against honest renters, poor ones and liars: one sentence each, nothing spent, and it serves on."""

from __future__ import annotations

import contextlib
import secrets
import signal
from dataclasses import replace

import anyio
import msgspec
import pytest

from jupyter_depin.consumer import opening as opening_module
from jupyter_depin.drivers.handshake import ask
from jupyter_depin.errors import (
    ChainUnreachable,
    ConfigError,
    ConnectionLost,
    DamagedJournal,
    DepinError,
    EmptyWallet,
    JournalUnavailable,
    LeaseRefused,
    MachineTrouble,
    NoFreeSlot,
    OfferExpired,
    OtherNetwork,
    PeerUnreachable,
    PromiseLapsed,
    RateAboveCap,
    StrangersRefused,
    TransactionFailed,
    TransportError,
    UnknownLease,
    UnknownProvider,
    WrongAddress,
)
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import VERSION, Lane, encode_message
from jupyter_depin.protocol.identity import Address, Ticket, checksummed
from jupyter_depin.protocol.market import Opening, Terms, open_digest
from jupyter_depin.protocol.messages import (
    AskLease,
    AskOffers,
    Attached,
    AttachTunnel,
    Launch,
    LeaseGiven,
    LeaseOpened,
    OffersGiven,
    OpenLease,
    Signal,
    VoucherGiven,
    encode,
)
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.voucher import Voucher, attach_digest
from provider_kernel import output as output_module
from provider_kernel import tenancy as tenancy_module
from tests.consumer.world import GIFT, PER_SECOND

# -- refusals: each has its one sentence, and nothing is spent


async def test_an_unregistered_provider_is_refused(world):
    async with world() as w:
        await w.start_agent(register=False)
        assert "not registered on this chain" in await w.refused(UnknownProvider)


async def test_a_ticket_with_another_wallet_is_refused(world):
    async with world() as w:
        agent = await w.start_agent()
        stranger = Wallet.generate()
        await w.ledger.register(stranger, w.network.endpoint("x").node, Amount(0))
        forged = Ticket(agent.ticket.address, stranger.address)
        assert "not 0x" in await w.refused(WrongAddress, tickets=(str(forged),))


async def test_a_provider_whose_registered_node_is_another_is_refused(world):
    async with world() as w:
        await w.start_agent()
        await w.ledger.register(w.provider, w.network.endpoint("moved away").node, Amount(0))
        await w.refused(WrongAddress)


async def test_an_offer_signed_by_another_is_refused(world):
    async with world() as w:
        agent = await w.start_agent()
        forger = Wallet.generate()
        book = agent._offers
        current = book.current
        book.current = lambda now: tuple(
            replace_signature(signed, forger.sign(signed.offer.digest())) for signed in current(now)
        )
        await w.refused(WrongAddress)
        book.current = lambda now: tuple(replace_signature(signed, b"junk") for signed in current(now))
        await w.refused(DepinError)


async def changed_offers(w, agent, **changes):
    """The agent's offers, changed and honestly signed."""
    book = agent._offers
    current = book.current

    def offers(now):
        changed = []
        for signed in current(now):
            offer = replace(signed.offer, **changes)
            book._known[offer.digest()] = offer
            changed.append(type(signed)(offer, w.provider.sign(offer.digest())))
        return tuple(changed)

    book.current = offers


async def test_an_offer_of_another_node_is_refused(world):
    async with world() as w:
        await changed_offers(w, await w.start_agent(), node=w.network.endpoint("elsewhere").node)
        await w.refused(WrongAddress)


async def test_an_expired_offer_is_refused(world):
    async with world() as w:
        await changed_offers(w, await w.start_agent(), expires=w.clock.unix_now() - 7)
        assert "ended 7 s ago" in await w.refused(OfferExpired)


async def test_an_offer_on_another_chain_is_refused(world):
    async with world() as w:
        await changed_offers(w, await w.start_agent(), asset=replace(w.ledger.asset, chain_id=1))
        assert "chain 1" in await w.refused(OtherNetwork)


async def test_a_rate_above_the_limit_is_refused(world):
    async with world() as w:
        await w.start_agent()
        sentence = await w.refused(RateAboveCap, max_rate_per_hour="3.599999")
        assert "costs 3.6 DEMO per hour, above your limit of 3.599999 DEMO" in sentence


async def test_a_fee_for_opening_is_refused(world):
    """It could be the whole deposit, and the meters know nothing of it."""
    async with world() as w:
        await changed_offers(w, await w.start_agent(), open_fee=Amount(1))
        assert "fee" in await w.refused(LeaseRefused)


async def test_an_empty_wallet_is_refused_before_anything_is_promised(world):
    async with world() as w:
        await w.start_agent()
        poor = Wallet.generate()
        w.ledger._wallets[poor.address] = 5
        sentence = await w.refused(EmptyWallet, wallet=poor)
        assert "0.000005 DEMO" in sentence


async def test_a_limit_below_the_least_deposit_is_refused(world):
    async with world() as w:
        await w.start_agent()
        await w.refused(DepinError, max_spend="0.000001")


async def test_a_full_provider_is_busy_and_the_next_ticket_is_asked(world):
    async with world() as w:
        await w.start_agent()
        for _ in range(2):
            await w.open()
        with pytest.raises(NoFreeSlot, match="all 2 of its places"):
            await w.open()
        other = Wallet.generate()
        second = await w.start_agent(
            node="other", wallet=other, journal=Journal(w.folder / "other.sqlite"), register=False
        )
        await w.ledger.register(other, second.ticket.address.node, Amount(0))
        assert (await w.open()).offer.provider == other.address


async def test_strangers_are_refused_where_there_is_no_sandbox(world):
    async with world() as w:
        w.sandbox.name = "none"
        await w.start_agent()
        assert "without a sandbox" in await w.refused(StrangersRefused)


async def test_friends_are_not_and_may_choose_the_command(world):
    async with world() as w:
        w.sandbox.name = "none"
        await w.start_agent(trusted=frozenset([w.endpoint.node]))
        rental = await w.rent()
        await rental.launch(w.local(), env={}, argv=("julia", "{connection_file}"), cwd="/data")
        assert w.sandbox.kernels[0].command.argv == ("julia", "{connection_file}")
        assert w.sandbox.kernels[0].command.cwd == "/data"


async def test_a_stranger_may_not_choose_the_command(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        await rental.launch(w.local(), env={}, argv=("sh", "-c", "mine"), cwd="/")
        assert w.sandbox.kernels[0].command.argv is None
        assert w.sandbox.kernels[0].command.cwd is None


async def test_nobody_at_the_address(world):
    async with world() as w:
        agent = await w.start_agent()
        gone = Ticket(replace(agent.ticket.address, node=w.network.endpoint("x").node), agent.ticket.provider)
        await w.network.endpoint("x").close()
        await w.refused(PeerUnreachable, tickets=(str(gone),))
        # The other one is asked then.
        assert await w.open(tickets=(str(gone), str(agent.ticket)))


async def test_without_a_ticket_the_sentence_says_what_to_do(world):
    async with world() as w:
        assert "ticket" in await w.refused(ConfigError, tickets=())


async def test_an_agent_that_stops_promises_nothing(world):
    async with world() as w:
        agent = await w.start_agent()
        # It has begun to stop and still waits for others.
        agent._stopping = anyio.Event()
        agent._stopping.set()
        assert "about to stop" in await w.refused(LeaseRefused)


async def test_a_provider_of_another_version_says_so(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        monkeypatch.setattr(opening_module, "VERSION", 99)
        assert "version" in await w.refused(LeaseRefused)


async def test_a_provider_that_only_says_it_opened_is_not_believed(world, monkeypatch):
    async with world() as w:
        await w.start_agent()

        async def nothing(*_):
            return "0x00"

        monkeypatch.setattr(w.ledger, "open", nothing)
        assert "the payment network does not" in await w.refused(LeaseRefused)


async def test_a_promise_far_into_the_future_does_not_bind_the_deposit(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        monkeypatch.setattr("provider_kernel.agent.PROMISE_S", 121)
        assert "holds for more than 120 s" in await w.refused(LeaseRefused)
        assert w.journal.open_leases("payer") == []
        monkeypatch.setattr("provider_kernel.agent.PROMISE_S", 120)
        await w.open()
        (lease,) = w.journal.open_leases("payer")
        assert lease.open_by == w.provider_journal.lease(lease.channel_id).open_by == w.clock.unix_now() + 270


async def test_a_renter_waits_for_a_slow_opening_rather_than_lock_a_second_deposit(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        locked = w.ledger.open

        async def slow(*arguments):
            await anyio.sleep(130)
            return await locked(*arguments)

        monkeypatch.setattr(w.ledger, "open", slow)
        opened: list[object] = []

        async def opening() -> None:
            opened.append(await w.open(tickets=w.tickets * 2))

        w.tasks.start_soon(opening)
        await w.clock.until(lambda: opened, within=140)
        assert len(w.journal.open_leases("payer")) == 1


# -- renters that lie


class Liar:
    """A renter that speaks the handshake by hand."""

    def __init__(self, w) -> None:
        self.w, self.key = w, Wallet.generate()

    async def connect(self):
        self.connection = await self.w.endpoint.connect(self.w.agents[0].ticket.address)
        self.control = await self.connection.open_stream()
        return self

    async def ask(self, request, expected):
        return await ask(self.control, request, expected)

    async def promised(self, **changes):
        offers = (await self.ask(AskOffers(VERSION), OffersGiven)).offers
        self.offer = offers[0].offer
        request = AskLease(self.offer.digest(), self.key.address, 3600, secrets.token_bytes(32))
        if changes:
            # As a builtin: our own types refuse to be built wrong.
            request = msgspec.to_builtins(request) | changes
        self.lease = (await self.ask(request, LeaseGiven)).lease
        return self

    def terms(self, **changes) -> Terms:
        asset = self.w.ledger.asset
        terms = Terms(
            self.w.wallet.address, self.key.address, self.offer.provider, asset.token, Amount(0), self.offer.rate,
            self.lease.max_seconds, bytes(32), self.lease.digest(asset.domain),
        )  # fmt: skip
        return replace(terms, **changes)

    async def open(self, terms=None, *, deposit=1_000_000, signer=None, fund=True, holds_s=600):
        terms = terms or self.terms()
        if fund:
            await self.w.ledger.deposit(self.w.wallet, Amount(deposit))
        domain = self.w.ledger.asset.domain
        by = self.w.clock.unix_now() + holds_s
        digest = open_digest(domain, terms.channel_id(domain), Amount(deposit), by)
        opening = Opening(Amount(deposit), by, (signer or self.w.wallet).sign(digest))
        self.id = terms.channel_id(domain)
        return await self.ask(OpenLease(terms, opening), LeaseOpened)

    async def attach(self, *, key=None, node=None):
        digest = attach_digest(self.w.ledger.asset.domain, self.id, node or self.w.endpoint.node)
        return await self.ask(AttachTunnel(self.id, (key or self.key).sign(digest)), Attached)


async def liar(w) -> Liar:
    await w.start_agent()
    return await Liar(w).connect()


async def still_serves(w) -> None:
    """An honest renter gets its kernel."""
    rental = await w.rent()
    await w.launch(rental)
    assert rental.status().state == "running"


@pytest.mark.parametrize(
    "change",
    [
        {"rate": Rate(1)},
        {"max_seconds": 2**32 - 1},
        {"signer": Address(b"\1" * 20)},
        {"provider": Address(b"\1" * 20)},
        {"token": Address(b"\1" * 20)},
        {"grant_id": b"\1" * 32},
        {"open_fee": Amount(1)},
    ],
    ids=str,
)
async def test_terms_that_were_not_promised_are_refused(world, change):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(LeaseRefused, match="not those that were promised"):
            await renter.open(renter.terms(**change))
        assert await w.ledger.balance(w.provider.address) == GIFT
        await still_serves(w)


async def test_a_lease_that_was_never_promised_is_refused(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(PromiseLapsed):
            await renter.open(renter.terms(lease_hash=bytes(32)))


async def test_another_ones_signature_opens_nothing(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(LeaseRefused, match="did not sign"):
            await renter.open(signer=Wallet.generate())
        assert w.provider_journal.open_leases("payee") == []
        await still_serves(w)


async def test_junk_for_a_signature_ends_the_connection(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        opening = Opening(Amount(10**6), w.clock.unix_now() + 60, b"junk")
        with pytest.raises(DepinError):
            await renter.ask(OpenLease(renter.terms(), opening), LeaseOpened)
        await still_serves(w)


async def test_a_deposit_that_is_not_there_is_refused_and_may_be_brought(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(EmptyWallet, match="0 DEMO where 1 are needed"):
            await renter.open(fund=False)
        assert await renter.open()


async def test_a_deposit_below_the_arrears_is_refused(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(LeaseRefused, match=r"0\.014999 DEMO does not cover the 0\.015 DEMO"):
            await renter.open(deposit=14_999)


async def test_one_promise_is_opened_once_even_if_asked_twice_at_once(world, monkeypatch):
    async with world() as w:
        first = await (await liar(w)).promised()
        second = await Liar(w).connect()
        second.key, second.offer, second.lease = first.key, first.offer, first.lease
        locked, gate = w.ledger.open, anyio.Event()

        async def slow(*arguments):
            await gate.wait()
            return await locked(*arguments)

        monkeypatch.setattr(w.ledger, "open", slow)
        said: list[object] = []

        async def opening(renter) -> None:
            try:
                said.append(await renter.open())
            except DepinError as error:
                said.append(str(error))

        w.tasks.start_soon(opening, first)
        await w.clock.turns()
        w.tasks.start_soon(opening, second)
        await w.clock.turns()
        # The promise does not lapse while the ledger is asked, or its slot would be given twice.
        await w.clock.wait(100)
        third = await Liar(w).connect()
        with pytest.raises(NoFreeSlot):
            await third.promised()
        gate.set()
        await w.clock.until(lambda: len(said) == 2)
        assert "being opened already" in str(said[0])
        assert isinstance(said[1], LeaseOpened)
        assert len(w.provider_journal.open_leases("payee")) == 1
        await still_serves(w)


async def test_a_promise_lapses_and_its_slot_is_free_again(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        await Liar(w).connect()
        await w.clock.wait(62)
        with pytest.raises(PromiseLapsed):
            await renter.open()
        await still_serves(w)


@pytest.mark.parametrize(
    "error", [TransactionFailed(action="x", reason="secret"), ChainUnreachable(url="secret")], ids=repr
)
async def test_an_opening_that_the_ledger_refuses_frees_the_slot_and_the_books(world, monkeypatch, error):
    async with world() as w:
        renter = await (await liar(w)).promised()

        async def refusing(*_):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(w.ledger, "open", refusing)
            with pytest.raises(LeaseRefused) as refused:
                await renter.open()
            assert "secret" not in str(refused.value.facts)
        await w.open()
        await w.open()
        await w.clock.wait(10)
        assert w.provider_journal.receipts() == []
        await w.clock.until(lambda: not w.provider_journal.unsettled("payee"), within=1000)
        receipts = {receipt.channel_id: receipt for receipt in w.provider_journal.receipts()}
        assert receipts[renter.id].collected_on_chain == receipts[renter.id].refunded == 0
        assert receipts[renter.id].chain_agrees


async def test_an_opening_that_is_mined_after_its_sender_gave_up_gives_the_deposit_back(world, monkeypatch):
    async with world() as w:
        renter = await (await liar(w)).promised()
        locked = w.ledger.open
        sent: list[tuple[object, ...]] = []

        async def slow(*arguments):
            sent.append(arguments)
            raise ChainUnreachable(url="x")

        with monkeypatch.context() as patch:
            patch.setattr(w.ledger, "open", slow)
            with pytest.raises(DepinError):
                await renter.open()
        await w.clock.wait(100)
        await locked(*sent[0])
        assert await w.ledger.escrow(w.wallet.address) == 0
        await w.clock.until(lambda: w.provider_journal.receipts(), within=1000)
        assert w.provider_journal.receipts()[0].refunded == 1_000_000
        assert await w.ledger.escrow(w.wallet.address) == 1_000_000


async def test_an_order_for_years_ahead_is_refused(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        with pytest.raises(LeaseRefused, match="more than 900 s"):
            await renter.open(holds_s=10**6)
        assert await renter.open()


@pytest.mark.parametrize(
    "change",
    [
        {"max_seconds": -5},
        {"max_seconds": 2**70},
        {"consumer": b"short"},
        {"offer": b""},
        {"salt": b"\0" * 999},
    ],
    ids=["negative", "endless", "short name", "no offer", "long salt"],
)
async def test_a_request_that_cannot_be_hashed_ends_one_connection_at_most(world, change):
    async with world() as w:
        renter = await liar(w)
        with contextlib.suppress(DepinError):
            await renter.promised(**change)
        await still_serves(w)


@pytest.mark.parametrize(
    "noise",
    [b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\4null", encode_message(Attached()), b'\0\3\x0d\x40{"type":"ask-offers","x":' + b"[" * 200_000],
    ids=["giant", "untagged", "null", "an answer", "deep"],
)  # fmt: skip
async def test_noise_ends_one_connection(world, noise):
    async with world() as w:
        renter = await liar(w)
        await renter.control.write(noise)
        with pytest.raises(ConnectionLost):
            await renter.control.read(10)
        await still_serves(w)


async def test_another_node_may_not_attach_even_with_the_right_signature(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        await renter.open()
        thief = Liar(w)
        thief.key, thief.id = renter.key, renter.id
        home = w.endpoint
        w.endpoint = w.network.endpoint("thief")
        await thief.connect()
        # The signature that the owner's node showed is worth nothing from another node.
        with pytest.raises(LeaseRefused, match="no right"):
            await thief.attach(node=home.node)
        await thief.connect()
        with pytest.raises(LeaseRefused, match="no right"):
            await thief.attach(key=Wallet.generate())
        w.endpoint = home
        assert await renter.attach() == Attached()


# -- renters that only occupy


async def test_a_slot_is_kept_no_longer_than_its_connection(world):
    async with world() as w:
        first = await (await liar(w)).promised()
        second = await Liar(w).connect()
        with pytest.raises(NoFreeSlot):
            await second.promised()
        await first.connection.close()
        await w.clock.turns()
        assert await second.promised()


async def test_one_connection_keeps_one_slot(world):
    async with world() as w:
        greedy = await liar(w)
        for signed in (await greedy.ask(AskOffers(VERSION), OffersGiven)).offers:
            request = AskLease(signed.offer.digest(), greedy.key.address, 3600, secrets.token_bytes(32))
            await greedy.ask(request, LeaseGiven)
        # What it was promised first has lapsed: an honest renter takes it.
        assert await w.open()


@pytest.mark.parametrize("begins", [False, True], ids=["no stream", "half a request"])
async def test_a_visitor_that_says_nothing_is_sent_away(world, begins):
    async with world() as w:
        await w.start_agent()
        connection = await w.endpoint.connect(w.agents[0].ticket.address)
        if begins:
            control = await connection.open_stream()
            await control.write(encode_message(AskOffers(VERSION))[:-1])
        closed: list[str] = []

        async def watch() -> None:
            closed.append(await connection.closed())

        w.tasks.start_soon(watch)
        await w.clock.wait(14)
        assert not closed
        await w.clock.wait(2)
        assert closed
        await still_serves(w)


async def test_one_that_was_promised_a_slot_may_take_its_time_to_bring_money(world):
    async with world() as w:
        renter = await (await liar(w)).promised()
        await w.clock.wait(59)
        assert await renter.open()


async def test_a_crowd_of_visitors_costs_only_the_oldest_and_no_lease(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        kernel = await w.launch(rental)
        crowd = []
        for _ in range(65):
            crowd.append(await Liar(w).connect())
            await crowd[-1].ask(AskOffers(VERSION), OffersGiven)
        with pytest.raises(ConnectionLost):
            await crowd[0].ask(AskOffers(VERSION), OffersGiven)
        for visitor in (crowd[1], crowd[-1]):
            assert await visitor.ask(AskOffers(VERSION), OffersGiven)
        assert rental.status().state == "running"
        assert not kernel.destroyed


# -- payers that are welcome without a sandbox


async def test_a_trusted_wallet_is_welcome_without_a_sandbox(world):
    async with world() as w:
        w.sandbox.name = "none"
        wallets = (checksummed(w.wallet.address),)
        await w.start_agent(config=replace(w.provider_config, trusted_wallets=wallets))
        rental = await w.rent()
        await rental.launch(w.local(), env={}, argv=("sh", "-c", "mine"), cwd="/")
        # It pays; it does not choose the command.
        assert w.sandbox.kernels[0].command.argv is None


async def test_another_wallet_is_not_and_nothing_of_it_is_locked_or_kept(world):
    async with world() as w:
        w.sandbox.name = "none"
        wallets = (checksummed(Wallet.generate().address),)
        await w.start_agent(config=replace(w.provider_config, trusted_wallets=wallets))
        for _ in range(3):
            with pytest.raises(StrangersRefused):
                await w.open()
        assert w.provider_journal.open_leases("payee") == []
        assert await w.ledger.balance(w.provider.address) == GIFT
        assert not w.sandbox.kernels


async def test_a_trusted_wallets_name_alone_opens_nothing(world):
    async with world() as w:
        w.sandbox.name = "none"
        wallets = (checksummed(w.wallet.address),)
        await w.start_agent(config=replace(w.provider_config, trusted_wallets=wallets))
        thief = await (await Liar(w).connect()).promised()
        with pytest.raises(LeaseRefused, match="did not sign"):
            await thief.open(signer=Wallet.generate())


async def test_a_lease_that_nobody_knows_is_refused(world):
    async with world() as w:
        renter = await liar(w)
        renter.id = bytes(32)
        with pytest.raises(UnknownLease):
            await renter.attach()


# -- renters that do not pay


async def rented(w):
    await w.start_agent()
    rental = await w.rent()
    kernel = await w.launch(rental)
    return rental, kernel, w.agents[0]._tenancies[rental.channel_id]


def mute(rental):
    """It hears no claim, so it signs nothing any more."""
    rental._meter.receive = lambda word: None


async def test_arrears_pause_the_kernel_and_pay_lets_it_run_on(world):
    async with world() as w:
        rental, kernel, _ = await rented(w)
        hear = rental._meter.receive
        await w.clock.wait(20)
        mute(rental)
        await w.clock.until(lambda: kernel.paused, within=30)
        assert w.clock.now_ns >= (5_000 + 35) * 10**9
        rental._meter.receive = hear
        await w.clock.until(lambda: not kernel.paused, within=10)
        await w.clock.wait(10)
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.chain_agrees


async def test_arrears_beyond_the_grace_end_the_lease(world):
    async with world() as w:
        rental, kernel, _ = await rented(w)
        await w.clock.wait(20)
        mute(rental)
        await w.ended(rental, within=200)
        assert rental.reason is EndReason.ARREARS
        assert kernel.destroyed
        receipt = w.provider_journal.receipts()[0]
        assert receipt.collected_on_chain == 20 * PER_SECOND
        # Never more unpaid than the arrears limit.
        assert 0 <= receipt.served_ns - 35 * 10**9 < 10**9 // PER_SECOND


async def test_a_consumer_cannot_wake_a_kernel_that_stands_for_arrears(world):
    async with world() as w:
        rental, kernel, _ = await rented(w)
        mute(rental)
        await w.clock.until(lambda: kernel.paused, within=30)
        rental._driver.send(Lane.LEASE, encode(Signal(1, signal.SIGCONT)))
        rental._driver.send(Lane.LEASE, encode(Signal(1, signal.SIGINT)))
        await w.clock.turns()
        assert kernel.signals == [signal.SIGINT]
        assert kernel.paused


async def test_a_restart_does_not_wake_it_either(world):
    async with world() as w:
        rental, kernel, _ = await rented(w)
        mute(rental)
        await w.clock.until(lambda: kernel.paused, within=30)
        again = await w.launch(rental)
        assert again is not kernel
        assert again.paused


@pytest.mark.parametrize("lie", ["another key", "above the deposit", "junk", "negative", "other lease"])
async def test_a_voucher_that_does_not_hold_is_refused_and_counts_nothing(world, lie):
    async with world() as w:
        rental, kernel, _ = await rented(w)
        mute(rental)
        key, channel_id, amount = rental._opened.key, rental.channel_id, 10_000
        if lie == "another key":
            key = Wallet.generate()
        elif lie == "above the deposit":
            amount = rental._opened.deposit + 1
        elif lie == "other lease":
            channel_id = bytes(32)
        elif lie == "negative":
            amount = -1
        digest = Voucher(channel_id, Amount(abs(amount))).digest(w.ledger.asset.domain)
        signature = b"junk" if lie == "junk" else key.sign(digest)
        rental._driver.send(Lane.PAYMENT, encode(VoucherGiven(Amount(amount), signature)))
        await w.clock.until(lambda: kernel.paused, within=30)
        assert w.provider_journal.voucher(rental.channel_id) is None
        await w.ended(rental, within=200)
        assert w.provider_journal.receipts()[0].collected_on_chain == 0


async def test_a_refused_voucher_shows_at_the_renters(world):
    async with world() as w:
        rental, _, _ = await rented(w)
        rental._driver.send(Lane.PAYMENT, encode(VoucherGiven(Amount(10_000), b"junk")))
        await w.clock.turns()
        assert "malformed" in rental._meter.refused
        await w.clock.wait(6)
        assert rental._meter.refused == ""


# -- renters that try to break things


async def test_orders_out_of_turn_cost_a_connection_and_not_the_agent(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        order = Launch(1, b"k", "hmac-sha256")
        w.sandbox.gate = anyio.Event()
        for epoch in (1, 0, -3, 2**40, 10**300):
            rental._driver.send(Lane.LEASE, encode(replace_epoch(order, epoch)))
            await w.clock.wait(2)
            assert not tenancy.finished.is_set()
        for epoch in range(2, 200):
            rental._driver.send(Lane.LEASE, encode(replace_epoch(order, epoch)))
        await w.clock.wait(5)
        w.sandbox.gate.set()
        await w.clock.wait(5)
        assert not tenancy.ended
        assert not tenancy.finished.is_set()
        assert kernel.destroyed
        await still_serves(w)


@pytest.mark.parametrize("identity", [b"", b"i" * 256, b"i" * 100_000])
async def test_an_identity_that_zeromq_cannot_bear_costs_a_connection(world, identity):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        rental._driver.send(Lane.SHELL, (1).to_bytes(4, "big"), identity, b"<IDS|MSG>", b"")
        await w.clock.wait(3)
        assert not tenancy.ended
        assert not kernel.destroyed
        assert rental.status().state == "running"
        await still_serves(w)


async def test_a_machine_that_cannot_start_kernels_keeps_its_folders_to_itself(world, monkeypatch, caplog):
    async with world() as w:
        agent = await w.start_agent()

        async def fail(*_, folder, **__):
            raise MachineTrouble(reason=f"no space left on {folder}")

        monkeypatch.setattr(w.sandbox, "start", fail)
        with pytest.raises(MachineTrouble) as caught:
            await w.launch(await w.rent())
        assert str(w.folder) not in str(caught.value)
        # Its owner reads it.
        assert str(w.folder) in caplog.text
        agent._trusted = frozenset([w.endpoint.node])
        with pytest.raises(MachineTrouble, match="no space left on /"):
            await w.launch(await w.rent())


async def test_a_crowd_of_clients_does_not_use_up_the_machine(world):
    async with world() as w:
        rental, _, tenancy = await rented(w)
        for i in range(2000):
            for first in (b"\0", b"n"):
                rental._driver.send(Lane.SHELL, (1).to_bytes(4, "big"), first + b"%d" % i, b"<IDS|MSG>", b"")
        await w.clock.wait(3)
        assert len(tenancy._channels._clients) <= 200
        # Where sockets cannot be closed as fast, its connection is: its own, and it comes back.
        await w.clock.until(lambda: rental.status().state == "running", within=60)
        await still_serves(w)


def narrow(monkeypatch):
    """A kernel is stopped when a lane holds 100 kB."""
    for module in (output_module, tenancy_module):
        monkeypatch.setattr(module, "LANE_LIMIT", 100_000)


@pytest.mark.parametrize(
    "lane", [Lane.SHELL, Lane.STDIN, Lane.CONTROL, Lane.IOPUB], ids=lambda lane: lane.name
)
async def test_a_kernel_that_floods_any_lane_is_stopped_until_that_is_read(world, monkeypatch, lane):
    narrow(monkeypatch)
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        w.network.hold()
        tenancy._output.said(lane, [b"client", bytes(60_000)])
        assert not kernel.paused
        tenancy._output.said(lane, [b"client", bytes(60_000)])
        assert kernel.paused
        w.network.release()
        await w.clock.until(lambda: not kernel.paused, within=60)
        assert rental.status().state == "running"


async def test_an_interrupt_gets_through_while_there_is_room_and_then_only_as_a_signal(world, monkeypatch):
    narrow(monkeypatch)
    async with world() as w:
        _, kernel, tenancy = await rented(w)
        w.network.hold()
        tenancy._output.said(Lane.IOPUB, [bytes(100_000)])
        assert kernel.paused
        tenancy._ordered(Signal(1, signal.SIGINT))
        assert not kernel.paused
        await w.clock.wait(0.5)
        assert not kernel.paused
        # It uses the second to go on flooding.
        tenancy._output.said(Lane.IOPUB, [bytes(100_000)])
        assert kernel.paused
        for _ in range(3):
            tenancy._ordered(Signal(1, signal.SIGINT))
            tenancy._received(Lane.CONTROL, [(1).to_bytes(4, "big"), b"client", b"<IDS|MSG>"])
            assert kernel.paused
            await w.clock.turns()
        assert kernel.signals == [signal.SIGINT] * 4


async def test_a_flood_of_equal_signals_is_one(world):
    async with world() as w:
        _, kernel, tenancy = await rented(w)
        for _ in range(5000):
            tenancy._ordered(Signal(1, signal.SIGINT))
            tenancy._ordered(Signal(1, signal.SIGUSR1))
        await w.clock.turns()
        assert kernel.signals == [signal.SIGINT, signal.SIGUSR1]


async def test_a_disk_that_is_full_at_the_end_leaves_no_kernel_and_no_slot_behind(world, monkeypatch):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await w.clock.wait(10)

        def full(*_):
            raise DamagedJournal(path="x", reason="disk full")

        with monkeypatch.context() as patch:
            for name in ("save_served", "end"):
                patch.setattr(w.provider_journal, name, full)
            # A claim is due at this very moment.
            w.clock.now_ns += 5 * 10**9
            tenancy.end(EndReason.PROVIDER_STOPPED)
            await w.ended(rental, within=60)
        assert kernel.destroyed
        assert not kernel.folder.exists()
        assert rental.receipt.collected_on_chain == 15 * PER_SECOND
        for _ in range(2):
            await w.open()


async def test_a_kernel_that_cannot_be_talked_to_is_not_left_running(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()

        def unreachable(*_):
            raise TransportError(detail="no more sockets")

        monkeypatch.setattr(tenancy_module, "KernelSide", unreachable)
        with pytest.raises(MachineTrouble):
            await w.launch(rental)
        assert w.sandbox.kernels[0].destroyed
        assert not w.sandbox.kernels[0].folder.exists()


# -- the owner


async def test_stopping_settles_every_lease_and_frees_the_node(world):
    async with world() as w:
        agent = await w.start_agent()
        rentals = [await w.rent() for _ in range(2)]
        for rental in rentals:
            await w.launch(rental)
        await w.clock.wait(50)
        agent.stop()
        for rental in rentals:
            await w.ended(rental, within=30)
        assert [r.receipt.collected_on_chain for r in rentals] == [50 * PER_SECOND] * 2
        await w.clock.until(
            lambda: w.network.find(w.endpoint.node, agent.ticket.address)[0] is None, within=30
        )


async def test_a_slot_is_free_as_soon_as_its_lease_is_over(world):
    async with world() as w:
        await w.start_agent()
        rentals = [await w.rent() for _ in range(2)]
        with pytest.raises(NoFreeSlot):
            await w.open()
        w.settle(rentals[0])
        await w.ended(rentals[0])
        await w.open()


async def test_a_second_agent_on_the_same_journal_collects_what_the_first_left(world):
    async with world() as w:
        rental, _, _ = await rented(w)
        await w.clock.wait(40)

        async def away(*_, **__):
            raise ChainUnreachable(url="x")

        settle, w.ledger.settle = w.ledger.settle, away
        w.agents[0].kill()
        await w.clock.wait(30)
        assert w.provider_journal.unsettled("payee")
        await w.agents.pop()._endpoint.close()
        w.ledger.settle = settle
        await w.start_agent(node="provider", journal=Journal(w.provider_config.path("journal.sqlite")))
        await w.clock.until(lambda: w.provider_journal.receipts(), within=30)
        receipt = w.provider_journal.receipts()[0]
        assert receipt.channel_id == rental.channel_id
        assert receipt.collected_on_chain == 40 * PER_SECOND
        assert receipt.chain_agrees


async def test_an_agent_that_was_killed_outright_collects_at_its_next_start(world):
    """No goodbye at all: the journal has a lease that never ended, and its newest voucher."""
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await w.clock.wait(40)
        books = w.provider_config.path("journal.sqlite")
        tenancy._journal = tenancy._meter._journal = Nothing()
        tenancy._collect = Nothing().collect
        w.agents[0]._journal = Nothing()
        w.agents[0].kill()
        await w.agents.pop()._endpoint.close()
        await w.clock.wait(20)
        await w.start_agent(journal=Journal(books))
        await w.clock.until(lambda: w.provider_journal.receipts(), within=30)
        receipt = w.provider_journal.receipts()[0]
        assert receipt.collected_on_chain == 40 * PER_SECOND
        assert receipt.chain_agrees
        await w.ended(rental, within=60)
        assert rental.reason is EndReason.PROVIDER_LOST_KERNEL
        assert rental.receipt.collected_on_chain == 40 * PER_SECOND


async def test_the_collector_waits_for_a_last_voucher_that_may_still_come(world):
    """Another lease's trouble wakes it at the wrong moment; collecting early would give the last seconds away."""
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await w.clock.wait(17)
        w.drop()
        w.cut()
        tenancy.end(EndReason.PROVIDER_STOPPED)
        await w.clock.turns()
        w.agents[0]._collector.wake()
        await w.clock.wait(5)
        w.mend()
        await w.ended(rental, within=30)
        assert rental.receipt.paid == 17 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_a_ledger_that_is_away_is_asked_again_until_it_answers(world):
    async with world() as w:
        rental, _, _ = await rented(w)
        await w.clock.wait(10)

        async def away(*_, **__):
            raise ChainUnreachable(url="x")

        settle, w.ledger.settle = w.ledger.settle, away
        w.settle(rental)
        await w.ended(rental, within=60)
        await w.clock.wait(100)
        assert w.provider_journal.receipts() == []
        w.ledger.settle = settle
        await w.clock.until(lambda: w.provider_journal.receipts(), within=700)
        assert w.provider_journal.receipts()[0].collected_on_chain == 10 * PER_SECOND


@pytest.mark.parametrize(
    "error", [TypeError("null"), RuntimeError("shut down"), KeyError("status")], ids=repr
)
async def test_whatever_collecting_brings_up_the_agent_serves_on_and_tries_again(world, error):
    async with world() as w:
        rental, _, _ = await rented(w)
        await w.clock.wait(10)

        async def odd(*_, **__):
            raise error

        settle, w.ledger.settle = w.ledger.settle, odd
        w.settle(rental)
        await w.ended(rental, within=60)
        await w.clock.wait(100)
        assert w.provider_journal.receipts() == []
        await still_serves(w)
        w.ledger.settle = settle
        await w.clock.until(lambda: w.provider_journal.receipts(), within=700)
        assert w.provider_journal.receipts()[0].collected_on_chain == 10 * PER_SECOND


async def test_a_journal_that_cannot_be_read_for_a_while_does_not_stop_the_agent(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        with monkeypatch.context() as patch:

            def locked(*_):
                raise JournalUnavailable(path="x", reason="locked")

            patch.setattr(w.provider_journal, "unsettled", locked)
            w.agents[0]._collector.wake()
            await w.clock.wait(10)
        await still_serves(w)


async def test_a_journal_that_fails_for_a_while_does_not_stop_the_meter(world, monkeypatch):
    async with world() as w:
        rental, kernel, _ = await rented(w)

        def full(*_):
            raise ChainUnreachable(url="disk full")

        with monkeypatch.context() as patch:
            patch.setattr(w.provider_journal, "save_served", full)
            mute(rental)
            await w.clock.until(lambda: kernel.paused, within=40)


async def test_offers_are_renewed_in_time_and_old_ones_still_hold(world):
    async with world() as w:
        renter = await liar(w)
        first = (await renter.ask(AskOffers(VERSION), OffersGiven)).offers[0].offer
        await w.clock.wait(400)
        await renter.connect()
        second = (await renter.ask(AskOffers(VERSION), OffersGiven)).offers[0].offer
        assert second.sequence > first.sequence
        assert second.expires > first.expires
        request = AskLease(first.digest(), renter.key.address, 60, bytes(32))
        assert (await renter.ask(request, LeaseGiven)).lease.offer == first.digest()
        await w.clock.wait(250)
        await renter.connect()
        with pytest.raises(OfferExpired):
            await renter.ask(request, LeaseGiven)


def replace_epoch(order: Launch, epoch: int) -> Launch:
    return Launch(epoch, order.key, order.signature_scheme)


def replace_signature(signed, signature):
    return type(signed)(signed.offer, signature)


class Nothing:
    """The journal and the ledger of a process that is no more."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: []

    async def collect(self, channel_id: bytes) -> object:
        raise ChainUnreachable(url="nowhere")


# -- kernels that are gone


async def test_a_kernel_that_is_gone_costs_nothing_until_another_one_runs(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await w.clock.wait(20)
        kernel.exit(1)
        await w.clock.wait(30)
        assert rental.poll() == 1
        assert rental.status().spent == 20 * PER_SECOND
        # A launch that fails is not paid for either.
        w.sandbox.failing = "out of memory"
        with pytest.raises(DepinError, match="out of memory"):
            await w.launch(rental)
        await w.clock.wait(20)
        assert not tenancy.ended
        w.sandbox.failing = ""
        await w.launch(rental)
        await w.clock.wait(10)
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.collected_on_chain == 30 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_a_dead_kernel_that_was_forgotten_frees_its_place(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await w.clock.wait(20)
        kernel.exit(1)
        await w.clock.wait(59)
        assert not tenancy.ended
        await w.ended(rental, within=30)
        assert rental.reason is EndReason.KERNEL_SHUTDOWN
        assert w.provider_journal.receipts()[0].collected_on_chain == 20 * PER_SECOND
        assert tenancy.slot_free.is_set()
