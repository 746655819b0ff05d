"""What a cut link does to a cell that prints: what is lost, repeated or misplaced, and how soon it goes on.

A kernel prints numbered messages at a pace; the link loses every packet for a while, again and again at random points.
The numbers that arrived are compared one by one with those of an uncut run. The time is that from the mending to the
first message after it; its floor is a round trip and a second. The peer is the same kernel behind an asyncssh forward.
Both far ends live in networks of their own: ours is reached through a UDP proxy, in the peer's TCP packets are dropped.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from jupyter_depin.chain.shared import LedgerAddress, SharedLedger
from jupyter_depin.consumer.backend import LoopbackReady
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.opening import open_lease
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.identity import NodeAddress, Ticket
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.money import Amount
from jupyter_depin.transport.iroh import join, node_id_of
from tests.bench.client import Client, Endpoints
from tests.bench.far_agent import LEDGER, pass_on
from tests.bench.report import Benchmark, Line, quantile
from tests.udp_proxy import ROOT, apart, far, udp_proxy

PACE_S = 0.02
_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_GRACE_S = 3600
_PATIENCE_S = 150
"""So long after the mending something must come. TCP tries again after two minutes at the latest."""

_CELL = """
import os, time
from IPython.display import display
i = 0
while i < {limit} and not os.path.exists({stop!r}):
    display({{"text/plain": str(i)}}, raw=True)
    i += 1
    time.sleep({pace})
with open({count!r}, "w") as file:
    print(i, file=file)
