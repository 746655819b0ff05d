"""`jupyter depin demo`: everything on this machine, for show and yet real.

Starts the embedded chain, deploys the contracts, funds a wallet, starts one provider agent as a process of its own,
and then JupyterLab with a rented kernel, or (`--run`) one notebook without Lab. Everything lies in one temporary
folder; whatever ends the demo, its parts end with it, for each of them ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from jupyter_depin.chain.deploy import deploy
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import BadNotebook, ConfigError, KernelStartFailed, PortInUse, SettlementPending
from jupyter_depin.journal import Journal
from jupyter_depin.kernelspec import write_kernel_spec
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.receipt import Receipt
from jupyter_depin.receipts import describe

KERNEL_NAME = "depin-rented"
RATE = "0.36"
MAX_SPEND = "0.72"
_FUNDS = Amount(1_000_000_000)
_STOP_S = 60
_COME_UP_S = 60
_COLOUR = re.compile("\x1b\\[[0-9;]*m")

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


def run_lab(*, port: int | None, browser: bool) -> int:
    """Start JupyterLab on the demo until Ctrl-C; then settle and print the receipts. Called by the command line.

    Without a `port` Lab looks for one itself. Returns Lab's exit status. Raises `PortInUse`.
    """
    if port:
        _check_free(port)
    with started() as demo:
        notebooks = demo.folder / "notebooks"
        notebooks.mkdir()
        (notebooks / "Welcome.ipynb").write_text(json.dumps(_welcome()), "utf-8")
        command = [
            sys.executable, "-m", "jupyter_depin.demo", f"--ServerApp.root_dir={notebooks}",
            *([] if port is None else [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]),
            f"--ServerApp.open_browser={browser}", "--LabApp.default_url=/lab/tree/Welcome.ipynb",
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")
        progress("Starting JupyterLab: choose the kernel “Rented kernel (depin)”. Ctrl-C ends everything.")
        return _until_it_ends(demo, command)


def run_program(command: Sequence[str]) -> int:
    """Start another Jupyter program that sees the rented kernel, such as a hub's own server. As `run_lab` else."""
    with started() as demo:
        return _until_it_ends(demo, command)


def _until_it_ends(demo: Demo, command: Sequence[str]) -> int:
    try:
        program = subprocess.Popen(
            command, env=demo.environment(), stdin=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ConfigError(detail=f"{command[0]} cannot be started ({error.strerror})") from error
    try:
        with _stops_on_signal(program):
            program.wait()
    finally:
        _stop(program, signal.SIGTERM)
    for receipt in demo.receipts():
        print(describe(receipt), flush=True)
    return int(program.returncode > 0)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise ConfigError(
                detail=f"port {port} is reserved for the system; choose one from 1024 on"
            ) from error
        except OSError as error:
            raise PortInUse(port=port) from error


def run_notebook(path: Path, *, output: Path | None, as_json: bool) -> int:
    """Execute a notebook through a rented kernel, write the executed copy, settle, print the receipt.

    Called by the command line. Returns 0, or 1 if a cell failed or the rental is not settled.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise BadNotebook(path=path, reason=told) from error
    target = output or path.with_name(f"{path.stem}.executed.ipynb")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise BadNotebook(path=target, reason="it cannot be written there")
    failed = False
    with started() as demo:
        os.environ.update(demo.environment())
        folder = str(path.resolve().parent)
        client = NotebookClient(
            notebook, kernel_name=KERNEL_NAME, resources={"metadata": {"path": folder}}, timeout=None
        )
        # A kernel that cannot be had is told below; jupyter_client would log its traceback before.
        logging.getLogger("traitlets").setLevel(logging.CRITICAL)
        progress(f"Running {path.name} on the rented kernel …")
        try:
            _uninterrupted(client.execute)
        except KeyboardInterrupt:
            failed = True
            progress("Stopped. What ran until now is paid and settled.")
        except (CellExecutionError, DeadKernelError, RuntimeError) as error:
            # A kernel that dies while it starts is jupyter_client's RuntimeError.
            failed = True
            progress(f"jupyter-depin: a cell of {path.name} failed: {_last_line(error)}")
        finally:
            nbformat.write(notebook, target)
            progress(f"Wrote {target}.")
        receipts = demo.receipts()
        if not receipts:
            raise SettlementPending(reason="no receipt was written")
        receipt = receipts[0]
        print(json.dumps(receipt.to_json()) if as_json else describe(receipt), flush=True)
    return 1 if failed or not receipt.chain_agrees else 0


def _uninterrupted(execute: Callable[[], object]) -> None:
    """Execute on a thread of its own, where Ctrl-C does not tear nbclient apart; it ends the rentals instead.

    Raises `KeyboardInterrupt` once they are settled and the execution has noticed.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(execute)
        try:
            running.result()
        except KeyboardInterrupt:
            runtime = Runtime.get()
            for status in runtime.snapshot():
                asyncio.run(runtime.settle(status.id))
            running.exception()
            raise


@contextmanager
def started() -> Iterator[Demo]:
    """Chain, contracts, funds, agent and kernel spec, all in a temporary folder that is gone afterwards."""
    with ExitStack() as stack:
        stack.enter_context(_sigterm_unwinds())
        folder = Path(tempfile.mkdtemp(prefix="depin-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # Short names: the paths of the kernels' sockets have a narrow limit, and some temporary folders lie deep.
        consumer, provider = folder / "c", folder / "p"
        for home in (consumer, provider):
            home.mkdir(mode=0o700)
        renter = Wallet.load_or_create(consumer / "wallet.key")
        owner = Wallet.load_or_create(provider / "wallet.key")
        progress("Starting the embedded chain …")
        chain = _child(
            stack, "jupyter_depin.chain.devchain", "--with-parent", "--state", str(folder / "chain.log"),
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
        yield Demo(folder, consumer, folder / "jupyter", agent["sandbox"])


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


def _last_line(error: Exception) -> str:
    lines = [line for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _child(stack: ExitStack, module: str, *arguments: str) -> dict[str, Any]:
    """Start one of our programs, which prints a line of JSON when it is ready and ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    stack.callback(_stop, process, signal.SIGTERM)
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


def _stop(process: subprocess.Popen[bytes], signum: int) -> None:
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
def _stops_on_signal(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask Lab to end, which shuts its kernels down, which settles them."""

    def ask(*_: object) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    before: list[tuple[int, Callable[..., Any] | int | None]] = [
        (signum, signal.signal(signum, ask)) for signum in (signal.SIGINT, signal.SIGTERM)
    ]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)


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


def _lab_until_input_ends() -> None:
    """JupyterLab as a child of the demo: it shuts its kernels down, and so settles, however the demo ends."""
    from jupyterlab.labapp import main

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    main()


def _welcome() -> dict[str, Any]:
    import nbformat.v4 as v4

    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell(
                "# A kernel on somebody else's machine\n\nRun the cells. The status bar below shows what it costs; "
                "a click on it stops and settles the rental."
            ),
            v4.new_code_cell(
                "import platform, sys\nprint('Hello from', platform.node(), sys.version.split()[0])"
            ),
            v4.new_code_cell("sum(i * i for i in range(1_000_000))"),
        ],
        metadata={
            "kernelspec": {"name": KERNEL_NAME, "display_name": "Rented kernel (depin)", "language": "python"}
        },
    )
    return dict(notebook)


if __name__ == "__main__":
    _lab_until_input_ends()
