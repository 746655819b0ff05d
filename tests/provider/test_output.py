"""What becomes of a kernel's output while its renter is away: kept on the owner's disk, within the owner's bounds."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.messages import Signal
from provider_kernel import output as output_module
from provider_kernel import tenancy as tenancy_module
from provider_kernel.config import ProviderConfig
from provider_kernel.spool import Spool


class Notebook:
    """What the renter's clients get: messages, and lines that we say ourselves."""

    def __init__(self, monkeypatch):
        self.seen: list[str] = []
        self.requests: list[bytes] = []
        monkeypatch.setattr(ClientSide, "deliver", lambda side, lane, parts: self._deliver(lane, parts))
        monkeypatch.setattr(ClientSide, "say", lambda side, text, request=b"": self._say(text, request))

    def _deliver(self, lane, parts):
        if lane is Lane.IOPUB:
            self.seen.append(bytes(parts[1][:20]).rstrip(b".").decode())
        else:
            self.seen.append(lane.name)

    def _say(self, text, request):
        self.seen.append(text)
        self.requests.append(request)

    @property
    def numbers(self):
        return [int(text) for text in self.seen if text.isdigit()]

    @property
    def lines(self):
        return [text for text in self.seen if not text.isdigit()]


@pytest.fixture
def notebook(monkeypatch):
    return Notebook(monkeypatch)


async def rented(w, **settings):
    w.provider_config = replace(w.provider_config, **settings)
    await w.start_agent()
    rental = await w.rent()
    kernel = await w.launch(rental)
    return rental, kernel, w.agents[0]._tenancies[rental.channel_id]


def prints(tenancy, numbers, size=1000):
    for number in numbers:
        tenancy._output.said(Lane.IOPUB, [b"stream.stdout", (b"%d" % number).ljust(size, b".")])


async def go_away(w):
    w.cut()
    await w.clock.turns()


async def come_back(w, tenancy):
    w.mend()
    await w.clock.until(lambda: tenancy.driver.attached and tenancy.driver.tunnel.drained(Lane.IOPUB), 600)
    await w.clock.wait(5)


def kept_files(w):
    return [path for path in w.provider_config.output_root.rglob("*") if path.is_file()]


async def test_a_kernel_goes_on_while_nobody_reads_and_everything_is_there_on_return(world, notebook):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        prints(tenancy, range(10))
        await go_away(w)
        prints(tenancy, range(10, 300), size=100_000)
        assert not kernel.paused
        assert tenancy.driver.tunnel.held < 5 << 20, "the rest is on the disk"
        assert kept_files(w)
        await come_back(w, tenancy)
        await w.clock.until(lambda: len(notebook.numbers) == 300, 600)
        prints(tenancy, range(300, 310))
        await w.clock.until(lambda: len(notebook.numbers) == 310, 600)
        assert notebook.numbers == list(range(310))
        assert notebook.lines == []
        assert rental.status().state == "running"
        assert kept_files(w) == []


async def test_200_mb_into_1_mb_leave_a_marker_and_the_newest(world, notebook):
    async with world() as w:
        _, kernel, tenancy = await rented(w, output_mb=1)
        await go_away(w)
        prints(tenancy, range(20_000), size=10_000)
        assert not kernel.paused
        assert sum(file.stat().st_size for file in kept_files(w)) <= 1 << 20
        await come_back(w, tenancy)
        await w.clock.until(lambda: notebook.numbers[-1:] == [19_999], 600)
        (line,) = notebook.lines
        missing = 20_000 - len(notebook.numbers)
        assert f"{missing:,} messages ({(missing * 10_013) / 1e6:,.1f} MB)" in line
        assert "did not fit into the provider's journal" in line
        at = notebook.seen.index(line)
        assert notebook.numbers[:at] == list(range(at))
        assert notebook.numbers[at:] == list(range(at + missing, 20_000))
        assert len(notebook.numbers) - at > 80


