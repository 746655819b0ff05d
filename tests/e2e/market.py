"""One chain, one agent and one funded renter for many refusals; every renter's mistake gets a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil

from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.deploy import deploy, fund
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeId, Ticket
from jupyter_depin.protocol.money import Amount
from tests.e2e.world import FUNDS, World

Done = subprocess.CompletedProcess[str]
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
PROVIDER = "import sys; from provider_kernel.cli import main; sys.exit(main())"


def run(*command: object, **options: Any) -> Done:
    """One of our programs, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def sentence(done: Done, program: str = "jupyter-depin") -> str:
    """The one sentence with which a program failed; anything else on standard error fails the test."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    line, newline, more = done.stderr.partition("\n")
    assert newline, done.stderr
    assert not more, done.stderr
    name, _, said = line.partition(": ")
    assert name == program, done.stderr
    assert said.endswith("."), said
    assert ".." not in said, said
    return said


@contextmanager
def ports(taken: int = 0) -> Iterator[dict[str, Any]]:
    """A connection file's content; `taken`, where given, stands for its shell port."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in CHANNELS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        chosen = {
            f"{name}_port": probe.getsockname()[1] for name, probe in zip(CHANNELS, probes, strict=True)
        }
    if taken:
        chosen["shell_port"] = taken
    yield {"transport": "tcp", "ip": "127.0.0.1", "key": "k", "signature_scheme": "hmac-sha256", **chosen}


@dataclass
class Market:
    """The world that all tests of a module share, and its one honest ticket."""

    world: World
    ticket: Ticket

    def renter(self, folder: Path, **settings: object) -> Path:
        """A home with the funded wallet, and with `settings` in its config.toml."""
        home = folder / "home"
        home.mkdir(mode=0o700)
        for name in ("wallet.key", "network.json"):
            shutil.copyfile(self.world.consumer / name, home / name)
        self.configure(home, **{"tickets": [str(self.ticket)], "max_rate_per_hour": "3.6", **settings})
        return home

    @staticmethod
    def configure(home: Path, **settings: object) -> None:
        """Write config.toml. JSON's literals are TOML's."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
        (home / "config.toml").write_text("".join(lines))

    def rent(self, home: Path, *, taken: int = 0, **options: Any) -> Done:
        """What VS Code starts for a rented kernel, until it gives up."""
        connection_file = home / "connection.json"
        with ports(taken) as info:
            connection_file.write_text(json.dumps(info))
        return run("-m", "jupyter_depin.kernel", "-f", connection_file, "--home", home, **options)

    def depin(self, home: Path, *arguments: str) -> Done:
        """`jupyter depin …` of that home."""
        return run("-m", "jupyter_depin", *arguments, "--home", home)

    def refused(self, home: Path, **options: Any) -> str:
        """The sentence with which renting fails. Nothing may be paid, locked or left pending."""
        before = self.money()
        said = sentence(self.rent(home, **options))
        assert self.money() == before
        return said

    def money(self) -> tuple[int, int]:
        """What the renter has in all, and what the honest provider has, in base units."""
        wallet, escrow, earned = anyio.run(self.world.ledger_says)
        return wallet + escrow, earned

    def book(self, **changes: object) -> AddressBook:
        """The renter's address book; `changes` go through its JSON."""
        path = self.world.consumer / "network.json"
        return AddressBook._from({**json.loads(path.read_text("utf-8")), **changes})

    def other_registry(self, node: NodeId | None) -> AddressBook:
        """A book whose registry does not know the provider, or knows it for another node."""

        async def make() -> AddressBook:
            book = self.book()
            other = await deploy(book.rpc_urls[0], self.world.owner, token=book.token)
            mixed = AddressBook(
                book.chain_id,
                book.rpc_urls,
                book.vault,
                other.registry,
                book.token,
                book.symbol,
                book.decimals,
            )
            if node is not None:
                ledger = EvmLedger(mixed)
                await ledger.register(self.world.owner, node, Amount(100_000_000))
                await ledger.close()
            return mixed

        return anyio.run(make)

    def funded(self, path: Path, *, money: int = FUNDS, fees: bool = True) -> Wallet:
        """A new wallet in a file, with money of both kinds."""
        wallet = Wallet.load_or_create(path)

        async def fill() -> None:
            book = self.book()
            ledger = EvmLedger(book)
            if fees:
                await fund(book.rpc_urls[0], wallet.address)
            if money:
                await ledger.mint(self.world.owner, wallet.address, Amount(money))
            await ledger.close()

        anyio.run(fill)
        return wallet

    def provider(self, folder: Path, text: str = "") -> Path:
        """A second provider's home. Its wallet has nothing."""
        home = folder / "provider"
        home.mkdir(mode=0o700)
        shutil.copyfile(self.world.provider / "network.json", home / "network.json")
        (home / "provider.toml").write_text(f'listen = "127.0.0.1:0"\n{text}')
        return home

    def start(self, home: Path, *options: object, lie: str = "", **more: Any) -> Done:
        """`provider-kernel start`, for as long as its standard input lasts: not at all."""
        command = ("-c", lie + "\n" + PROVIDER, "start", "--home", home, "--with-parent", *options)
        return run(*command, **more)

    @contextmanager
    def agent(self, home: Path, *, lie: str = "", **options: Any) -> Iterator[str]:
        """A second agent, running; its ticket. `lie`: Python that bends it first."""
        self.funded(home / "wallet.key")
        with subprocess.Popen(
            [sys.executable, "-c", lie + "\n" + PROVIDER, "start", "--home", str(home), "--with-parent"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())["ticket"]
            finally:
                process.stdin.close()
                assert process.wait(60) == 0


@contextmanager
def market(folder: Path) -> Iterator[Market]:
    """A market that is gone afterwards, with everything that its guests have started."""
    world = World(folder)
    try:
        agent = world.start_agent()
        assert agent.poll() is None
        text = next(iter((world.consumer / "config.toml").read_text().split('"')[1:]))
        yield Market(world, Ticket.parse(text))
    finally:
        world.close()


def running(folder: Path) -> list[list[str]]:
    """Command lines of living processes that name the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if (
            str(folder) in " ".join(words)
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and process.pid != os.getpid()
        ):
            found.append(words)
    return found
