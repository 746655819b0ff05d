"""A client that gives a kernel up while it is starting, or dies then, does not pay for it and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from jupyter_depin.journal import Journal
from tests.e2e.market import Market, ports, running

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="no such signals there"),
]

OPEN_HOUSE = "accept_strangers_without_a_sandbox = true\n"

NEVER_STARTS = """
import anyio
from provider_kernel.sandbox.bubblewrap import BubblewrapSandbox
from provider_kernel.sandbox.process import ProcessSandbox
async def start(*_, **__):
    await anyio.sleep_forever()
BubblewrapSandbox.start = ProcessSandbox.start = start
"""
NEVER_ANSWERS = """
import anyio
from jupyter_depin.chain.evm import EvmLedger
open_ = EvmLedger.open
async def open(*arguments):
    await open_(*arguments)
    await anyio.sleep_forever()
EvmLedger.open = open
"""
CLIENT = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"


def until(fact: Callable[[], object]) -> None:
    """Wait for something that other processes do."""
    for _ in range(1800):
        if fact():
            return
        anyio.run(anyio.sleep, 0.05)
    raise AssertionError("it never was so")


def command(home: Path) -> list[str]:
    connection_file = home / "connection.json"
    with ports() as info:
        connection_file.write_text(json.dumps(info))
    program = [sys.executable, "-m", "jupyter_depin.kernel", "-f", str(connection_file)]
    return [*program, "--home", str(home)]


def begun(home: Path) -> bool:
    """Whether a lease is in the renter's journal, and open as far as the renter knows."""
    if not (home / "journal.sqlite").exists():
        return False
    with Journal(home / "journal.sqlite") as journal:
        return any(journal.transactions(lease.channel_id) for lease in journal.open_leases("payer"))


def assert_nothing_was_paid(home: Path) -> None:
    with Journal(home / "journal.sqlite") as journal:
        (receipt,) = journal.receipts()
    assert receipt.chain_agrees
    assert receipt.paid == 0
    assert running(home) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_given_up_is_settled(shared: Market, tmp_path: Path, signum: signal.Signals) -> None:
    with shared.agent(shared.provider(tmp_path, OPEN_HOUSE), lie=NEVER_STARTS) as ticket:
        home = shared.renter(tmp_path, tickets=[ticket])
        with subprocess.Popen(command(home), stderr=subprocess.PIPE, text=True) as kernel:
            until(lambda: begun(home))
            kernel.send_signal(signum)
            _, said = kernel.communicate(timeout=60)
        assert said == ""
        assert kernel.returncode == 0
        assert_nothing_was_paid(home)


def test_a_client_that_dies_during_the_start_leaves_no_rental(shared: Market, tmp_path: Path) -> None:
    with shared.agent(shared.provider(tmp_path, OPEN_HOUSE), lie=NEVER_STARTS) as ticket:
        home = shared.renter(tmp_path, tickets=[ticket])
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, *command(home)], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            kernel = psutil.Process(int(client.stdout.readline()))
            until(lambda: begun(home))
            client.kill()
        _, alive = psutil.wait_procs([kernel], timeout=60)
        assert not alive
        assert_nothing_was_paid(home)


def test_a_deposit_that_was_locked_just_then_is_asked_back(shared: Market, tmp_path: Path) -> None:
    with shared.agent(shared.provider(tmp_path, OPEN_HOUSE), lie=NEVER_ANSWERS) as ticket:
        home = shared.renter(tmp_path, tickets=[ticket], settle_wait_s=5)
        before = shared.money()
        with subprocess.Popen(command(home), stderr=subprocess.PIPE, text=True) as kernel:
            until(lambda: shared.money() < before)
            kernel.send_signal(signal.SIGTERM)
            _, said = kernel.communicate(timeout=90)
        assert kernel.returncode == 0
        assert "Traceback" not in said
        with Journal(home / "journal.sqlite") as journal:
            (lease,) = [*journal.open_leases("payer"), *journal.unsettled("payer")]
            assert "request-close" in [t.kind for t in journal.transactions(lease.channel_id)]
        asked = shared.depin(home, "rentals", "--settle")
        assert "the rest comes back after" in asked.stderr
