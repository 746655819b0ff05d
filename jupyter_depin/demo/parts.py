"""The parts of a demo, all in one temporary folder: chain, contracts, funds, an agent with keys of its own, a kernel spec.

Whatever ends the demo, its parts end with it, for each of them ends with its standard input. A folder that a killed
demo left behind is removed by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil

from jupyter_depin.chain.deploy import deploy
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.errors import KernelStartFailed
from jupyter_depin.journal import Journal
from jupyter_depin.kernelspec import write_kernel_spec
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.receipt import Receipt

KERNEL_NAME = "depin-rented"
RATE = "0.36"
MAX_SPEND = "0.72"
_FUNDS = Amount(1_000_000_000)
_STOP_S = 60
_COME_UP_S = 60
_PREFIX = "depin-demo-"

REAL = """\
Real: the contracts, the signatures, the encrypted tunnel, the meter, the settlement, the sandbox where there is one.
For show: the chain runs in one process on this machine, its DEMO token is worth nothing, and the "other person's
machine" is a second process with keys of its own."""


@dataclass(frozen=True)
class Demo:
    """A running demo: its folder, its consumer's home, and where its kernel spec lies."""

    folder: Path
    consumer: Path
    jupyter_path: Path
    sandbox: str
    processes: dict[str, subprocess.Popen[bytes]]

    def lost(self) -> str:
        """The name of a part that has ended, or nothing. Without it nothing can be settled."""
        return next((name for name, process in self.processes.items() if process.poll() is not None), "")

    def environment(self) -> dict[str, str]:
        """What a Jupyter program needs to see the rented kernel."""
        paths = [str(self.jupyter_path), *filter(None, [os.environ.get("JUPYTER_PATH")])]
        return {
            **os.environ,
            "JUPYTER_PATH": os.pathsep.join(paths),
            "JUPYTER_DEPIN_HOME": str(self.consumer),
        }

    def receipts(self) -> list[Receipt]:
        """What was settled so far, newest first."""
        with Journal(self.consumer / "journal.sqlite") as journal:
            return journal.receipts()


@contextmanager
def started() -> Iterator[Demo]:
    """Chain, contracts, funds, agent and kernel spec, all in a temporary folder that is gone afterwards."""
    with ExitStack() as stack:
        stack.enter_context(_sigterm_unwinds())
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # Short names: the paths of the kernels' sockets have a narrow limit, and some temporary folders lie deep.
        consumer, provider = folder / "c", folder / "p"
        for home in (consumer, provider):
            home.mkdir(mode=0o700)
        renter = Wallet.load_or_create(consumer / "wallet.key")
        owner = Wallet.load_or_create(provider / "wallet.key")
        progress("Starting the embedded chain …")
        processes: dict[str, subprocess.Popen[bytes]] = {}
        chain = _child(
            stack, processes, "chain", "jupyter_depin.chain.devchain", "--with-parent", "--state", str(folder / "chain.log"),
            "--fund", checksummed(renter.address), "--fund", checksummed(owner.address),
        )  # fmt: skip
        progress("Deploying the contracts and funding the wallets …")
        anyio.run(_deploy, chain["url"], owner, renter, [consumer, provider])
        (provider / "provider.toml").write_text(
            # Works without a sandbox, too, but for nobody else on this machine.
            f'title = "CPU demo"\nrate_per_hour = "{RATE}"\n'
            f'trusted_wallets = ["{checksummed(renter.address)}"]\n'
        )
        progress("Starting the provider's agent …")
        agent = _child(
            stack,
            processes,
            "agent",
            "provider_kernel",
            "start",
            "--home",
            str(provider),
            "--listen",
            "127.0.0.1:0",
            "--with-parent",
        )
        (consumer / "config.toml").write_text(
            f'tickets = ["{agent["ticket"]}"]\nmax_rate_per_hour = "{RATE}"\nmax_spend = "{MAX_SPEND}"\n'
        )
        write_kernel_spec(folder / "jupyter" / "kernels" / KERNEL_NAME, consumer)
        if agent["sandbox"] == "none":
            progress(
                "No bubblewrap here: the kernel runs without a sandbox (`jupyter depin doctor` tells the fix)."
            )
        progress(REAL)
        yield Demo(folder, consumer, folder / "jupyter", agent["sandbox"], processes)


def _sweep() -> None:
    """Remove what killed demos left: there are keys in it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


async def _deploy(url: str, owner: Wallet, renter: Wallet, homes: list[Path]) -> None:
    book = await deploy(url, owner)
    ledger = EvmLedger(book)
    try:
        for wallet in (owner, renter):
            await ledger.mint(wallet, wallet.address, _FUNDS)
    finally:
        await ledger.close()
    for home in homes:
        book.save(home / "network.json")


def progress(text: str) -> None:
    """A line on standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def _child(
    stack: ExitStack, processes: dict[str, subprocess.Popen[bytes]], name: str, module: str, *arguments: str
) -> dict[str, Any]:
    """Start one of our programs, which prints a line of JSON when it is ready and ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    processes[name] = process
    stack.callback(stop, process, signal.SIGTERM)
    assert process.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_COME_UP_S, give_up)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if late.is_set():
        raise KernelStartFailed(reason=f"{module} did not come up within {_COME_UP_S} s")
    try:
        ready: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise KernelStartFailed(reason=f"{module} did not come up; its own message is above") from error
    return ready


def stop(process: subprocess.Popen[bytes], signum: int) -> None:
    """End a program that was started with pipes, by force if it must be."""
    if process.poll() is None:
        process.send_signal(signum)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM leaves through the same doors as Ctrl-C."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
