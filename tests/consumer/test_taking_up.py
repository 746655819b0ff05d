"""A process dies and another one takes its rental up: the kernel, what it said meanwhile, and one bill."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import anyio
import pytest

from jupyter_depin.consumer.place import Place
from jupyter_depin.consumer.recovery import recover
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.taking_up import named, of_kernel, over, settled_in, take_up, with_its_key
from jupyter_depin.errors import (
    DepinError,
    JournalUnavailable,
    LeaseEnded,
    NotTakenUp,
    RentalHeld,
    RentalNotFound,
)
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.record import Where
from tests.consumer.world import GIFT, PER_SECOND, FakeKernel, World

WHERE = Where("depin-rented", "/home/ada/notes", "/home/ada/notes/figures.ipynb")


class Broken:
    """The journal of a process that is dead: nothing can be written any more."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise JournalUnavailable(path="x", reason="the process is dead")

        return fail


async def running(w: World) -> tuple[Rental, FakeKernel]:
    await w.start_agent()
    rental = await w.rent()
    await rental.launch(w.local(), env={}, argv=None, cwd=None, where=WHERE)
    return rental, w.sandbox.kernels[-1]


async def dies(w: World, rental: Rental) -> None:
    """The renter's process is killed: its node is gone, its sockets too, and its books stay as they are."""
    await w.endpoint.close()
    rental._journal = rental._meter._journal = rental._place._journal = Broken()  # type: ignore[assignment]
    rental._clients.close()
    path = w.journal.path
    w.journal.release(rental.channel_id)
    w.journal = Journal(path)
    w.endpoint = w.network.endpoint(f"consumer after {w.clock.now_ns}")


def begin_taking_up(w: World, name: str = "later") -> Rental:
    (left,) = w.journal.running()
    rental = take_up(
        left,
        with_its_key(w.local(name), left.kernel),
        w.backend(),
        lambda rental: w.changes.append(rental.status().state),
    )
    w.tasks.start_soon(rental.run)
    return rental


async def outcome(w: World, rental: Rental, patience_s: float = 15) -> DepinError | None:
    """How the taking up went."""
    heard: list[DepinError | None] = []

    async def wait() -> None:
        try:
            await settled_in(rental, patience_s)
        except DepinError as error:
            heard.append(error)
        else:
            heard.append(None)

    w.tasks.start_soon(wait)
    await w.clock.until(lambda: heard, within=120)
    return heard[0]


async def taken_up(w: World, name: str = "later") -> Rental:
    rental = begin_taking_up(w, name)
    assert await outcome(w, rental) is None
    return rental


async def test_the_kernel_goes_on_under_its_old_key_and_the_bill_too(world):
    async with world() as w:
        await w.start_agent()
        first = await w.rent()
        await first.launch(replace(w.local(), key=b"the first key"), env={}, argv=None, cwd=None)
        (kernel,) = w.sandbox.kernels
        await w.clock.wait(100)
        await dies(w, first)
        await w.clock.wait(7)
        second = await taken_up(w)
        assert (second.status().state, second.poll()) == ("running", None)
        assert (second.channel_id, second.kernel_id) == (first.channel_id, "kernel-1")
        assert second._clients._side.info == replace(w.local("later"), key=b"the first key")
        second.signal(signal.SIGINT)
        await w.clock.turns()
        assert kernel.signals == [signal.SIGINT]
        assert w.sandbox.kernels == [kernel]
        await w.clock.wait(93)
        # What nobody was there to pay is paid now, and once.
        assert second.status().spent == 200 * PER_SECOND
        w.settle(second)
        await w.ended(second, within=1)
        (receipt,) = w.journal.receipts()
        assert receipt.chain_agrees
        assert (receipt.paid, receipt.served_ns) == (200 * PER_SECOND, 200 * 10**9)
        assert await w.money() == (GIFT - receipt.paid, receipt.paid, GIFT + receipt.paid)
        assert w.journal.running() == []


async def test_what_the_kernel_said_meanwhile_comes_before_the_taking_up_is_over(world):
    async with world() as w:
        first, _ = await running(w)
        await dies(w, first)
        await w.clock.wait(1)
        (tenancy,) = w.agents[0]._tenancies.values()
        for n in range(3):
            tenancy.driver.send(Lane.IOPUB, b"topic", b"%d" % n)
        heard = []
        second = begin_taking_up(w)
        second._clients.deliver = lambda lane, parts: heard.append(bytes(parts[-1]))  # type: ignore[method-assign]
        assert await outcome(w, second) is None
        await w.clock.turns()
        assert heard == [b"0", b"1", b"2"]


