"""The same on the real network: a real iroh pair, and a link that loses every packet for a while."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from jupyter_depin.consumer.link import Link
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.protocol.messages import AttachTunnel
from jupyter_depin.transport import iroh
from jupyter_depin.tunnel.events import Doubtful, Event, Heard, Opened
from jupyter_depin.tunnel.machine import Tunnel
from tests.udp_proxy import apart, far, udp_proxy

GENEROUS = 120

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(apart() is None, reason="bubblewrap cannot give a program a network of its own"),
]


class Ends:
    """The near end, what happened to it in order, and the link. What it says on shell comes back on iopub."""

    def __init__(self, endpoint: Any, proxy: Any, node: NodeId, spare: Any) -> None:
        self.endpoint, self.proxy, self.spare = endpoint, proxy, spare
        self.came: list[bytes] = []
        self.events: list[str] = []
        self.said = 0
        self._news = anyio.Event()
        self.driver = TunnelDriver(
            Tunnel(grace_ns=600 * 10**9, now=steady_ns(), ping_ns=3 * 10**9),
            opens=True,
            on_message=self._came,
            on_event=self._noticed,
        )
        # Of the lease only the way to its provider matters here.
        opened: Any = SimpleNamespace(
            link=None,
            channel_id=bytes(32),
            address=NodeAddress(node, (), (proxy.address,)),
            attach=lambda node, memory: AttachTunnel(bytes(32), bytes(65), memory),
        )
        self.link = Link(opened, self, self.driver, on_cut=lambda: self.note("cut"))  # type: ignore[arg-type]

    @property
    def node(self) -> NodeId:
        return NodeId(self.endpoint.node)

    async def connect(self, address: NodeAddress) -> Any:
        """The endpoint's, noted."""
        self.note("dial")
        return await self.endpoint.connect(address)

    def note(self, event: str) -> None:
        self.events.append(event)
        self._tell()

    def say(self) -> None:
        self.driver.send(Lane.SHELL, b"%d" % self.said)
        self.said += 1

    async def until(self, fact: Any) -> None:
        while not fact():
            await self._news.wait()

    async def answered(self) -> None:
        """Everything that was said has come back, in order and once."""
        await self.until(lambda: len(self.came) >= self.said)
        assert self.came == [b"%d" % i for i in range(self.said)]

    def dials(self) -> int:
        return self.events.count("dial")

    def _came(self, lane: Lane, parts: Any) -> None:
        self.came.append(bytes(parts[0]))
        self._tell()

    def _noticed(self, event: Event) -> None:
        self.link.notice(event)
        if isinstance(event, Doubtful | Heard | Opened):
            self.note(type(event).__name__)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    with anyio.fail_after(GENEROUS):
        async with far("tests.consumer.far_end") as (word, sockets), udp_proxy(sockets[0]) as proxy:
            endpoint = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0")
            try:
                async with anyio.create_task_group() as tasks:
                    pair = Ends(endpoint, proxy, NodeId(bytes.fromhex(word["node"])), sockets[1])
                    tasks.start_soon(pair.link.keep)
                    pair.say()
                    await pair.answered()
                    yield pair
                    tasks.cancel_scope.cancel()
            finally:
                await endpoint.close()


async def test_after_an_outage_the_next_message_arrives():
    async with ends() as pair:
        for _ in range(2):
            pair.proxy.cut()
            before = pair.dials()
            pair.say()
            # Dials of the outage hang in the transport's own waits when the link is mended.
            await pair.until(lambda n=before: pair.dials() >= n + 3)
            pair.say()
            assert len(pair.came) == pair.said - 2
            pair.proxy.mend()
            await pair.answered()
        await pair.until(lambda: pair.driver.attached)
        pair.say()
        await pair.answered()


async def test_after_the_old_connection_was_given_up_a_new_one_carries_on():
    async with ends() as pair:
        pair.proxy.cut()
        pair.say()
        await pair.until(lambda: "cut" in pair.events)
        after = pair.dials()
        await pair.until(lambda: pair.dials() > after + 1)
        pair.say()
        assert len(pair.came) == pair.said - 2
        pair.proxy.mend()
        await pair.answered()
        assert pair.events.index("Doubtful") < pair.events.index("cut") < len(pair.events) - 1
        assert pair.events[pair.events.index("cut") :].count("Opened") >= 1


async def test_a_peer_that_comes_from_another_address_after_the_outage_goes_on():
    async with ends() as pair:
        pair.proxy.cut()
        pair.say()
        await pair.until(lambda: "Doubtful" in pair.events)
        await pair.proxy.move(pair.spare)
        pair.say()
        pair.proxy.mend()
        await pair.answered()


async def test_a_renter_that_restarts_its_network_goes_on():
    async with ends() as pair:
        pair.say()
        await pair.answered()
        old = pair.endpoint
        pair.endpoint = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0")
        pair.say()
        await old.close()
        pair.say()
        await pair.answered()
        assert pair.events.count("Opened") >= 2
