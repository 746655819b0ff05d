"""What a rental stands on: a node, a ledger, a wallet, a journal; and, in loopback mode, an agent of one's own.

The chain's library is imported only here, by name and on a worker thread, when a rental really needs it: a second of
import time does not belong into every kernel start.
"""

from __future__ import annotations

import importlib
import json
import logging
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from jupyter_depin.chain import Ledger
from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.shared import LedgerAddress, SharedLedger
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.whereabouts import observers
from jupyter_depin.errors import KernelStartFailed, NoNetwork
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.money import Amount
from jupyter_depin.transport import Endpoint
from jupyter_depin.transport.iroh import join, node_id_of

log = logging.getLogger(__name__)

_AGENT_S = 60
LOOPBACK_RATE = "0.36"


class LoopbackReady(msgspec.Struct, frozen=True):
    """What a loopback agent prints when it is ready: one line of JSON."""

    ticket: str
    ledger: LedgerAddress


@dataclass
class Backend:
    """Everything that rentals of one configuration share. Made by `connect`, closed by the runtime."""

    config: ConsumerConfig
    endpoint: Endpoint
    ledger: Ledger
    wallet: Wallet
    journal: Journal
    agent: subprocess.Popen[bytes] | None = None
    purse: anyio.Lock = field(default_factory=anyio.Lock)
    ending: set[bytes] = field(default_factory=set)
    """Leases of earlier processes that are being ended just now: the journal's mark tells processes apart, not tasks."""

    @contextmanager
    def at_work_on(self, channel_id: bytes) -> Iterator[None]:
        """A lease is being ended; meanwhile it is nobody's to take up."""
        self.ending.add(channel_id)
        try:
            yield
        finally:
            self.ending.discard(channel_id)

    def alive(self) -> bool:
        """Whether new rentals can be made of it."""
        return self.agent is None or self.agent.poll() is None

    def disown(self) -> None:
        """Don't keep the agent alive. Called in a forked process, for the agent is the parent's."""
        if self.agent is not None and self.agent.stdin is not None:
            self.agent.stdin.close()

    async def close(self) -> None:
        """Let go of everything. Never raises."""
        await self.ledger.close()
        await self.endpoint.close()
        if self.agent is not None:
            # The agent ends when its standard input does.
            assert self.agent.stdin is not None
            self.agent.stdin.close()
            await anyio.to_thread.run_sync(self.agent.wait)
            shutil.rmtree(self.config.home, ignore_errors=True)


async def connect(config: ConsumerConfig) -> Backend:
    """Make a backend. Raises `ConfigError`s, `ChainUnreachable`, `WrongChain`."""
    # A node of its own for each process: two processes under one node id would steal each other's connections.
    secret = secrets.token_bytes(32)
    if config.loopback:
        return await _loopback(config, secret)
    config.make_home()
    wallet = Wallet.load_or_create(config.wallet)
    journal = Journal(config.journal)
    ledger = await open_ledger(config.home / config.address_book)
    try:
        await ledger.check()
        endpoint = await join(
            secret=secret,
            listen=config.bind,
            relays=config.relays,
            announce=config.announce,
            observers=observers(config),
        )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await ledger.close()
        raise
    return Backend(config, endpoint, ledger, wallet, journal)


async def open_ledger(address_book: Path) -> Ledger:
    """The ledger that an address book names. Raises `NoNetwork`, `DamagedConfig`."""
    if not address_book.exists():
        raise NoNetwork(
            path=address_book, fix="`jupyter depin kernel TICKET --address-book FILE` sets one up."
        )
    book = AddressBook.load(address_book)
    evm: Any = await anyio.to_thread.run_sync(importlib.import_module, "jupyter_depin.chain.evm")
    ledger: Ledger = evm.EvmLedger(book)
    return ledger


async def _loopback(config: ConsumerConfig, secret: bytes) -> Backend:
    """An agent on this machine that trusts this process alone, with a ledger in its memory."""
    home = Path(tempfile.mkdtemp(prefix="depin-"))
    command = [sys.executable, "-m", "provider_kernel", "start", "--loopback", node_id_of(secret).hex()]
    # In a session of its own: a Ctrl-C in this process's terminal is meant for the kernel, not for the agent.
    agent = subprocess.Popen(
        [*command, "--home", str(home / "agent")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent.stdout is not None
    try:
        with anyio.fail_after(_AGENT_S):
            line = await anyio.to_thread.run_sync(agent.stdout.readline, abandon_on_cancel=True)
        ready = msgspec.convert(json.loads(line), LoopbackReady)
    except (ValueError, msgspec.ValidationError, TimeoutError) as error:
        agent.kill()
        raise KernelStartFailed(reason="the loopback agent did not come up") from error
    agent.stdout.close()
    ledger = SharedLedger(ready.ledger)
    wallet = Wallet.generate()
    await ledger.deposit(wallet, Amount(2**60))
    config = replace(config, home=home, tickets=(ready.ticket,), max_rate_per_hour=LOOPBACK_RATE)
    endpoint = await join(secret=secret, listen="127.0.0.1:0")
    return Backend(config, endpoint, ledger, wallet, Journal(home / "journal.sqlite"), agent)
