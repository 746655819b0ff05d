"""kill -9 in the middle of a cell: what the user sees, what each side is owed, nothing left running."""

from __future__ import annotations

from pathlib import Path

import anyio
import psutil
import pytest

from tests.e2e.world import FUNDS, RATE, TICK_S, World, hear, kill, tell, world

pytestmark = pytest.mark.timeout(300)

COUNT = "import time; [(print(n, flush=True), time.sleep(0.2)) for n in range(10_000)]"
STAKE = 100_000_000


def until(condition, seconds: float = 90):
    """Wait for something that other processes do."""

    async def look():
        with anyio.fail_after(seconds):
            while not (found := condition()):
                await anyio.sleep(0.1)
            return found

    return anyio.run(look)


def assert_books_agree(w: World) -> int:
    """Both journals, both receipts and the chain name one amount; returns it."""
    with w.journal(w.consumer) as renter, w.journal(w.provider) as owner:
        mine, theirs = renter.receipts(), owner.receipts()
    assert len(mine) == len(theirs) == 1
    assert mine[0].paid == mine[0].collected_on_chain == theirs[0].paid == theirs[0].collected_on_chain
    assert mine[0].chain_agrees
    assert theirs[0].chain_agrees
    wallet, escrow, earned = anyio.run(w.ledger_says)
    assert wallet + escrow == FUNDS - mine[0].paid
    assert earned == FUNDS - STAKE + mine[0].paid
    return mine[0].paid


def paid_so_far(w: World, home: Path) -> int:
    with w.journal(home) as journal:
        records = journal.open_leases("payee") + journal.unsettled("payee")
        vouchers = [journal.voucher(record.channel_id) for record in records]
    return max((v.voucher.amount for v in vouchers if v), default=0)


def has_receipt(home: Path, w: World) -> bool:
    with w.journal(home) as journal:
        return bool(journal.receipts())


def begin(w: World):
    """A rental with a cell in its middle and at least two vouchers."""
    renter = w.start_renter()
    hear(renter, "ready")
    tell(renter, COUNT)
    hear(renter, "stdout 3")
    until(lambda: paid_so_far(w, w.provider) >= 2 * TICK_S * RATE // 3600 - 10)
    return renter


def test_the_agent_is_killed_and_comes_back(tmp_path):
    with world(tmp_path) as w:
        agent = w.start_agent()
        renter = begin(w)
        kernels = w.kernels()
        assert kernels
        kill(agent)
        _, alive = psutil.wait_procs(kernels, timeout=30)
        assert not alive, "a kernel must not outlive its agent"
        w.start_agent()
        lines = hear(renter, "dead")
        assert any("provider's machine restarted and lost the kernel" in line for line in lines)
        renter.stdin.close()
        hear(renter, "over")
        assert renter.wait() == 0
        until(lambda: w.depin("rentals", "--settle").stdout == "Every rental is settled.\n")
        assert assert_books_agree(w) > 0


def test_the_agent_is_killed_and_never_comes_back(tmp_path):
    with world(tmp_path) as w:
        agent = w.start_agent(grace_s=4)
        renter = begin(w)
        kill(agent)
        lines = hear(renter, "dead")
        assert any("could not be reached any more" in line for line in lines)
        renter.stdin.close()
        hear(renter, "over")
        renter.wait()
        asked = w.depin("rentals", "--settle")
        assert asked.returncode == 1
        assert "the rest comes back after 20" in asked.stderr
        w.pass_time(24 * 3600 + 1)
        assert w.depin("rentals", "--settle").stdout == "Every rental is settled.\n"
        wallet, escrow, _ = anyio.run(w.ledger_says)
        assert wallet + escrow == FUNDS, "what nobody collected comes back whole"


def test_the_renter_is_killed_and_the_grace_passes(tmp_path):
    with world(tmp_path) as w:
        w.start_agent(grace_s=4)
        renter = begin(w)
        kill(renter)
        until(lambda: has_receipt(w.provider, w))
        assert not w.kernels()
        shown = w.depin("rentals", "--settle")
        assert shown.stdout == "Every rental is settled.\n", shown.stderr
        assert assert_books_agree(w) > 0
        assert "the chain agrees" in w.depin("receipts").stdout


def test_the_renter_is_killed_and_settles_at_once(tmp_path):
    with world(tmp_path) as w:
        w.start_agent(grace_s=600)
        renter = begin(w)
        kill(renter)
        assert "open" in w.depin("rentals").stdout
        shown = w.depin("rentals", "--settle")
        assert shown.stdout == "Every rental is settled.\n", shown.stderr
        until(lambda: not w.kernels())
        assert assert_books_agree(w) > 0


def test_a_program_that_ends_without_a_word_to_its_kernel_has_settled_by_then(tmp_path):
    with world(tmp_path) as w:
        w.start_agent()
        renter = w.start_renter()
        hear(renter, "ready")
        tell(renter, "print('here')")
        hear(renter, "idle")
        tell(renter, "leave")
        assert renter.wait() == 0
        assert has_receipt(w.consumer, w)
        assert assert_books_agree(w) > 0
        until(lambda: not w.kernels())


def test_the_chain_is_killed_and_comes_back(tmp_path):
    with world(tmp_path) as w:
        w.start_agent()
        renter = w.start_renter()
        hear(renter, "ready")
        tell(renter, COUNT.replace("10_000", "20"))
        hear(renter, "stdout 3")
        kill(w.chain)
        # The kernel is never touched because the chain is away.
        assert "stdout 19" in hear(renter, "idle")
        tell(renter, "print('still here')")
        assert "stdout still here" in hear(renter, "idle")
        renter.stdin.close()
        hear(renter, "over")
        assert renter.wait() == 0
        pending = w.depin("rentals")
        assert "not settled" in pending.stdout
        failed = w.depin("rentals", "--settle")
        assert failed.returncode == 1
        assert "does not answer" in failed.stderr
        assert "Traceback" not in failed.stderr
        w.start_chain()
        until(lambda: w.depin("rentals", "--settle").stdout == "Every rental is settled.\n")
        assert assert_books_agree(w) > 0
        assert not w.kernels()