async def test_a_kernel_that_was_paused_meanwhile_goes_on_once_it_is_paid(world):
    async with world() as w:
        first, kernel = await running(w)
        await w.clock.wait(30)
        await dies(w, first)
        await w.clock.wait(40)
        assert kernel.paused
        second = await taken_up(w)
        await w.clock.until(lambda: not kernel.paused, within=10)
        await w.clock.wait(10)
        # Of the forty seconds, it ran fifteen.
        assert second.status().state == "running"
        assert 44 * PER_SECOND <= second.status().spent <= 56 * PER_SECOND


async def test_a_restart_after_the_taking_up_is_one_of_the_same_lease(world):
    async with world() as w:
        first, kernel = await running(w)
        await dies(w, first)
        second = await taken_up(w)
        await second.launch(w.local("later"), env={}, argv=None, cwd=None, where=WHERE)
        assert kernel.destroyed
        assert len(w.sandbox.kernels) == 2
        assert w.journal.running()[0].kernel.epoch == 2


async def test_it_can_be_let_go_and_taken_up_again(world):
    async with world() as w:
        first, kernel = await running(w)
        await w.clock.wait(20)
        w.tasks.start_soon(first.leave)
        await w.clock.turns()
        assert first.left
        assert first.poll() is None
        assert w.journal.unsettled("payer") == []
        w.journal.release(first.channel_id)
        second = await taken_up(w)
        await w.clock.wait(20)
        assert second.status().spent == 40 * PER_SECOND
        assert not kernel.destroyed


async def test_only_one_process_takes_it_up(world, monkeypatch):
    async with world() as w:
        await running(w)
        monkeypatch.setattr(w.journal, "claim", lambda channel_id: False)
        with pytest.raises(RentalHeld, match="held by another running program"):
            begin_taking_up(w)


async def test_where_the_sockets_are_taken_it_is_left_for_somebody_else(world):
    async with world() as w:
        first, _ = await running(w)
        await dies(w, first)
        (left,) = w.journal.running()
        with pytest.raises(DepinError):
            take_up(left, replace(w.local(), ip="/no/such/folder/k"), w.backend(), lambda rental: None)
        assert not w.journal.running()[0].held


async def test_a_provider_that_does_not_answer_leaves_it_as_it_was(world):
    async with world() as w:
        first, kernel = await running(w)
        await dies(w, first)
        w.network.cut(w.endpoint.node, w.node_of("provider"))
        error = await outcome(w, begin_taking_up(w))
        assert isinstance(error, NotTakenUp)
        assert error.retryable
        w.network.mend(w.endpoint.node, w.node_of("provider"))
        w.journal.release(first.channel_id)
        second = await taken_up(w, "once more")
        assert second.status().state == "running"
        assert not kernel.destroyed


async def test_a_lease_that_ended_meanwhile_gets_its_receipt_and_no_kernel(world):
    async with world() as w:
        first, _ = await running(w)
        await w.clock.wait(30)
        await dies(w, first)
        # Nobody pays and nobody comes: paused for arrears, and over after the grace.
        await w.clock.until(lambda: w.provider_journal.receipts(), within=300)
        second = begin_taking_up(w)
        error = await outcome(w, second)
        assert isinstance(error, LeaseEnded)
        await w.ended(second, within=60)
        (receipt,) = w.journal.receipts()
        assert receipt.chain_agrees
        assert receipt.paid <= 45 * PER_SECOND
        assert w.journal.running() == []


async def test_a_provider_that_restarted_meanwhile_has_no_kernel_to_be_taken_up(world):
    async with world() as w:
        first, _ = await running(w)
        await w.clock.wait(30)
        await dies(w, first)
        w.agents[0].kill()
        await w.clock.turns()
        await w.start_agent(register=False)
        second = begin_taking_up(w)
        assert isinstance(await outcome(w, second), LeaseEnded)
        await w.ended(second, within=60)
        assert w.journal.receipts()[0].paid == 30 * PER_SECOND


async def test_a_kernel_that_exited_meanwhile_ends_the_lease(world):
    async with world() as w:
        first, kernel = await running(w)
        await dies(w, first)
        kernel.exit(0)
        await w.clock.wait(1)
        second = begin_taking_up(w)
        error = await outcome(w, second)
        assert isinstance(error, LeaseEnded)
        assert "the kernel was shut down" in str(error)
        await w.ended(second, within=10)
        assert w.journal.receipts()[0].chain_agrees