"""


@dataclass
class Way:
    """A kernel, and the link to it."""

    endpoints: Endpoints
    cut: Callable[[], Awaitable[object]]
    mend: Callable[[], Awaitable[object]]
    rtt_s: Callable[[], float] = lambda: 0.0


@dataclass
class Run:
    """What arrived, and when; the time from each mending to the first message after it.

    `whole`: the cell's end arrived too. A forward that drops messages may drop that one.
    """

    numbers: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    over: bool = False
    whole: bool = False

    def follow(self, client: Client, cell: str, patience_s: float) -> None:
        """Run the cell to its end, or until nothing has come for so long. Called on a thread."""
        try:
            for content in client.outputs(cell, patience_s):
                self.numbers.append(int(content["data"]["text/plain"]))
                self.at.append(time.perf_counter())
            self.whole = True
        except TimeoutError:
            pass
        finally:
            self.over = True


async def _printed(way: Way, folder: Path, *, cuts: int, seconds: float, limit: int, pace: float) -> Run:
    stop, run, chance = folder / "stop", Run(), random.Random(seconds)
    stop.unlink(missing_ok=True)
    client = Client(way.endpoints)
    try:
        await anyio.to_thread.run_sync(client.first_result)
        cell = _CELL.format(limit=limit, stop=str(stop), count=str(folder / "count"), pace=pace)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, run.follow, client, cell, seconds + _PATIENCE_S)
            try:
                for _ in range(cuts):
                    await anyio.sleep(chance.uniform(0.2, 1.2))
                    await way.cut()
                    await anyio.sleep(seconds)
                    await way.mend()
                    mended = time.perf_counter()
                    while not run.over and (not run.at or run.at[-1] < mended):
                        await anyio.sleep(0.002)
                    run.waits.append(next((at for at in run.at if at >= mended), math.inf) - mended)
            finally:
                if cuts:
                    stop.touch()
    finally:
        client.close()
    return run


@asynccontextmanager
async def _rented(folder: Path) -> AsyncIterator[Way]:
    """A rented kernel whose agent is a process in a network of its own."""
    secret = secrets.token_bytes(32)
    (folder / "agent").mkdir(mode=0o700)
    (folder / "agent" / "provider.toml").write_text(f"grace_s = {_GRACE_S}\n")
    async with (
        far("tests.bench.far_agent", node_id_of(secret).hex(), str(folder)) as (ready, sockets),
        udp_proxy(sockets[0]) as proxy,
        anyio.create_task_group() as tasks,
    ):
        door = await asyncio.start_server(
            lambda reader, writer: pass_on(reader, writer, asyncio.open_unix_connection(folder / LEDGER)),
            "127.0.0.1",
        )
        told = msgspec.convert(ready, LoopbackReady)
        port: int = door.sockets[0].getsockname()[1]
        ledger = SharedLedger(LedgerAddress(port, told.ledger.secret, told.ledger.asset))
        offered = Ticket.parse(told.ticket)
        ticket = Ticket(NodeAddress(offered.address.node, (), (proxy.address,)), offered.provider)
        wallet = Wallet.generate()
        await ledger.deposit(wallet, Amount(2**60))
        home = folder / "home"
        home.mkdir(mode=0o700)
        config = ConsumerConfig(
            home=home, tickets=(str(ticket),), max_rate_per_hour="1", max_spend="10", loopback=True
        )
        journal = Journal(config.journal)
        endpoint = await join(secret=secret, listen="127.0.0.1:0")
        opened = await open_lease(
            config, endpoint=endpoint, ledger=ledger, wallet=wallet, journal=journal, purse=anyio.Lock(),
            kernel_id="cuts",
        )  # fmt: skip
        rental = Rental(
            opened=opened, config=config, endpoint=endpoint, ledger=ledger, journal=journal, kernel_id="cuts",
            on_change=lambda rental: None,
        )  # fmt: skip
        tasks.start_soon(rental.run)
        ports = {channel: number for number, channel in enumerate(_CHANNELS, 1)}
        local = LocalInfo("ipc", str(folder / "k"), ports, secrets.token_hex(16).encode())
        await rental.launch(local, env={}, argv=None, cwd=None)

        async def cut() -> None:
            proxy.cut()

        async def mend() -> None:
            proxy.mend()

        try:
            yield Way(
                Endpoints(f"ipc://{local.ip}-1", f"ipc://{local.ip}-2", local.key),
                cut,
                mend,
                lambda: (rental.status().rtt_ms or 0) / 1e3,
            )
        finally:
            with anyio.CancelScope(shield=True):
                await rental.settle(EndReason.STOPPED_BY_USER)
                await endpoint.close()
                await ledger.close()
                door.close()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _forwarded(folder: Path) -> AsyncIterator[Way]:
    """A kernel behind an SSH port forward, both in a network of their own."""
    command = ["unshare", "-rn", sys.executable, "-m", "tests.bench.far_ssh", str(folder)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def heard() -> Any:
        line = await process.stdout.readline()  # type: ignore[union-attr]
        assert line, "the far program ended early"
        return json.loads(line)

    async def order(word: str) -> None:
        process.stdin.write(f"{word}\n".encode())  # type: ignore[union-attr]
        await heard()

    try:
        info = await heard()
        yield Way(
            Endpoints.of({**info, "key": info["key"].encode()}), lambda: order("cut"), lambda: order("mend")
        )
    finally:
        process.stdin.close()
        with anyio.CancelScope(shield=True):
            await process.wait()


async def _measured(
    way: Callable[[Path], Any], cuts: int, seconds: float
) -> tuple[dict[str, int], Run, float]:
    """What became of the numbers, the run, and its floor in seconds."""
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        folder = Path(name)
        async with way(folder) as made:
            cut = await _printed(made, folder, cuts=cuts, seconds=seconds, limit=10**9, pace=PACE_S)
            # What the kernel said, whether it arrived or not.
            limit = int((folder / "count").read_text())
            whole = await _printed(made, folder, cuts=0, seconds=0, limit=limit, pace=0)
            floor = made.rtt_s() + 1
    misplaced = sum(after < before for before, after in pairwise(dict.fromkeys(cut.numbers)))
    return (
        {
            "lost": len(set(whole.numbers) - set(cut.numbers)) + (not cut.whole),
            "repeated": len(cut.numbers) - len(set(cut.numbers)),
            "misplaced": misplaced,
        },
        cut,
        floor,
    )


def _cuts(name: str, seconds: float, cuts: int, quick_cuts: int) -> Callable[[bool], Iterator[Line]]:
    def run(quick: bool) -> Iterator[Line]:
        missing = [program for program in ("unshare", "nft", "ip") if shutil.which(program) is None]
        if apart() is None or missing:
            why = f"needs {' and '.join(missing) or 'bubblewrap with a network of its own'}"
            for figure in (*_COUNTED, *_TIMED):
                yield Line(f"{name}_{figure}", None, "", "asyncssh forward", None, why)
            return
        count = quick_cuts if quick else cuts
        ours, run, floor = anyio.run(_measured, _rented, count, seconds)
        theirs, their_run, _ = anyio.run(_measured, _forwarded, count, seconds)
        for figure in _COUNTED:
            yield Line(f"{name}_{figure}", ours[figure], "messages", "asyncssh forward", theirs[figure])
        for figure, share in zip(_TIMED, (0.5, 1), strict=True):
            wait, their_wait = (_known(quantile(each.waits, share)) for each in (run, their_run))
            why = "" if None not in (wait, their_wait) else f"None: nothing came within {_PATIENCE_S} s"
            yield Line(
                f"{name}_{figure}", wait, "s", "round trip + 1 s", floor, "" if wait is not None else why
            )
            yield Line(f"{name}_{figure}", wait, "s", "asyncssh forward", their_wait, why)

    return run


def _known(wait: float) -> float | None:
    return wait if math.isfinite(wait) else None


_COUNTED = ("lost", "repeated", "misplaced")
_TIMED = ("resume_p50_s", "resume_max_s")


def _benchmark(seconds: int, cuts: int, quick_cuts: int, *, long: bool) -> Benchmark:
    name = f"cuts_{seconds}s"
    return Benchmark(
        tuple(f"{name}_{figure}" for figure in (*_COUNTED, *_TIMED)),
        "lower",
        f"a cell that prints, over a link that is cut {cuts} times for {seconds} s at random points",
        _cuts(name, seconds, cuts, quick_cuts),
        long=long,
    )


BENCHMARKS = (
    _benchmark(1, 200, 3, long=False),
    _benchmark(60, 5, 1, long=True),
    _benchmark(600, 1, 1, long=True),
)
