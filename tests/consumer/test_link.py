"""How a rental keeps its tunnel on a connection, in a network in memory on a clock that stands still by itself."""

from __future__ import annotations

from jupyter_depin.consumer.link import Link
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import UnknownLease
from jupyter_depin.tunnel.machine import Tunnel


async def test_a_lease_that_the_provider_does_not_know_ends_the_keeping(world):
    async with world() as w:
        agent = await w.start_agent()
        opened = await w.open()
        agent._tenancies.clear()
        driver = TunnelDriver(
            Tunnel(grace_ns=60 * 10**9, now=w.clock.now_ns),
            opens=True,
            on_message=lambda lane, parts: None,
            on_event=lambda event: None,
        )
        link = Link(opened, w.endpoint, driver, fresh=True, on_cut=lambda: None)
        refusals = []

        async def keep() -> None:
            refusals.append(await link.keep())

        w.tasks.start_soon(keep)
        await w.clock.until(lambda: refusals, within=10)
        assert isinstance(refusals[0], UnknownLease)
        assert not link.reached
