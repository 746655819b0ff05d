"""A provider and its renters in one process and on one clock, which stands still unless a test moves it.

The loop's own clock is replaced too, so every timer in between (ticks, graces, redials, patience) rings when the test's
time comes and never because the machine is busy. The sandbox is a stand-in whose kernels only note what is done to them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from jupyter_depin.chain.memory import MemoryLedger
from jupyter_depin.consumer.backend import Backend
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.opening import OpenedLease, open_lease
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.errors import DepinError, KernelStartFailed
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.money import Amount
from jupyter_depin.transport.memory import MemoryEndpoint, MemoryNetwork
from provider_kernel.agent import Agent
from provider_kernel.config import ProviderConfig
from provider_kernel.sandbox import KernelCommand, KernelSockets, Limits

GIFT = 10**9
RATE = "3.6"
PER_SECOND = 1000
"""Base units that a second costs at `RATE`."""
S = 10**9


class Clock:
    """Steady and Unix time, and the loop's, in one."""

    def __init__(self) -> None:
        self.now_ns = 5_000 * S

    def steady_ns(self) -> int:
        return self.now_ns

    def unix_ns(self) -> int:
        return 1_800_000_000 * S + self.now_ns

    def unix_now(self) -> int:
        return self.unix_ns() // S

    def seconds(self) -> float:
        return self.now_ns / 1e9

    async def turns(self, count: int = 30) -> None:
        """Let every task go on as far as it can while time stands still."""
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    async def wait(self, seconds: float) -> None:
        """Let time pass, from one timer to the next."""
        until = self.now_ns + round(seconds * S)
        while self.now_ns < until:
            await self.turns()
            self.now_ns = min(until, max(self.now_ns + 1, self._next_ns()))
        await self.turns()

    async def until(self, fact: Callable[[], object], within: float = 7200) -> None:
        """Let time pass until something is so."""
        limit = self.now_ns + round(within * S)
        await self.turns()
        while not fact():
            assert self.now_ns < limit, f"not so within {within} s"
            self.now_ns = min(limit, max(self.now_ns + 1, self._next_ns()))
            await self.turns()

    def _next_ns(self) -> int:
        # The loop has no public way to ask for its next timer. A microsecond more: its times are floats.
        timers = [timer.when() for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
        return round(min(timers, default=1e9) * 1e9) + 1000


class FakeKernel:
    """Notes what is done to it."""

    def __init__(self, command: KernelCommand, folder: Path) -> None:
        self.command, self.folder = command, folder
        self.sockets = KernelSockets(*(f"ipc://{folder}/k-{i}" for i in range(1, 6)))
        self.pid = 4711
        self.signals: list[int] = []
        self.paused = self.destroyed = False
        self._status: int | None = None
        self._ended = anyio.Event()

    def exit(self, status: int) -> None:
        self._status = status
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._status is not None
        return self._status

    def interrupt(self, signum: int) -> None:
        self.signals.append(signum)

    def pause(self) -> None:
        self.paused = True

    def unpause(self) -> None:
        self.paused = False

    def stderr_tail(self) -> str:
        return "last words"

    async def destroy(self) -> None:
        self.destroyed = True
        self.exit(-9)


@dataclass
class FakeSandbox:
    """Starts kernels that do nothing. `failing`: why it cannot; `gate`: a start waits for it."""

    name: str = "bubblewrap"
    kernels: list[FakeKernel] = field(default_factory=list)
    failing: str = ""
    gate: anyio.Event | None = None

    def check(self) -> None:
        pass

    def facts(self) -> dict[str, str]:
        return {"gpu": "none"}

    async def start(self, command: KernelCommand, *, folder: Path, limits: Limits) -> FakeKernel:
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise KernelStartFailed(reason=self.failing)
        self.kernels.append(FakeKernel(command, folder))
        return self.kernels[-1]


class World:
    """One provider, one renter, one ledger; more of each on demand."""

    def __init__(self, folder: Path, clock: Clock, tasks: TaskGroup) -> None:
        self.folder, self.clock, self.tasks = folder, clock, tasks
        self.network = MemoryNetwork()
        self.ledger = MemoryLedger(gift=GIFT, clock=lambda: clock.unix_ns() / 1e9)
        self.provider, self.wallet = Wallet.generate(), Wallet.generate()
        self.sandbox = FakeSandbox()
        self.provider_config = ProviderConfig(
            home=folder / "p",
            rate_per_hour=RATE,
            slots=2,
            tick_s=5,
            arrears_s=15,
            grace_s=60,
            max_seconds=7200,
        )
        (folder / "c").mkdir()
        self.config = ConsumerConfig(home=folder / "c", max_rate_per_hour="5", max_spend="10")
        self.journal = Journal(self.config.journal)
        self.provider_journal = Journal(self.provider_config.path("journal.sqlite"))
        self.endpoint = self.network.endpoint("consumer")
        self.purse = anyio.Lock()
        self.agents: list[Agent] = []
        self.changes: list[str] = []

    async def start_agent(self, *, node: str = "provider", register: bool = True, **options: Any) -> Agent:
        endpoint = self.network.endpoint(node)
        if register:
            await self.ledger.register(self.provider, endpoint.node, Amount(0))
        agent = Agent(
            **{
                "config": self.provider_config,
                "endpoint": endpoint,
                "ledger": self.ledger,
                "wallet": self.provider,
                "journal": self.provider_journal,
                "sandbox": self.sandbox,
                **options,
            }
        )
        self.agents.append(agent)
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await agent.run()

        agent.kill = scope.cancel  # type: ignore[attr-defined]
        self.tasks.start_soon(run)
        await self.clock.turns()
        return agent

    @property
    def node(self) -> NodeId:
        return self.network.endpoint("provider").node

    @property
    def tickets(self) -> tuple[str, ...]:
        return tuple(str(agent.ticket) for agent in self.agents)

    def backend(self, endpoint: MemoryEndpoint | None = None) -> Backend:
        config = replace(self.config, tickets=self.tickets)
        return Backend(config, endpoint or self.endpoint, self.ledger, self.wallet, self.journal)

    async def open(
        self, *, endpoint: MemoryEndpoint | None = None, wallet: Wallet | None = None, **config: Any
    ) -> OpenedLease:
        """Only the lease. `config` overrides the renter's settings."""
        return await open_lease(
            replace(self.config, **{"tickets": self.tickets, **config}),
            endpoint=endpoint or self.endpoint,
            ledger=self.ledger,
            wallet=wallet or self.wallet,
            journal=self.journal,
            purse=self.purse,
            kernel_id="kernel-1",
        )

    async def rent(self, **options: Any) -> Rental:
        """A lease and its living rental."""
        return self.live(await self.open(**options), endpoint=options.get("endpoint"))

    def live(self, opened: OpenedLease, *, endpoint: MemoryEndpoint | None = None) -> Rental:
        """A rental of an opened lease, and the task that is its life."""
        rental = Rental(
            opened=opened,
            config=self.config,
            endpoint=endpoint or self.endpoint,
            ledger=self.ledger,
            journal=self.journal,
            kernel_id="kernel-1",
            on_change=lambda rental: self.changes.append(rental.status().state),
        )
        self.tasks.start_soon(rental.run)
        return rental

    def settle(self, rental: Rental, reason: EndReason = EndReason.STOPPED_BY_USER) -> None:
        self.tasks.start_soon(rental.settle, reason)

    async def ended(self, rental: Rental, within: float = 7200) -> Rental:
        await self.clock.until(lambda: rental.status().state == "ended", within)
        return rental

    def local(self, name: str = "k") -> LocalInfo:
        channels = ("shell", "iopub", "stdin", "control", "hb")
        ports = {channel: port for port, channel in enumerate(channels, 1)}
        return LocalInfo("ipc", str(self.folder / name), ports, b"the key")

    async def launch(self, rental: Rental, *, env: dict[str, str] | None = None) -> FakeKernel:
        await rental.launch(self.local(), env=env or {}, argv=None, cwd=None)
        return self.sandbox.kernels[-1]

    async def refused(self, error: type[DepinError], **options: Any) -> str:
        """Opening a lease must fail so; the sentence. Nothing may have been spent."""
        before = await self.money()
        with pytest.raises(error) as caught:
            await self.open(**options)
        assert await self.money() == before
        assert not self.sandbox.kernels
        return str(caught.value)

    async def money(self) -> tuple[int, int, int]:
        """What the renter has in all, what of it is locked, what the provider has."""
        free = await self.ledger.balance(self.wallet.address) + await self.ledger.escrow(self.wallet.address)
        return free, GIFT - free, await self.ledger.balance(self.provider.address)

    def cut(self) -> None:
        self.network.cut(self.endpoint.node, self.node_of("provider"))

    def mend(self) -> None:
        self.network.mend(self.endpoint.node, self.node_of("provider"))

    def silence(self) -> None:
        """Cut, and nobody is told: what is under way stays so until the network is told to release it."""
        self.network.silence(self.endpoint.node, self.node_of("provider"))

    def drop(self) -> None:
        self.network.drop_connections(self.endpoint.node, self.node_of("provider"))

    def node_of(self, name: str) -> NodeId:
        return self.agents[0].ticket.address.node if name == "provider" else self.endpoint.node


@asynccontextmanager
async def living(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world in a folder of its own: everything ends with the block, and the loop has its own clock again."""
    clock = Clock()
    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ("jupyter_depin", "provider_kernel"):
                for reading in ("steady_ns", "unix_ns", "unix_now"):
                    if hasattr(module, reading):
                        patch.setattr(module, reading, getattr(clock, reading))
        patch.setattr(asyncio.get_running_loop(), "time", clock.seconds, raising=False)
        async with anyio.create_task_group() as time:
            async with anyio.create_task_group() as tasks:
                try:
                    yield World(folder, clock, tasks)
                finally:
                    tasks.cancel_scope.cancel()
                    # Whatever says goodbye now may need some time for it.
                    time.start_soon(clock.wait, 300)
            time.cancel_scope.cancel()


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`async with world() as w`."""
    return lambda: living(tmp_path_factory.mktemp("w"), monkeypatch)
