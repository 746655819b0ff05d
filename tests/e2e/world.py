"""Chain, agent and renter as processes of their own, each of which a test can kill and start again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import psutil

from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.deploy import deploy
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.demo import KERNEL_NAME
from jupyter_depin.journal import Journal
from jupyter_depin.kernelspec import write_kernel_spec
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import Amount

FUNDS = Amount(1_000_000_000)
RATE = 3_600_000  # base units per hour: a thousand per second
TICK_S = 1

RENTER = """
import queue, sys
from jupyter_client.manager import start_new_kernel
km, kc = start_new_kernel(kernel_name="depin-rented", startup_timeout=120)
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "leave":
        sys.exit()
    kc.execute(line.strip())
    while True:
        try:
            message = kc.get_iopub_msg(timeout=0.5)
        except queue.Empty:
            if not km.is_alive():
                print("dead", flush=True)
                break
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            print(content["name"], content["text"].rstrip(), flush=True)
        if kind == "status" and content["execution_state"] == "idle":
            print("idle", flush=True)
            break
kc.stop_channels()
km.shutdown_kernel()
print("over", flush=True)
"""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def opened(pid: int) -> set[str]:
    """What a process has open."""
    names = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.add(os.readlink(each))
    return names


class World:
    """Everything below one folder. Programs are started by `start_…` and killed by `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.consumer, self.provider = folder / "consumer", folder / "provider"
        for home in (self.consumer, self.provider):
            home.mkdir(mode=0o700)
        self.renter = Wallet.load_or_create(self.consumer / "wallet.key")
        self.owner = Wallet.load_or_create(self.provider / "wallet.key")
        # Short, however long the folder's name is: it holds the kernels' sockets.
        self._kernels = tempfile.mkdtemp(prefix="w-", dir="/tmp")
        self._chain_port, self._agent_port = free_port(), free_port(socket.SOCK_DGRAM)
        self._running: list[subprocess.Popen[str]] = []
        self.chain = self.start_chain()
        anyio.run(self._deploy)

    async def _deploy(self) -> None:
        book = await deploy(f"http://127.0.0.1:{self._chain_port}", self.owner)
        ledger = EvmLedger(book)
        for wallet in (self.owner, self.renter):
            await ledger.mint(wallet, wallet.address, FUNDS)
        await ledger.close()
        for home in (self.consumer, self.provider):
            book.save(home / "network.json")

    def _start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c" if command[0] == RENTER else "-m", *command],
            stdout=subprocess.PIPE, text=True, cwd=self.folder, **options,
        )  # fmt: skip
        self._running.append(process)
        return process

    def start_chain(self) -> subprocess.Popen[str]:
        """The chain, with what an earlier one wrote down."""
        funds = [word for w in (self.renter, self.owner) for word in ("--fund", checksummed(w.address))]
        chain = self._start(
            "jupyter_depin.chain.devchain",
            "--port",
            str(self._chain_port),
            "--state",
            str(self.folder / "chain"),
            *funds,
        )
        json.loads(chain.stdout.readline())
        return chain

    def start_agent(self, *, grace_s: int = 600) -> subprocess.Popen[str]:
        """The agent, always at the same address."""
        (self.provider / "provider.toml").write_text(
            f'rate_per_hour = "3.6"\nstake = "100"\ntick_s = {TICK_S}\narrears_s = 3\ngrace_s = {grace_s}\n'
            f'listen = "127.0.0.1:{self._agent_port}"\nkernels = "{self._kernels}"\n'
        )
        agent = self._start("provider_kernel", "start", "--home", str(self.provider))
        ticket = json.loads(agent.stdout.readline())["ticket"]
        (self.consumer / "config.toml").write_text(
            f'tickets = ["{ticket}"]\nmax_rate_per_hour = "3.6"\nmax_spend = "7.2"\nsettle_wait_s = 5\n'
        )
        write_kernel_spec(self.folder / "jupyter" / "kernels" / KERNEL_NAME, self.consumer)
        return agent

    def start_renter(self) -> subprocess.Popen[str]:
        """A program that rents, then executes each line it is given and says what came."""
        return self._start(RENTER, stdin=subprocess.PIPE, env=self.environment())

    def environment(self) -> dict[str, str]:
        """What a Jupyter program of this renter sees."""
        return {
            **os.environ,
            "JUPYTER_PATH": str(self.folder / "jupyter"),
            "JUPYTER_DEPIN_HOME": str(self.consumer),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
        }

    def depin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`jupyter depin …` as the renter."""
        command = [sys.executable, "-m", "jupyter_depin", *arguments]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)

    def journal(self, home: Path) -> Journal:
        return Journal(home / "journal.sqlite")

    def pass_time(self, seconds: int) -> None:
        """Put the chain's clock forward."""
        for method, parameters in (("evm_increaseTime", [seconds]), ("evm_mine", [])):
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._chain_port}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as reply:
                assert "error" not in json.load(reply)

    def kernels(self) -> list[psutil.Process]:
        """Kernel processes that live, wherever they hang: a sandboxed one is known by the sockets that it was given."""
        sockets = {
            f"socket:[{fields[6]}]"
            for fields in map(str.split, Path("/proc/net/unix").read_text().splitlines())
            if fields[7:] and fields[7].startswith(self._kernels)
        }
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if ("ipykernel" in words or "kernel_main" in words) and (
                self._kernels in words or sockets & opened(process.pid)
            ):
                found.append(process)
        return found

    async def ledger_says(self) -> tuple[int, int, int]:
        """Renter's wallet and escrow, and what the provider has beyond its stake, in base units."""
        ledger = EvmLedger(AddressBook.load(self.consumer / "network.json"))
        try:
            return (
                await ledger.balance(self.renter.address),
                await ledger.escrow(self.renter.address),
                await ledger.balance(self.owner.address),
            )
        finally:
            await ledger.close()

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                for each in [
                    *psutil.Process(process.pid).children(recursive=True),
                    psutil.Process(process.pid),
                ]:
                    each.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        shutil.rmtree(self._kernels, ignore_errors=True)


def tell(renter: subprocess.Popen[str], code: str) -> None:
    """Give the renter a cell."""
    assert renter.stdin is not None
    renter.stdin.write(code + "\n")
    renter.stdin.flush()


def hear(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """Read lines until one is `wanted`; returns those before it."""
    assert process.stdout is not None
    before: list[str] = []
    for line in process.stdout:
        if line.strip() == wanted:
            return before
        before.append(line.rstrip())
    raise AssertionError(f"{wanted!r} never came; heard {before}")


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world that is gone afterwards."""
    made = World(folder)
    try:
        yield made
    finally:
        made.close()