async def test_what_was_kept_comes_at_a_pace_and_live_output_at_once(world, notebook):
    async with world() as w:
        _, _, tenancy = await rented(w)
        prints(tenancy, range(5000), size=10)
        await w.clock.turns(200)
        assert len(notebook.numbers) == 5000
        await go_away(w)
        prints(tenancy, range(5000, 10_000), size=10)
        w.mend()
        await w.clock.until(lambda: tenancy.driver.attached)
        await w.clock.wait(3)
        assert 7000 < len(notebook.numbers) <= 7400
        prints(tenancy, [10_000], size=10)
        await w.clock.wait(5)
        assert notebook.numbers == list(range(10_001))
        prints(tenancy, range(10_001, 15_000), size=10)
        await w.clock.turns(200)
        assert len(notebook.numbers) == 15_000


async def test_the_reply_to_a_cell_comes_behind_its_output(world, notebook):
    async with world() as w:
        _, _, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(3000), size=10)
        header = b'{"msg_type": "%s_reply"}'
        for kind in (b"execute", b"complete"):
            parts = [b"client", b"<IDS|MSG>", b"", header % kind, b"{}", b"{}", b"{}"]
            tenancy._output.said(Lane.SHELL, parts)
        await come_back(w, tenancy)
        await w.clock.until(lambda: len(notebook.seen) == 3002, 60)
        assert notebook.seen[0] == "SHELL", "other replies do not wait"
        assert notebook.seen[1:] == [*map(str, range(3000)), "SHELL"]


async def test_the_gap_is_named_in_the_cell_that_has_it(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        _, _, tenancy = await rented(w, output_mb=1)
        await go_away(w)
        for cell in (b"one", b"two"):
            for _ in range(2000):
                parts = [b"stream", b"0".ljust(1000, b"."), b"<IDS|MSG>", b"", b"{}", cell, b"{}", b"{}"]
                tenancy._output.said(Lane.IOPUB, parts)
        await come_back(w, tenancy)
        await w.clock.until(lambda: notebook.lines, 60)
        assert notebook.requests == [b"one"]


async def test_a_reader_who_is_there_still_stops_a_kernel(world, notebook, monkeypatch):
    for module in (output_module, tenancy_module):
        monkeypatch.setattr(module, "LANE_LIMIT", 100_000)
    async with world() as w:
        _, kernel, tenancy = await rented(w)
        w.network.hold()
        prints(tenancy, range(200))
        assert kernel.paused
        # Who goes away lets it go on; who comes back finds everything.
        w.network.release()
        await w.clock.until(lambda: not kernel.paused)
        w.network.hold()
        prints(tenancy, range(200, 400))
        assert kernel.paused
        w.network.release()
        w.cut()
        await w.clock.turns()
        assert not kernel.paused
        for number in range(400, 600):
            prints(tenancy, [number])
            assert not kernel.paused
        await come_back(w, tenancy)
        await w.clock.until(lambda: len(notebook.numbers) == 600, 600)
        assert notebook.numbers == list(range(600))


async def test_a_kernel_that_is_not_paid_for_stands_still_all_the_same(world, notebook):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(10), size=1 << 20)
        assert not kernel.paused
        await w.clock.wait(20)
        assert kernel.paused
        assert not tenancy.ended
        await come_back(w, tenancy)
        await w.clock.until(lambda: not kernel.paused, 60)
        await w.clock.until(lambda: len(notebook.numbers) == 10, 600)
        assert rental.status().state == "running"


async def test_the_end_of_a_kernel_is_told_behind_its_last_output(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(500))
        kernel.exit(3)
        await w.clock.turns()
        seen_at_exit = []
        gone = rental._kernel_gone
        rental._kernel_gone = lambda status: (seen_at_exit.append(len(notebook.numbers)), gone(status))
        w.mend()
        await w.clock.until(lambda: rental.poll() is not None, 600)
        assert rental.poll() == 3
        assert seen_at_exit == [500]


