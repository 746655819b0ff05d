"""A development chain as a real program, and one world of wallets and a ledger in two kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from jupyter_depin.chain import Ledger
from jupyter_depin.chain.deploy import Rules, deploy, fund
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.chain.memory import MemoryLedger
from jupyter_depin.chain.rpc import Rpc
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import Address
from jupyter_depin.protocol.money import Amount

CHALLENGE_S = 3600
SETTLE_S = 7200
MIN_STAKE = Amount(500)


class Devchain:
    """The embedded chain as a child process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_depin.chain.devchain", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url: str = json.loads(line)["url"] if line else ""

    def stop(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="session")
def devchain() -> Iterator[Devchain]:
    chain = Devchain()
    yield chain
    assert chain.stop() == 0


@pytest.fixture
def start() -> Iterator[Callable[..., Devchain]]:
    """Start chains that end with the test."""
    running: list[Devchain] = []

    def run(*arguments: str) -> Devchain:
        running.append(Devchain(*arguments))
        return running[-1]

    yield run
    for chain in running:
        chain.process.kill()
        chain.process.communicate()


@dataclass
class World:
    """A ledger, wallets with money and fees, and a clock to push."""

    ledger: Ledger
    _fill: Callable[[Address, Amount], object]
    _advance: Callable[[int], object]

    async def wallet(self, money: int = 0) -> Wallet:
        wallet = Wallet.generate()
        await self._fill(wallet.address, Amount(money))
        return wallet

    async def advance(self, seconds: int) -> None:
        await self._advance(seconds)


@asynccontextmanager
async def _in_memory() -> AsyncIterator[World]:
    ledger = MemoryLedger(challenge_s=CHALLENGE_S, settle_s=SETTLE_S, min_stake=MIN_STAKE)

    async def fill(owner: Address, money: Amount) -> None:
        ledger.mint(owner, money)

    async def advance(seconds: int) -> None:
        ledger.advance(seconds)

    yield World(ledger, fill, advance)
    await ledger.close()


@asynccontextmanager
async def _on_devchain(url: str) -> AsyncIterator[World]:
    bank = Wallet.generate()
    await fund(url, bank.address)
    rules = Rules(challenge_s=CHALLENGE_S, settle_s=SETTLE_S, min_stake=MIN_STAKE)
    ledger = EvmLedger(await deploy(url, bank, rules=rules))
    rpc = Rpc([url], 10.0)

    async def fill(owner: Address, money: Amount) -> None:
        await fund(url, owner)
        if money:
            await ledger.mint(bank, owner, money)

    async def advance(seconds: int) -> None:
        await rpc.call("evm_increaseTime", seconds)

    yield World(ledger, fill, advance)
    await rpc.close()
    await ledger.close()


@pytest.fixture(params=["memory", "devchain"])
def world(request: pytest.FixtureRequest) -> Callable[[], AbstractAsyncContextManager[World]]:
    if request.param == "memory":
        return _in_memory
    url = request.getfixturevalue("devchain").url
    return lambda: _on_devchain(url)
