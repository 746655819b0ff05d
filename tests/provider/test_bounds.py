"""What one lease may take of the provider's machine and time, and what a failing disk may cost its owner: bounds."""

from __future__ import annotations

import pytest

from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.errors import ChainUnreachable, JournalUnavailable
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import MAX_PARTS, Lane
from provider_kernel import farewells
from provider_kernel.config import ProviderConfig
from tests.consumer.world import PER_SECOND


async def rented(w):
    await w.start_agent()
    rental = await w.rent()
    kernel = await w.launch(rental)
    return rental, kernel, w.agents[0]._tenancies[rental.channel_id]


def full(*_, **__):
    raise JournalUnavailable(path="x", reason="disk full")


# -- leases without kernels


async def test_a_lease_that_nobody_uses_frees_its_slot(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        (tenancy,) = w.agents[0]._tenancies.values()
        await w.clock.wait(179)
        assert not tenancy.ended
        await w.ended(rental, within=60)
        assert rental.reason is EndReason.START_FAILED
        assert tenancy.slot_free.is_set()
        assert w.provider_journal.receipts()[0].collected_on_chain == 0


async def test_starts_that_fail_do_not_lengthen_a_lease_without_a_kernel(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        w.sandbox.failing = "no such signature scheme"
        for _ in range(4):
            with pytest.raises(Exception, match=r"no such|could not be started"):
                await w.launch(rental)
            await w.clock.wait(50)
        assert rental.over
        assert rental.reason is EndReason.START_FAILED


# -- memory


async def test_the_output_of_ended_leases_is_kept_within_bounds(world, monkeypatch):
    monkeypatch.setattr(farewells, "MOST_HELD", 250_000)
    async with world() as w:
        await w.start_agent()
        tenancies = []
        for _ in range(5):
            rental = await w.rent()
            await w.launch(rental)
            (tenancy,) = (t for t in w.agents[0]._tenancies.values() if not t.ended)
            w.cut()
            tenancy._output.said(Lane.IOPUB, [bytes(100_000)])
            tenancy.end(EndReason.PROVIDER_STOPPED)
            await w.clock.wait(11)
            tenancies.append(tenancy)
            w.mend()
            w.drop()
            rental._driver.close()
            w.tasks.start_soon(rental.settle, EndReason.STOPPED_BY_USER)
            await w.clock.turns()
        held = [tenancy.driver.tunnel.held for tenancy in tenancies]
        assert sum(held) <= 250_000
        assert held[-1] > 100_000, "the newest is kept"


# -- messages that are too big


async def test_thousands_of_buffers_in_one_message_pass(world, monkeypatch):
    got = []
    monkeypatch.setattr(ClientSide, "deliver", lambda self, lane, parts: got.append(len(parts)))
    async with world() as w:
        _, _, tenancy = await rented(w)
        tenancy._output.said(Lane.IOPUB, [b"x"] * 5000)
        await w.clock.wait(1)
        assert got == [5000]


@pytest.mark.parametrize("times", [1, 1000])
async def test_a_message_that_is_too_big_is_left_out_and_told(world, monkeypatch, times):
    said: list[str] = []
    got: list[list[bytes]] = []
    monkeypatch.setattr(ClientSide, "say", lambda self, text: said.append(text))
    monkeypatch.setattr(
        ClientSide, "deliver", lambda self, lane, parts: got.append([bytes(p) for p in parts])
    )
    async with world() as w:
        rental, _, tenancy = await rented(w)
        for _ in range(times):
            tenancy._output.said(Lane.IOPUB, [b""] * (MAX_PARTS + 1))
        tenancy._output.said(Lane.IOPUB, [b"what", b"follows"])
        await w.clock.wait(60)
        assert got == [[b"what", b"follows"]]
        assert rental.status().state == "running"
        assert len(said) == 1
        assert "in 32,769 parts was left out" in said[0]


async def test_a_question_that_is_too_big_is_told_to_whoever_asks(world, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(ClientSide, "say", lambda self, text: said.append(text))
    async with world() as w:
        rental, _, _ = await rented(w)
        rental._from_client(Lane.SHELL, [b""] * MAX_PARTS)
        await w.clock.wait(10)
        assert rental.status().state == "running"
        assert "was left out" in said[0]


async def test_a_word_of_a_megabyte_ends_a_connection_before_it_is_read(world):
    async with world() as w:
        rental, _, tenancy = await rented(w)
        before = tenancy.driver.connection
        # Past the renter's own bound, as a liar would: only the length is sent.
        stream = rental._driver._lanes[Lane.LEASE]
        stream.put([b"\0" * 8 + (1).to_bytes(2, "big") + ((1 << 20) + 1).to_bytes(4, "big")])
        await w.clock.wait(1)
        assert tenancy.driver.connection is not before
        assert rental.status().state == "running"


# -- a disk that is full


async def test_a_journal_that_fails_at_the_end_of_a_lease_does_not_prolong_it(world, monkeypatch, caplog):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await w.clock.wait(7200 - 2)
        with monkeypatch.context() as patch:
            patch.setattr(w.provider_journal, "save_served", full)
            # The last tick and the end fall on one moment.
            await w.clock.wait(5)
        assert tenancy.ended
        assert kernel.destroyed
        await w.ended(rental, within=60)
        assert rental.reason is EndReason.LEASE_OVER
        assert not [record for record in caplog.records if record.exc_info]


async def test_no_voucher_is_acknowledged_that_is_not_written_down(world, monkeypatch):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await w.clock.wait(50)
        taken: list[int] = []
        send = tenancy._meter._send

        def note(word):
            if hasattr(word, "amount"):
                taken.append(word.amount)
            send(word)

        tenancy._meter._send = note
        with monkeypatch.context() as patch:
            patch.setattr(w.provider_journal, "save_voucher", full)
            await w.clock.wait(4)
            kernel.exit(1)
            await w.clock.wait(20)
            held = w.provider_journal.voucher(rental.channel_id).voucher.amount
            assert max(taken, default=0) <= held == 50 * PER_SECOND
        await w.clock.wait(10)
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.chain_agrees
        assert rental.receipt.collected_on_chain == 54 * PER_SECOND


async def test_a_deposit_that_could_not_be_noted_is_served_all_the_same(world, monkeypatch):
    async with world() as w:
        await w.start_agent()
        with monkeypatch.context() as patch:
            patch.setattr(w.provider_journal, "save_transaction", full)
            rental = await w.rent()
        await w.launch(rental)
        await w.clock.wait(20)
        w.settle(rental)
        await w.ended(rental)
        assert rental.receipt.collected_on_chain == 20 * PER_SECOND


async def test_an_end_that_was_not_written_down_is_collected_in_the_end(world, monkeypatch):
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await w.clock.wait(20)

        async def away(*_, **__):
            raise ChainUnreachable(url="x")

        with monkeypatch.context() as patch:
            patch.setattr(w.provider_journal, "end", full)
            patch.setattr(w.ledger, "settle", away)
            tenancy.end(EndReason.PROVIDER_STOPPED)
            await w.ended(rental, within=60)
            await w.clock.wait(120)
        assert not w.provider_journal.receipts()
        await w.clock.until(lambda: w.provider_journal.receipts(), within=600)
        assert w.provider_journal.receipts()[0].collected_on_chain == 20 * PER_SECOND


# -- the owner's folders


async def test_only_the_agents_own_folder_is_cleared(world, tmp_path):
    shared = tmp_path / "run"
    (shared / "somebody's").mkdir(parents=True)
    one = ProviderConfig(home=tmp_path / "one", kernels=str(shared))
    two = ProviderConfig(home=tmp_path / "two", kernels=str(shared))
    assert one.kernel_root != two.kernel_root
    two.kernel_folder(bytes(32)).mkdir(parents=True)
    one.kernel_folder(bytes(32)).mkdir(parents=True)
    async with world() as w:
        w.provider_config = one
        await w.start_agent()
        assert not one.kernel_root.exists()
        assert two.kernel_folder(bytes(32)).exists()
        assert (shared / "somebody's").exists()
