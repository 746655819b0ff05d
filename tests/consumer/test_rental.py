"""A rental's life as the renter meets it, against a real agent, on a clock that stands still by itself."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace

import anyio
import pytest

from jupyter_depin.cli import main
from jupyter_depin.consumer.clients import Clients
from jupyter_depin.consumer.recovery import recover
from jupyter_depin.errors import (
    ChainUnreachable,
    JournalUnavailable,
    KernelStartFailed,
    LeaseEnded,
    SettlementPending,
)
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.messages import KernelExited
from jupyter_depin.protocol.money import Amount
from tests.consumer.world import GIFT, PER_SECOND


async def running(w, **options):
    """An agent, a rental whose kernel runs, and the kernel."""
    await w.start_agent(**options)
    rental = await w.rent()
    return rental, await w.launch(rental)


# -- the ordinary life


async def test_the_path_is_shown_and_another_program_can_read_it(world, capsys):
    async with world() as w:
        agent = await w.start_agent()
        rental = await w.rent()
        await w.launch(rental)
        (place,) = agent.ticket.address.direct
        status = rental.status()
        assert (status.relayed, status.via, status.rtt_ms) == (False, place, 0)
        assert w.journal.last_path(rental.channel_id) == f"direct to {place}, 0 ms, 0.0 MB up, 0.0 MB down"
        assert main(["rentals", "--home", str(w.config.home)]) == 0
        assert f"open, direct to {place}, 0 ms" in capsys.readouterr().out
        w.cut()
        await w.clock.until(lambda: rental.status().state == "reconnecting")
        status = rental.status()
        assert (status.relayed, status.via, status.rtt_ms) == (None, None, None)


async def test_a_rental_from_offer_to_receipt(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        assert rental.status().state == "starting"
        kernel = await w.launch(rental, env={"LANG": "C"})
        assert rental.status().state == "running"
        assert kernel.command.env == {"LANG": "C"}
        assert kernel.command.key == b"the key"
        assert kernel.command.argv is None
        await w.clock.wait(100)
        assert rental.status().spent == 100 * PER_SECOND
        w.settle(rental)
        await w.ended(rental, within=1)
        receipt = rental.receipt
        assert receipt is not None
        assert receipt.chain_agrees
        assert receipt.paid == receipt.collected_on_chain == 100 * PER_SECOND
        assert receipt.served_ns == 100 * 10**9
        assert [t.kind for t in receipt.transactions] == ["open", "settle"]
        assert kernel.destroyed
        assert not kernel.folder.parent.exists()
        assert await w.money() == (GIFT - 100 * PER_SECOND, 100 * PER_SECOND, GIFT + 100 * PER_SECOND)
        assert rental.status().receipt == {
            "paid": 100 * PER_SECOND,
            "refunded": (7200 - 100) * PER_SECOND,
            "served_ns": 100 * 10**9,
            "transaction": receipt.transactions[-1].id,
        }
        theirs = w.provider_journal.receipts()[0]
        assert replace(theirs, started_ns=0, ended_ns=0) == replace(receipt, started_ns=0, ended_ns=0)


async def test_time_without_a_kernel_costs_nothing(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        await w.clock.wait(500)
        w.settle(rental)
        await w.ended(rental)
        assert await w.money() == (GIFT, 0, GIFT)
        assert rental.receipt.chain_agrees


async def test_a_kernel_is_started_again_in_the_same_lease(world):
    async with world() as w:
        rental, first = await running(w)
        first.exit(3)
        await w.clock.until(lambda: rental.poll() is not None)
        assert rental.poll() == await rental.wait_exit() == 3
        assert not rental.over
        second = await w.launch(rental)
        assert second is not first
        assert first.destroyed
        assert rental.poll() is None
        rental.signal(signal.SIGINT)
        await w.clock.turns()
        assert second.signals == [signal.SIGINT]
        assert first.signals == []


async def test_a_kill_counts_at_once_even_while_the_link_is_down(world):
    async with world() as w:
        rental, kernel = await running(w)
        w.cut()
        rental.signal(signal.SIGKILL)
        assert rental.poll() == -signal.SIGKILL
        rental.signal(signal.SIGINT)
        w.mend()
        await w.clock.until(lambda: kernel.signals)
        assert kernel.signals == [signal.SIGKILL]


async def test_a_kernel_that_cannot_start_says_why_and_the_lease_stays(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        w.sandbox.failing = "no module named torch"
        with pytest.raises(KernelStartFailed, match="torch"):
            await w.launch(rental)
        assert rental.poll() == 1
        w.sandbox.failing = ""
        await w.launch(rental)
        assert rental.poll() is None


async def test_launching_after_the_end_says_that_it_has_ended(world):
    async with world() as w:
        rental, _ = await running(w)
        w.settle(rental)
        await w.ended(rental)
        with pytest.raises(LeaseEnded, match="you stopped it"):
            await w.launch(rental)


async def test_a_launch_that_waits_is_ended_with_the_rental(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        w.sandbox.gate = anyio.Event()
        said: list[str] = []

        async def launch() -> None:
            try:
                await w.launch(rental)
            except LeaseEnded as error:
                said.append(str(error))

        w.tasks.start_soon(launch)
        await w.clock.turns()
        w.settle(rental)
        await w.ended(rental)
        assert "you stopped it" in said[0]
        assert await w.money() == (GIFT, 0, GIFT)


# -- cuts


async def test_a_short_cut_costs_neither_kernel_nor_money(world):
    async with world() as w:
        rental, kernel = await running(w)
        await w.clock.wait(20)
        w.cut()
        await w.clock.wait(12)
        assert rental.status().state == "reconnecting"
        assert rental.poll() is None
        w.mend()
        await w.clock.until(lambda: rental.status().state == "running", within=3)
        await w.clock.wait(28)
        w.settle(rental)
        await w.ended(rental)
        assert not kernel.paused
        # The kernel ran on while the link was down, and that is paid for.
        assert 60 * PER_SECOND <= rental.receipt.paid <= 63 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_a_cut_beyond_the_arrears_pauses_and_pay_unpauses(world):
    async with world() as w:
        rental, kernel = await running(w)
        await w.clock.wait(20)
        w.cut()
        await w.clock.wait(50)
        assert kernel.paused
        w.mend()
        await w.clock.until(lambda: not kernel.paused and rental.status().state == "running", within=10)
        w.settle(rental)
        await w.ended(rental)
        # 20 s and the arrears of 15 s; not the time that it stood still.
        assert 35 * PER_SECOND <= rental.receipt.paid <= 41 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_a_paused_kernel_shows_as_paused(world):
    async with world() as w:
        rental, kernel = await running(w)
        rental._meter.receive = lambda word: None
        await w.clock.until(lambda: kernel.paused, within=30)
        await w.clock.turns()
        assert rental.status().state == "paused"
        assert rental.status().reason == ("arrears", {})
        w.changes.clear()
        w.drop()
        await w.clock.until(lambda: "reconnecting" in w.changes, within=1)
        await w.clock.until(lambda: rental.status().state == "paused", within=5)


async def test_a_cut_longer_than_the_grace_ends_with_the_last_voucher_collected(world):
    async with world() as w:
        rental, kernel = await running(w)
        await w.clock.wait(40)
        w.cut()
        await w.ended(rental, within=200)
        assert rental.reason is EndReason.UNREACHABLE
        assert rental.poll() == 1
        await w.clock.until(lambda: w.provider_journal.receipts(), within=200)
        assert kernel.destroyed
        # What was signed before the cut is collected, and not a unit more.
        assert w.provider_journal.receipts()[0].collected_on_chain == 40 * PER_SECOND
        assert await w.money() == (GIFT - 40 * PER_SECOND, 40 * PER_SECOND, GIFT + 40 * PER_SECOND)


async def test_the_renter_learns_of_an_end_that_came_while_the_link_was_down(world):
    async with world() as w:
        rental, kernel = await running(w)
        await w.clock.wait(10)
        w.cut()
        w.agents[0]._tenancies[rental.channel_id].end(EndReason.PROVIDER_STOPPED)
        await w.clock.wait(20)
        assert kernel.destroyed
        assert rental.poll() is None
        w.mend()
        await w.ended(rental, within=10)
        assert rental.reason is EndReason.PROVIDER_STOPPED
        assert rental.receipt is not None
        assert rental.receipt.paid == rental.receipt.collected_on_chain


async def test_many_cuts_during_a_rental_change_nothing_on_the_bill(world):
    async with world() as w:
        rental, _ = await running(w)
        for i in range(60):
            await w.clock.wait(1 + i % 4)
            w.drop()
        await w.clock.until(lambda: rental.status().state == "running")
        before = w.clock.now_ns
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.chain_agrees
        assert abs(rental.receipt.served_ns - (before - 5_000 * 10**9)) < 2 * 10**9


# -- ends


async def test_the_cap_ends_the_rental_at_exactly_the_cap(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent(max_spend="0.05")
        await w.launch(rental)
        await w.ended(rental)
        assert rental.reason is EndReason.CAP_REACHED
        assert rental.receipt.paid == rental.receipt.collected_on_chain == 50_000
        assert rental.receipt.refunded == 0
        assert rental.receipt.chain_agrees


async def test_the_agreed_length_ends_the_rental(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent(max_seconds=120)
        await w.launch(rental)
        await w.ended(rental)
        assert rental.reason is EndReason.LEASE_OVER
        assert rental.receipt.paid == 120 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_the_providers_stop_settles_and_says_so(world):
    async with world() as w:
        rental, kernel = await running(w)
        await w.clock.wait(33)
        w.agents[0].stop()
        await w.ended(rental, within=30)
        assert rental.reason is EndReason.PROVIDER_STOPPED
        assert kernel.destroyed
        assert rental.receipt.paid == rental.receipt.collected_on_chain == 33 * PER_SECOND
        assert rental.receipt.chain_agrees


async def test_a_cell_is_told_why_its_kernel_died(world, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("jupyter_depin.channels.ClientSide.say", lambda self, text: said.append(text))
    async with world() as w:
        rental, _ = await running(w)
        w.agents[0].stop()
        await w.ended(rental)
        assert "the provider stopped it" in said[0]
        assert len(said) == 1


async def test_a_cell_is_told_nothing_when_its_user_stops_the_kernel(world, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("jupyter_depin.channels.ClientSide.say", lambda self, text: said.append(text))
    async with world() as w:
        rental, _ = await running(w)
        w.settle(rental)
        await w.ended(rental)
        assert said == []


async def test_an_agent_that_lost_its_memory_ends_the_rental_with_what_was_paid(world):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(30)
        w.cut()
        await w.clock.wait(7)
        w.agents[0].kill()
        await w.clock.wait(30)
        w.mend()
        await w.agents.pop()._endpoint.close()
        await w.start_agent()
        await w.ended(rental, within=60)
        assert rental.reason is EndReason.PROVIDER_LOST_KERNEL
        assert rental.poll() == 1


# -- the ledger is away


async def test_a_ledger_that_is_away_leaves_the_rental_pending_and_recoverable(world, monkeypatch):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(10)

        async def away(*_, **__):
            raise ChainUnreachable(url="x")

        with monkeypatch.context() as patch:
            patch.setattr(w.ledger, "settle", away)
            w.settle(rental)
            await w.ended(rental, within=60)
            assert rental.receipt is None
            assert isinstance(rental.failure, SettlementPending)
            assert "not settled yet" in rental.status().reason[1]["pending"]
        await w.clock.until(lambda: w.provider_journal.receipts(), within=60)
        assert await recover(w.backend(), lambda _: None) == 0
        assert w.journal.receipts()[0].collected_on_chain == 10 * PER_SECOND


async def test_a_slow_ledger_is_not_taken_for_a_settled_one(world):
    class Slow:
        async def closing(self, channel_id):
            await anyio.sleep(1000)

    async with world() as w:
        rental, _ = await running(w)
        rental._ledger = Slow()
        w.settle(rental)
        await w.ended(rental, within=120)
        assert isinstance(rental.failure, SettlementPending)
        assert w.journal.unsettled("payer")


async def test_a_node_of_the_ledger_that_lags_behind_is_waited_for(world):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(10)
        closing = w.ledger.closing
        asked = []

        async def lagging(channel_id):
            asked.append(channel_id)
            return None if len(asked) < 4 else await closing(channel_id)

        class Lagging:
            closing = staticmethod(lagging)
            channel = w.ledger.channel
            now = w.ledger.now

        rental._ledger = Lagging()
        w.settle(rental)
        await w.ended(rental, within=20)
        assert rental.receipt is not None
        assert rental.failure is None


async def test_a_journal_that_fails_still_ends_the_rental(world, monkeypatch):
    async with world() as w:
        rental, _ = await running(w)

        def full(*_):
            raise SettlementPending(reason="disk full")

        monkeypatch.setattr(w.journal, "end", full)
        w.settle(rental)
        await w.ended(rental, within=60)
        assert rental.failure is not None


@contextlib.contextmanager
def full_disk(journal, monkeypatch):
    """Nothing can be written into one journal."""

    @contextlib.contextmanager
    def writing():
        raise JournalUnavailable(path=journal.path, reason="database or disk is full")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_writing", writing)
        yield


async def test_a_disk_that_is_full_at_a_launch_keeps_no_kernel_from_its_user(world, monkeypatch):
    said = []
    monkeypatch.setattr(Clients, "tell", lambda _, error: said.append(str(error)))
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        channel_id = rental.channel_id
        with full_disk(w.journal, monkeypatch):
            began = w.clock.seconds()
            kernel = await w.launch(rental)
            assert w.clock.seconds() - began < 1
            assert (rental.poll(), rental.status().state) == (None, "running")
            assert [text for text in said if "disk is full" in text] == said[:1] == said
            # What cannot be written down is not signed away, and the provider stops its kernel at the arrears.
            await w.clock.until(lambda: kernel.paused, within=60)
            assert w.provider_journal.voucher(channel_id) is None
            assert not w.journal.started(channel_id)
        await w.clock.until(lambda: not kernel.paused, within=60)
        assert w.provider_journal.voucher(channel_id) == w.journal.voucher(channel_id)
        assert w.journal.running()[0].held
        ready_ns = w.journal.lease(channel_id).ready_ns
        assert ready_ns / 1e9 - began == pytest.approx(w.clock.unix_ns() / 1e9 - w.clock.seconds(), abs=1)
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.chain_agrees


async def test_a_kernel_that_ended_on_a_full_disk_is_not_noted_when_there_is_room_again(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        with full_disk(w.journal, monkeypatch):
            kernel = await w.launch(rental)
            kernel.exit(0)
            await w.clock.until(lambda: rental.poll() is not None, within=10)
        await w.launch(rental)
        assert w.journal.running()[0].kernel.epoch == 2
        w.sandbox.kernels[-1].exit(0)
        await w.clock.until(lambda: rental.poll() is not None, within=10)
        assert w.journal.running() == []


# -- after a crash of the renter


async def test_recovery_from_the_journal_takes_the_lease_up_and_settles_it(world):
    async with world() as w:
        await w.start_agent()
        opened = await w.open()
        journal_path = w.journal.path
        rental = w.live(opened)
        kernel = await w.launch(rental)
        await w.clock.wait(30)
        # The process dies: its node is gone, and its books are as the last call left them.
        await w.endpoint.close()
        rental._journal = _Dead()
        rental._meter._journal = _Dead()
        w.endpoint = w.network.endpoint("consumer after the crash")
        w.journal = Journal(journal_path)
        assert [record.channel_id for record in w.journal.open_leases("payer")] == [opened.channel_id]
        left: list[int] = []

        async def recovering() -> None:
            left.append(await recover(w.backend(), lambda _: None))

        w.tasks.start_soon(recovering)
        await w.clock.until(lambda: left, within=60)
        assert left == [0]
        assert kernel.destroyed
        receipt = w.journal.receipts()[0]
        assert receipt.channel_id == opened.channel_id
        assert receipt.chain_agrees
        assert 30 * PER_SECOND <= receipt.paid <= 32 * PER_SECOND
        assert w.journal.lease(opened.channel_id).voucher_key == b""


async def test_recovery_survives_a_cut_in_the_middle_of_it(world):
    """The provider begins anew for a renter without memory, once; a cut after that is a cut like any other."""
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(30)
        await w.endpoint.close()
        rental._journal = rental._meter._journal = _Dead()
        w.endpoint = w.network.endpoint("consumer after the crash")
        settle, gate, asked = w.ledger.settle, anyio.Event(), anyio.Event()

        async def slow(*arguments, **options):
            asked.set()
            await gate.wait()
            return await settle(*arguments, **options)

        w.ledger.settle = slow
        left: list[int] = []

        async def recovering() -> None:
            left.append(await recover(w.backend(), lambda _: None))

        began = w.clock.now_ns
        w.tasks.start_soon(recovering)
        # By now the provider has said that the lease has ended.
        await w.clock.until(asked.is_set)
        await w.clock.wait(1)
        w.drop()
        await w.clock.wait(1)
        gate.set()
        await w.clock.until(lambda: left, within=60)
        assert left == [0]
        # The two heard each other out: nobody's patience had to run out.
        assert w.clock.now_ns - began < 5 * 10**9
        assert w.journal.receipts()[0].chain_agrees


async def test_recovery_leaves_living_rentals_alone(world):
    async with world() as w:
        rental, kernel = await running(w)
        assert await recover(w.backend(), lambda _: None, lambda record: record.kernel_id == "kernel-1") == 0
        await w.clock.wait(30)
        assert rental.status().state == "running"
        assert not kernel.destroyed


async def test_recovery_writes_a_receipt_for_what_the_provider_closed_meanwhile(world):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(25)
        rental._journal = _Dead()
        rental._meter._journal = _Dead()
        await w.endpoint.close()
        await w.clock.until(lambda: w.provider_journal.receipts(), within=300)
        w.endpoint = w.network.endpoint("later")
        await w.clock.wait(3600)
        assert await recover(w.backend(), lambda _: None) == 0
        (receipt,) = w.journal.receipts()
        assert receipt.collected_on_chain == 25 * PER_SECOND
        # As far as this side had heard, not until now.
        assert receipt.served_ns == receipt.ended_ns - receipt.started_ns == 25 * 10**9


async def test_a_lease_that_never_was_opened_is_recovered_as_nothing(world, monkeypatch):
    async with world() as w:
        await w.start_agent()

        async def crash(*_, **__):
            raise RuntimeError("the process dies here")

        with monkeypatch.context() as patch:
            patch.setattr("jupyter_depin.consumer.opening.ask", _until_opening(crash))
            with contextlib.suppress(RuntimeError):
                await w.open()
        assert w.journal.open_leases("payer")
        # The provider may still have the deposit locked: it is too early for a receipt.
        assert await recover(w.backend(), lambda _: None) == 1
        await w.clock.wait(211)
        assert await recover(w.backend(), lambda _: None) == 0
        assert await w.money() == (GIFT, 0, GIFT)
        assert w.journal.open_leases("payer") == []


async def test_a_provider_that_answers_and_never_collects_does_not_keep_the_deposit(world, monkeypatch):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(25)
        (tenancy,) = w.agents[0]._tenancies.values()
        tenancy.end = tenancy._meter._on_end = lambda reason: None
        rental._journal = _Dead()
        rental._meter._journal = _Dead()
        await w.endpoint.close()
        w.endpoint = w.network.endpoint("later")

        async def settle() -> int:
            left = []

            async def recovering() -> None:
                left.append(await recover(w.backend(), lambda _: None))

            w.tasks.start_soon(recovering)
            await w.clock.until(lambda: left, within=120)
            return left[0]

        assert await settle() == 1
        assert (await w.ledger.channel(rental.channel_id)).closing_at is None, (
            "it may still collect by itself"
        )
        await w.clock.wait(700)
        assert await settle() == 1
        assert (await w.ledger.channel(rental.channel_id)).closing_at is not None
        await w.clock.wait(24 * 3600)
        assert await settle() == 0
        assert (await w.money())[1] == 0


async def test_two_rentals_at_once_do_not_count_on_the_same_money(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        await w.ledger.deposit(w.wallet, Amount(7200 * PER_SECOND))
        escrow = w.ledger.escrow

        async def slow(*arguments):
            found = await escrow(*arguments)
            await anyio.sleep(1)
            return found

        monkeypatch.setattr(w.ledger, "escrow", slow)
        opened = []

        async def rent() -> None:
            opened.append(await w.open())

        w.tasks.start_soon(rent)
        w.tasks.start_soon(rent)
        await w.clock.wait(10)
        assert len(opened) == 2


@pytest.mark.parametrize("first", ["depin1nonsense", "too dear for the limit"])
async def test_what_fails_with_one_provider_may_go_with_the_next(world, first):
    async with world() as w:
        cheap = await w.start_agent()
        if first != "depin1nonsense":
            other = Wallet.generate()
            endpoint = w.network.endpoint("other")
            await w.ledger.register(other, endpoint.node, Amount(0))
            config = replace(w.provider_config, home=w.folder / "q", rate_per_hour="360000")
            dear = await w.start_agent(
                node="other", register=False, wallet=other, config=config,
                journal=Journal(config.path("journal.sqlite")),
            )  # fmt: skip
            first = str(dear.ticket)
        opened = await w.open(tickets=(first, str(cheap.ticket)), max_rate_per_hour="1000000")
        assert opened.offer.provider == w.provider.address


# -- what the provider says is not believed


async def test_a_provider_that_claims_too_much_is_paid_the_true_time(world):
    async with world() as w:
        rental, _ = await running(w)
        tenancy = w.agents[0]._tenancies[rental.channel_id]
        payee = tenancy._meter._payee
        honest = payee.served_ns
        payee.served_ns = lambda now: 10 * honest(now)
        await w.clock.wait(50)
        assert rental.status().spent <= 56 * PER_SECOND
        assert rental.status().served_ns <= 56 * 10**9


async def test_a_provider_that_says_its_kernel_has_ended_is_not_paid_for_going_on(world):
    async with world() as w:
        rental, _ = await running(w)
        await w.clock.wait(100)
        (tenancy,) = w.agents[0]._tenancies.values()
        tenancy._answers.say(KernelExited(1, 1, ""))
        await w.clock.wait(1000)
        assert rental.poll() == 1
        tolerance = (5 + 100 / 2000) * PER_SECOND
        assert rental.status().spent <= 100 * PER_SECOND + tolerance


@pytest.mark.parametrize("word", [b"", b"{}", b'{"type":"launched","epoch":"x"}', b"\xff"])
async def test_an_unreadable_word_costs_a_connection_and_not_the_rental(world, word):
    async with world() as w:
        rental, kernel = await running(w)
        tenancy = w.agents[0]._tenancies[rental.channel_id]
        for lane in (Lane.LEASE, Lane.PAYMENT):
            tenancy.driver.send(lane, word)
        await w.clock.wait(10)
        assert rental.status().state == "running"
        assert not kernel.paused
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.chain_agrees


class _Dead:
    """The journal of a process that is no more."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


def _until_opening(crash):
    from jupyter_depin.drivers.handshake import ask
    from jupyter_depin.protocol.messages import OpenLease

    async def asking(stream, request, expected):
        if isinstance(request, OpenLease):
            await crash()
        return await ask(stream, request, expected)

    return asking
