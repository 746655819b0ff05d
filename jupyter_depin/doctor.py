"""`jupyter depin doctor`: looks at each thing that can be missing, and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

from jupyter_depin.consumer.backend import open_ledger
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.errors import DepinError, EmptyWallet
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import Ticket, checksummed
from jupyter_depin.protocol.money import format_amount, parse_amount
from jupyter_depin.transport.iroh import join


@dataclass(frozen=True)
class Finding:
    """What one look found. `fix` is empty where all is well; `needed` False: only some people need it."""

    name: str
    good: bool
    found: str
    fix: str = ""
    needed: bool = True


async def examine(home: Path | None) -> AsyncIterator[Finding]:
    """Look at everything, in the order in which a rental needs it. Called by the command line; raises nothing."""
    version = platform.python_version()
    yield Finding("Python", sys.version_info >= (3, 11), version, "Install Python 3.11 or newer.")
    yield await _try("Transport (iroh)", _transport)
    yield _lab()
    yield _sandbox()
    try:
        config = ConsumerConfig.load(home)
    except DepinError as error:
        yield _failed("Settings", error)
        return
    yield Finding("Settings", True, f"{config.home}")
    if not config.home.is_dir():
        yield Finding(
            "Wallet",
            False,
            "none yet",
            "`jupyter depin wallet` makes one; `jupyter depin demo` needs none.",
            needed=False,
        )
        return
    yield await _try("Wallet", lambda: _wallet(config))
    yield await _try("Journal", lambda: _journal(config))
    network = await _try("Payment network", lambda: _network(config))
    yield network
    if network.good:
        yield await _try("Money", lambda: _money(config))
    for text in dict.fromkeys([*config.tickets, *_tickets_of_kernels(config.home)]):
        yield await _try("Provider", lambda text=text: _provider(text))  # type: ignore[misc]


async def _try(name: str, look: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(name, True, await look())
    except DepinError as error:
        return _failed(name, error)


def _failed(name: str, error: DepinError) -> Finding:
    # An error's sentence says what happened and then what to do.
    found, _, fix = str(error).partition(". ")
    otherwise = "Try again later." if error.retryable else "Mend that, then run `jupyter depin doctor` again."
    return Finding(name, False, found, fix or otherwise)


async def _transport() -> str:
    endpoint = await join(secret=secrets.token_bytes(32), listen="127.0.0.1:0")
    await endpoint.close()
    return importlib.metadata.version("iroh")


async def _wallet(config: ConsumerConfig) -> str:
    return checksummed(Wallet.load_or_create(config.wallet).address)


async def _journal(config: ConsumerConfig) -> str:
    with Journal(config.journal) as journal:
        pending = len(journal.open_leases("payer")) + len(journal.unsettled("payer"))
    if not pending:
        return "every rental is settled"
    return (
        f"not settled yet: {pending} (`jupyter depin rentals --settle` settles what no running program holds)"
    )


async def _network(config: ConsumerConfig) -> str:
    ledger = await open_ledger(config.home / config.address_book)
    try:
        await ledger.check()
    finally:
        await ledger.close()
    return f"chain {ledger.asset.chain_id}, {ledger.asset.symbol}"


async def _money(config: ConsumerConfig) -> str:
    """Whether a rental of the usual size can be paid for."""
    ledger = await open_ledger(config.home / config.address_book)
    wallet, asset = Wallet.load_or_create(config.wallet), ledger.asset
    try:
        has = await ledger.balance(wallet.address) + await ledger.escrow(wallet.address)
    finally:
        await ledger.close()
    if has < parse_amount(config.max_spend, asset.decimals):
        raise EmptyWallet(
            balance=format_amount(has, asset.decimals), symbol=asset.symbol, needed=config.max_spend
        )
    return f"{format_amount(has, asset.decimals)} {asset.symbol}, for rentals of at most {config.max_spend}"


def _tickets_of_kernels(home: Path) -> list[str]:
    """The tickets in kernel specs of this home, which `jupyter depin kernel` writes."""
    tickets: list[str] = []
    for spec in KernelSpecManager().get_all_specs().values():
        rented = spec["spec"].get("metadata", {}).get("kernel_provisioner") or {}
        config = rented.get("config", {}) if rented.get("provisioner_name") == "depin-provisioner" else {}
        if config.get("home") in (None, str(home), str(home.absolute())):
            tickets += config.get("tickets", [])
    return tickets


async def _provider(text: str) -> str:
    ticket = Ticket.parse(text)
    endpoint = await join(secret=secrets.token_bytes(32))
    try:
        connection = await endpoint.connect(ticket.address)
        await connection.close("just looking")
    finally:
        await endpoint.close()
    return f"{checksummed(ticket.provider)} answers"


def _lab() -> Finding:
    folders = [Path(sys.prefix) / "share" / "jupyter" / "labextensions" / "@jupyter-depin" / "lab"]
    found = next((folder for folder in folders if (folder / "package.json").exists()), None)
    version = json.loads((found / "package.json").read_text("utf-8"))["version"] if found else "missing"
    fix = "Install jupyter-depin again: `pip install --force-reinstall --no-deps jupyter-depin`."
    return Finding("JupyterLab extension", found is not None, version, fix, needed=False)


def _sandbox() -> Finding:
    name = "Sandbox (to lend)"
    program = shutil.which("provider-kernel", path=str(Path(sys.executable).parent)) or "provider-kernel"
    try:
        answer = subprocess.run([program, "check"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, str(error), "Install jupyter-depin again.", needed=False)
    if answer.returncode == 0:
        return Finding(name, True, answer.stdout.strip(), needed=False)
    found, _, fix = answer.stderr.strip().removeprefix("provider-kernel: ").partition(". ")
    return Finding(name, False, found, fix, needed=False)


async def report(home: Path | None, say: Callable[[str], None]) -> int:
    """Say every finding, as it is found; returns 0 unless something that everybody needs is missing."""
    status = 0
    async for finding in examine(home):
        mark = "ok  " if finding.good else ("MISSING" if finding.needed else "not here")
        say(f"{mark:8} {finding.name}: {finding.found}")
        if not finding.good:
            say(f"         → {finding.fix}")
            status = status or int(finding.needed)
    return status
