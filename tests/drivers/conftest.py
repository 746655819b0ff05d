"""Two tunnel drivers over a network in memory, and the loops that link them again whenever they are cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from jupyter_depin.drivers import tunnel
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import TransportError
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.transport import Connection, Stream
from jupyter_depin.transport.memory import MemoryNetwork
from jupyter_depin.tunnel.events import Event
from jupyter_depin.tunnel.machine import Tunnel

GENEROUS = 120
GRACE_NS = 600 * 10**9


class Ends:
    """Drivers 0 (which dials) and 1, what each was told, and the network between them."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.nodes = network.endpoint("dials"), network.endpoint("answers")
        self.got: list[dict[Lane, list[list[bytes]]]] = [defaultdict(list), defaultdict(list)]
        self.events: list[list[Event]] = [[], []]
        self.links = 0
        self.reasons: list[list[str]] = [[], []]
        self.answered: list[Connection] = []
        self.on_message: list[Callable[[Lane, Sequence[Part]], None] | None] = [None, None]
        self.drivers = [self.driver(0), self.driver(1)]

    def driver(self, i: int, **options: Any) -> TunnelDriver:
        def received(lane: Lane, parts: Sequence[Part]) -> None:
            self.got[i][lane].append([bytes(part) for part in parts])
            handler = self.on_message[i]
            if handler is not None:
                handler(lane, parts)

        machine = Tunnel(**{"grace_ns": GRACE_NS, "now": tunnel.steady_ns(), **options})
        return TunnelDriver(machine, opens=i == 0, on_message=received, on_event=self.events[i].append)

    async def turns(self, count: int = 40) -> None:
        """Let every task go on as far as it can without a clock."""
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    async def dial(self) -> tuple[Connection, Stream]:
        connection = await self.nodes[0].connect(self.nodes[1].address())
        control = await connection.open_stream()
        await control.write(b"!")
        return connection, control

    async def answer(self) -> tuple[Connection, Stream]:
        connection = await self.nodes[1].accept()
        control = await connection.accept_stream()
        assert await control.read(1) == b"!"
        return connection, control

    async def keep_dialling(self) -> None:
        while True:
            try:
                connection, control = await self.dial()
                self.links += 1
                self.reasons[0].append(await self.drivers[0].carry(connection, control))
                await connection.close()
            except TransportError:
                await anyio.lowlevel.checkpoint()

    async def keep_answering(self) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                tasks.start_soon(self._carry, await self.nodes[1].accept())

    async def _carry(self, connection: Connection) -> None:
        self.answered.append(connection)
        try:
            control = await connection.accept_stream()
            await control.read(1)
            self.reasons[1].append(await self.drivers[1].carry(connection, control))
        except TransportError:
            pass
        await connection.close()

    def cut(self) -> None:
        self.network.drop_connections(self.nodes[0].node, self.nodes[1].node)

    async def linked(self) -> None:
        while not all(driver.attached for driver in self.drivers):
            await anyio.lowlevel.checkpoint()

    async def drained(self) -> None:
        """Every message of both ends is taken."""
        for driver in self.drivers:
            for lane in Lane:
                await driver.taken(lane)


Pair = Callable[..., AbstractAsyncContextManager[Ends]]


@pytest.fixture
def pair() -> Pair:
    """`async with pair() as ends`: both drivers, linked and linked again by themselves unless `keep=False`."""

    @asynccontextmanager
    async def paired(*, keep: bool = True, window: int = 1 << 18) -> AsyncIterator[Ends]:
        with anyio.fail_after(GENEROUS):
            ends = Ends(MemoryNetwork(window=window))
            async with anyio.create_task_group() as tasks:
                if keep:
                    tasks.start_soon(ends.keep_dialling)
                    tasks.start_soon(ends.keep_answering)
                    await ends.linked()
                yield ends
                tasks.cancel_scope.cancel()
            for driver in ends.drivers:
                driver.close()

    return paired