async def test_a_kernel_whose_death_the_old_process_knew_of_is_nobodys_to_take_up(world):
    async with world() as w:
        first, kernel = await running(w)
        kernel.exit(1)
        await w.clock.wait(1)
        await dies(w, first)
        assert w.journal.running() == []
        assert of_kernel(w.journal, "kernel-1") is None


async def test_a_journal_that_fails_costs_the_taking_up_and_not_the_kernel(world, caplog):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        rental._place = Place(Broken(), rental.channel_id, noted=True, tell=lambda _: None)  # type: ignore[arg-type]
        await w.launch(rental)
        assert rental.status().state == "running"
        assert "cannot be taken up by another program" in caplog.text
        assert w.journal.running() == []


# -- what recovery leaves alone


async def pending(w: World, **options: Any) -> int:
    left: list[int] = []

    async def recovering() -> None:
        left.append(await recover(w.backend(), lambda _: None, **options))

    w.tasks.start_soon(recovering)
    await w.clock.until(lambda: left, within=60)
    return left[0]


async def test_recovery_keeps_a_running_kernel_for_the_grace_and_then_ends_it(world):
    async with world() as w:
        first, kernel = await running(w)
        await w.clock.wait(20)
        await dies(w, first)
        said: list[str] = []
        assert await pending(w, keeping=True, say=said.append) == 1
        assert "`jupyter depin attach` takes it up" in said[0]
        await w.clock.wait(50)
        assert await pending(w, keeping=True) == 1
        assert (w.journal.receipts(), kernel.destroyed) == ([], False)
        await w.clock.wait(10)
        assert await pending(w, keeping=True) == 0
        (receipt,) = w.journal.receipts()
        # Twenty seconds, and what the provider went on for without pay.
        assert receipt.paid <= (20 + 15) * PER_SECOND
        assert kernel.destroyed


async def test_how_long_it_is_kept_is_the_renters_to_say(world):
    async with world() as w:
        first, kernel = await running(w)
        await dies(w, first)
        w.config = replace(w.config, keep_s=0)
        assert await pending(w, keeping=True) == 0
        assert kernel.destroyed


async def test_what_the_ledger_has_closed_is_neither_kept_nor_signed_for_any_more(world):
    """The provider's last claims still wait for us then; what is signed for them nobody could ever collect."""
    async with world() as w:
        first, _ = await running(w)
        await w.clock.wait(30)
        await dies(w, first)
        # Its last words, claims among them, stay with the provider, which collects what it has.
        await w.clock.until(lambda: w.provider_journal.receipts(), within=300)
        (left,) = w.journal.running()
        assert await over(left.lease.channel_id, w.backend())
        signed = w.journal.voucher(left.lease.channel_id)
        assert await pending(w, keeping=True) == 0
        assert w.journal.voucher(left.lease.channel_id) == signed
        (receipt,) = w.journal.receipts()
        assert receipt.paid == receipt.collected_on_chain
        assert w.journal.running() == []


async def test_settling_by_hand_keeps_nothing(world):
    async with world() as w:
        first, kernel = await running(w)
        await dies(w, first)
        assert await pending(w) == 0
        assert kernel.destroyed


async def test_each_taking_up_begins_the_wait_anew(world):
    async with world() as w:
        first, _ = await running(w)
        await dies(w, first)
        assert await pending(w, keeping=True) == 1
        await w.clock.wait(40)
        second = await taken_up(w)
        await w.clock.wait(60)
        await dies(w, second)
        assert await pending(w, keeping=True) == 1


async def test_a_lease_that_is_just_being_ended_is_marked_so(world):
    async with world() as w:
        first, _ = await running(w)
        await dies(w, first)
        backend, marked, over = w.backend(), [], anyio.Event()

        async def recovering() -> None:
            await recover(backend, lambda rental: marked.append(set(backend.ending)))
            over.set()

        w.tasks.start_soon(recovering)
        await w.clock.until(over.is_set, within=60)
        assert {first.channel_id} in marked
        assert backend.ending == set()


# -- names


async def test_a_rental_is_named_by_the_beginning_of_its_id(world):
    async with world() as w:
        first, _ = await running(w)
        name = first.channel_id.hex()
        found = named(w.journal, name[:8].upper())
        assert found.lease.channel_id == first.channel_id
        assert found.held
        assert (found.kernel.where, found.kernel.key) == (WHERE, b"the key")
        assert "the key" not in repr(found)
        for wrong in (name[:3], "", "ffff" + name):
            with pytest.raises(RentalNotFound):
                named(w.journal, wrong)
