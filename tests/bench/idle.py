"""What a tunnel costs that nobody uses: memory and processor time of either side, for each of many between two programs.

Run as programs: `provider` prints its node's address and takes connections; `consumer ADDRESS` obeys. Both obey `take
COUNT` (be at so many tunnels) and `measure SECONDS` (bytes in memory, share of a processor in that time). Each tunnel
has its connection, its lanes and the channels of either side; the kernel behind all of them is one set of sockets, and
there is no lease and no meter.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import zmq

from jupyter_depin.channels import ClientSide, KernelSide
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.loop import new_event_loop
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.transport.iroh import IrohEndpoint, bind
from jupyter_depin.tunnel.machine import Tunnel
from tests.bench.children import Child, child
from tests.bench.report import Benchmark, Line

_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_SECONDS = 10


class _Side:
    """One program's tunnels."""

    def __init__(self, folder: str, endpoint: IrohEndpoint, provider: bool) -> None:
        self._folder, self._endpoint, self._provider = Path(folder), endpoint, provider
        self._tasks: list[asyncio.Task[str]] = []
        self._kept: list[object] = []
        self._kernel: dict[str, str] = {}
        self.drivers: list[TunnelDriver] = []

    def kernel(self) -> None:
        """The sockets that stand for every kernel."""
        context = zmq.Context.instance()
        for name in ("shell", "iopub", "stdin", "control"):
            made = context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            self._kernel[name] = f"ipc://{self._folder}/{name}"
            made.bind(self._kernel[name])
            self._kept.append(made)

    def driver(self) -> TunnelDriver:
        driver = TunnelDriver(
            Tunnel(
                grace_ns=3600 * NS_PER_SECOND,
                now=steady_ns(),
                ping_ns=None if self._provider else 3 * NS_PER_SECOND,
            ),
            opens=not self._provider,
            on_message=lambda lane, parts: None,
            on_event=lambda event: None,
        )
        self.drivers.append(driver)
        if self._provider:
            self._kept.append(KernelSide(self._kernel, lambda lane, parts: None, driver.hold))
        else:
            ports = {name: i for i, name in enumerate(_CHANNELS, 1)}
            info = LocalInfo("ipc", f"{self._folder}/{len(self.drivers)}", ports, b"key")
            self._kept.append(ClientSide(info, lambda lane, parts: None, driver.hold))
        return driver

    async def answer(self) -> None:
        while True:
            connection = await self._endpoint.accept()
            control = await connection.accept_stream()
            await control.read(1)
            self._tasks.append(asyncio.create_task(self.driver().carry(connection, control)))

    async def dial(self, address: NodeAddress) -> None:
        connection = await self._endpoint.connect(address)
        control = await connection.open_stream()
        await control.write(b"!")
        self._tasks.append(asyncio.create_task(self.driver().carry(connection, control)))


async def obey(count: Callable[[int], Awaitable[None]]) -> None:
    """Do what the benchmark asks. For programs that it starts."""
    me = psutil.Process()
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, number = line.split()[0], int(line.split()[1])
        if what == "take":
            await count(number)
            _say(number)
        else:
            gc.collect()
            begun, used = time.perf_counter(), sum(me.cpu_times()[:2])
            await asyncio.sleep(number)
            _say([me.memory_info().rss, (sum(me.cpu_times()[:2]) - used) / (time.perf_counter() - begun)])


async def _run(role: str, place: str) -> None:
    endpoint = await bind(secret=os.urandom(32), listen="127.0.0.1:0")
    with tempfile.TemporaryDirectory(prefix="i-") as folder:
        side = _Side(folder, endpoint, role == "provider")

        async def all_attached(number: int) -> None:
            while sum(driver.attached for driver in side.drivers) < number:
                await asyncio.sleep(0.05)

        if role == "provider":
            side.kernel()
            answering = asyncio.create_task(side.answer())
            address = endpoint.address()
            _say({"node": address.node.hex(), "direct": address.direct})
            await obey(all_attached)
            answering.cancel()
        else:
            known = json.loads(place)
            address = NodeAddress(NodeId(bytes.fromhex(known["node"])), None, tuple(known["direct"]))

            async def take(number: int) -> None:
                for _ in range(number - len(side.drivers)):
                    await side.dial(address)
                await all_attached(number)

            await obey(take)
        os._exit(0)


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def _each(
    program: Child, few: int, many: int, seconds: int, both: Callable[[int], None]
) -> tuple[float, float]:
    """KiB and per mille of a processor for each of the tunnels beyond the first few."""
    before = program.ask("measure", 1)
    both(many)
    after = program.ask("measure", seconds)
    return (after[0] - before[0]) / 1024 / (many - few), 1000 * after[1] / many


def _idle(quick: bool) -> Iterator[Line]:
    few, many, seconds = (1, 20, 2) if quick else (5, 500, _SECONDS)
    with child("ssh_forward", "serve") as server, child("ssh_forward", "idle", server.hear()) as forwarder:
        forwarder.ask("take", few)
        ssh = _each(forwarder, few, many, seconds, lambda n: forwarder.ask("take", n))
    with (
        child("idle", "provider") as provider,
        child("idle", "consumer", json.dumps(provider.hear())) as consumer,
    ):

        def both(number: int) -> None:
            consumer.ask("take", number)
            provider.ask("take", number)

        both(few)
        idle_provider = provider.ask("measure", 1)
        ours = _each(consumer, few, many, seconds, both)
        after = provider.ask("measure", seconds)
        theirs = (after[0] - idle_provider[0]) / 1024 / (many - few), 1000 * after[1] / many
    peer = "asyncssh, five idle forwards"
    for name, (kib, share) in (("renter", ours), ("agent", theirs)):
        yield Line(f"idle_500_{name}_KiB", kib, "KiB a tunnel", peer, ssh[0])
        yield Line(f"idle_500_{name}_cpu", share, "per mille of a processor a tunnel", peer, ssh[1])


BENCHMARKS = (
    Benchmark(
        ("idle_500_renter_KiB", "idle_500_renter_cpu", "idle_500_agent_KiB", "idle_500_agent_cpu"),
        "lower",
        "memory and processor time of either side for each of 500 idle tunnels between two nodes",
        _idle,
    ),
)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