async def test_the_end_of_a_lease_is_told_behind_the_last_output_and_settled(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await w.clock.wait(20)
        await go_away(w)
        prints(tenancy, range(500))
        tenancy.end(EndReason.PROVIDER_STOPPED)
        await w.clock.wait(5)
        w.mend()
        await w.ended(rental, 600)
        assert notebook.numbers == list(range(500))
        assert rental.reason is EndReason.PROVIDER_STOPPED
        assert rental.receipt.chain_agrees
        await w.clock.until(lambda: not w.agents[0]._tenancies, 120)
        assert kept_files(w) == []


async def test_who_stops_does_not_wait_for_output(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(50_000), size=500)
        w.mend()
        await w.clock.until(lambda: tenancy.driver.attached)
        w.network.hold(w.agents[0].ticket.address.node)
        w.settle(rental)
        await w.clock.turns(100)
        w.network.release()
        await w.ended(rental, 5)
        assert rental.receipt.chain_agrees


async def test_a_restart_does_not_wait_for_the_kernel_before(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(1000))
        w.tasks.start_soon(w.launch, rental)
        w.mend()
        await w.clock.until(lambda: len(w.sandbox.kernels) == 2, 60)
        prints(tenancy, [5000])
        await w.clock.until(lambda: 5000 in notebook.numbers, 600)
        assert rental.status().state == "running"
        (line,) = notebook.lines
        old = len(notebook.numbers) - 1
        assert f"{1000 - old} messages" in line
        assert "when it was started again" in line
        assert notebook.numbers == [*range(old), 5000]


async def test_an_agent_that_stops_says_so_to_a_reader_who_is_behind(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, _, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(1000))
        # The words arrive, the output does not.
        lane = tenancy.driver._lanes[Lane.IOPUB]
        monkeypatch.setattr(lane, "put", lambda pieces: None)
        w.mend()
        await w.clock.until(lambda: tenancy.driver.attached)
        w.agents[0].stop()
        await w.ended(rental, 30)
        assert rental.reason is EndReason.PROVIDER_STOPPED
        assert rental.receipt.chain_agrees


async def test_a_full_disk_costs_output_and_nothing_else(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        await go_away(w)
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "append", lambda self, piece, parts: False)
            prints(tenancy, range(1000))
        await w.clock.wait(2)
        prints(tenancy, range(1000, 1010))
        assert not kernel.paused
        await come_back(w, tenancy)
        await w.clock.until(lambda: 1009 in notebook.numbers, 600)
        (line,) = notebook.lines
        old = len(notebook.numbers) - 10
        assert f"{1000 - old} messages" in line
        assert notebook.numbers == [*range(old), *range(1000, 1010)]
        assert rental.status().state == "running"


async def test_an_interrupt_reaches_a_kernel_whose_output_is_kept(world, notebook):
    async with world() as w:
        _, kernel, tenancy = await rented(w)
        await go_away(w)
        prints(tenancy, range(100), size=100_000)
        tenancy._ordered(Signal(1, signal.SIGINT))
        await w.clock.turns()
        assert kernel.signals == [signal.SIGINT]
        assert not kernel.paused


async def test_the_owners_disk_is_bounded_for_all_together(world, notebook):
    async with world() as w:
        w.provider_config = replace(w.provider_config, output_mb=4, output_total_mb=5)
        await w.start_agent()
        tenancies = []
        for name in ("one", "two"):
            rental = await w.rent()
            await rental.launch(w.local(name), env={}, argv=None, cwd=None)
            tenancies.append(w.agents[0]._tenancies[rental.channel_id])
        await go_away(w)
        for tenancy in tenancies:
            prints(tenancy, range(200), size=100_000)
            assert sum(file.stat().st_size for file in kept_files(w)) <= 5 << 20


async def test_going_and_coming_takes_no_more_of_the_disk(world, notebook, monkeypatch):
    monkeypatch.setattr(output_module, "_MEMORY", 50_000)
    async with world() as w:
        _, _, tenancy = await rented(w, output_mb=1)
        for _ in range(20):
            await go_away(w)
            prints(tenancy, range(30), size=50_000)
            w.network.hold()
            w.mend()
            await w.clock.wait(3)
            prints(tenancy, range(30), size=50_000)
            assert sum(file.stat().st_size for file in kept_files(w)) <= 2 << 20
            w.network.release()


async def test_what_an_earlier_agent_left_is_removed(world):
    async with world() as w:
        left = w.provider_config.output_root / "lease" / "00000001"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"somebody's output")
        await w.start_agent()
        assert not left.exists()


@pytest.mark.parametrize(
    "bad", [{"output_mb": 0}, {"output_hours": 0}, {"output_mb": 2048}, {"output_total_mb": 1}]
)
def test_bounds_that_make_no_sense_are_refused(tmp_path, bad):
    with pytest.raises(Exception, match="output_mb"):
        ProviderConfig(home=tmp_path, **bad)
