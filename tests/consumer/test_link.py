"""How a rental keeps its tunnel on a connection, in a network in memory on a clock that stands still by itself."""

from __future__ import annotations

from dataclasses import replace

import anyio

from jupyter_depin.consumer import link as link_module
from jupyter_depin.consumer.link import Link
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import UnknownLease
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.tunnel.machine import Tunnel
from provider_kernel import agent as agent_module

S = 10**9


class Talk:
    """A rental whose kernel prints and listens: what was said and what arrived, by number."""

    def __init__(self, w):
        self.w = w
        self.said = self.ordered = 0
        self.printed: list[bytes] = []
        self.heard: list[bytes] = []

    async def start(self):
        w = self.w
        if not w.agents:
            await w.start_agent()
        self.rental = await w.rent()
        await w.launch(self.rental)
        (self.tenancy,) = [
            t for t in w.agents[0]._tenancies.values() if t.channel_id == self.rental.channel_id
        ]
        deliver = self.rental._driver._on_message
        self.rental._driver._on_message = lambda lane, parts: (
            self.printed.append(bytes(parts[0])) if lane is Lane.IOPUB else deliver(lane, parts)
        )
        receive = self.tenancy.driver._on_message
        self.tenancy.driver._on_message = lambda lane, parts: (
            self.heard.append(bytes(parts[0])) if lane is Lane.SHELL else receive(lane, parts)
        )
        await w.clock.wait(10)
        return self

    def prints(self):
        self.tenancy.driver.send(Lane.IOPUB, b"%d" % self.said)
        self.said += 1

    def orders(self):
        self.rental._driver.send(Lane.SHELL, b"%d" % self.ordered)
        self.ordered += 1

    def complete(self):
        return self.printed == [b"%d" % i for i in range(self.said)] and self.heard == [
            b"%d" % i for i in range(self.ordered)
        ]


def dials(w):
    """Count the connections that are dialled from now on."""
    count = []
    connect = w.endpoint.connect

    async def counted(address):
        count.append(w.clock.now_ns)
        return await connect(address)

    w.endpoint.connect = counted
    return count


async def test_a_lease_that_the_provider_does_not_know_ends_the_keeping(world):
    async with world() as w:
        agent = await w.start_agent()
        opened = await w.open()
        agent._tenancies.clear()
        driver = TunnelDriver(
            Tunnel(grace_ns=60 * S, now=w.clock.now_ns),
            opens=True,
            on_message=lambda lane, parts: None,
            on_event=lambda event: None,
        )
        link = Link(opened, w.endpoint, driver, on_cut=lambda: None)
        refusals = []

        async def keep() -> None:
            refusals.append(await link.keep())

        w.tasks.start_soon(keep)
        await w.clock.until(lambda: refusals, within=10)
        assert isinstance(refusals[0], UnknownLease)
        assert not link.reached


async def test_after_an_outage_work_goes_on_within_a_second_though_the_transport_sleeps(world):
    """Nothing that the old connection holds is released before the end."""
    async with world() as w:
        talk = await Talk(w).start()
        for seconds in (0.3, 1.1, 2.3, 3.9, 4.4, 9, 31, 50):
            talk.orders()
            await w.clock.wait(0.2)
            w.silence()
            await w.clock.wait(0.05)
            talk.orders()
            talk.prints()
            await w.clock.wait(seconds)
            talk.prints()
            w.mend()
            if seconds < 2:
                # Nobody had doubts yet, and the transport's own wait is as short as the outage was.
                await w.clock.wait(seconds)
                w.network.release()
            await w.clock.until(talk.complete, within=1)
            w.network.release()
            await w.clock.wait(3)
            assert talk.complete()
            assert talk.rental.status().state == "running"


async def test_a_connection_that_is_heard_again_ends_the_dialling(world):
    async with world() as w:
        talk = await Talk(w).start()
        dialled = dials(w)
        carried = talk.rental._driver.connection
        w.silence()
        talk.orders()
        await w.clock.wait(3)
        assert 2 <= len(dialled) <= 5, "one every half second since the doubt"
        w.network.release()
        await w.clock.until(talk.complete, within=0.1)
        w.mend()
        before = len(dialled)
        await w.clock.wait(60)
        assert len(dialled) == before
        assert talk.rental._driver.connection is carried
        assert talk.rental.status().state == "running"


async def test_a_dial_that_hangs_holds_up_no_other(world):
    async with world() as w:
        talk = await Talk(w).start()
        connect = w.endpoint.connect
        hanging, given_up = [], []

        async def stuck(address):
            hanging.append(address)
            try:
                await anyio.sleep_forever()
            finally:
                given_up.append(address)

        w.silence()
        w.mend()
        w.endpoint.connect = stuck
        talk.orders()
        await w.clock.wait(3.2)
        assert len(hanging) >= 3
        w.endpoint.connect = connect
        await w.clock.until(talk.complete, within=1)
        await w.clock.turns()
        assert len(given_up) == len(hanging)
        carried = talk.rental._driver.connection
        await w.clock.wait(30)
        assert talk.rental._driver.connection is carried


async def test_the_provider_lets_a_newer_connection_take_over_at_once(world):
    """Its old one seems alive: nothing was ever said to the contrary, and what was on its way stays there."""
    async with world() as w:
        talk = await Talk(w).start()
        w.silence()
        w.mend()
        talk.prints()
        await w.clock.turns()
        old = talk.tenancy.driver.connection
        assert talk.tenancy.driver.attached
        talk.orders()
        await w.clock.until(talk.complete, within=2.5)
        assert talk.tenancy.driver.connection is not old
        assert talk.tenancy.driver.attached
        assert old.reason is not None


async def test_a_renter_that_slept_for_hours_goes_on_as_soon_as_it_wakes(world):
    async with world() as w:
        talk = await Talk(w).start()
        dialled = dials(w)
        w.silence()
        # The clocks of both went on, but no timer rang; the provider slept too.
        w.clock.now_ns += 20 * S
        w.mend()
        talk.prints()
        await w.clock.until(talk.complete, within=0.1)
        assert len(dialled) == 1
        assert talk.rental.status().state == "running"


async def test_on_a_long_way_too_a_dial_begins_every_half_second(world):
    """A packet of a dial that is lost is sent again after a second at the earliest, so only new dials help sooner."""
    way_s = 0.6
    async with world() as w:
        talk = await Talk(w).start()
        connect = w.endpoint.connect

        async def far(address):
            lost = frozenset((w.endpoint.node, w.node_of("provider"))) in w.network._cut
            await anyio.sleep(3600 if lost else way_s)
            return await connect(address)

        w.endpoint.connect = far
        for begun in (0.1, 0.2, 0.3, 0.4, 0.5):
            talk.rental._driver.tunnel._pulse.rtt_ns = round(way_s * S)
            w.silence()
            talk.orders()
            await w.clock.wait(20 + begun)
            talk.prints()
            w.mend()
            await w.clock.until(talk.complete, within=0.5 + way_s + 0.1)
            w.network.release()
            await w.clock.wait(3)


async def test_a_lease_for_which_nobody_waits_is_dialled_seldom_after_a_long_outage(world):
    async with world() as w:
        w.provider_config = replace(w.provider_config, grace_s=86_400)
        talk = await Talk(w).start()
        dialled = dials(w)
        w.cut()
        await w.clock.wait(600)
        assert len(dialled) >= 1190, "somebody may well wait for ten minutes"
        await w.clock.wait(400)
        dialled.clear()
        await w.clock.wait(600)
        assert 110 <= len(dialled) <= 130
        talk.prints()
        w.mend()
        await w.clock.until(talk.complete, within=5.1)


async def test_an_order_after_a_long_outage_is_dialled_for_at_once(world):
    async with world() as w:
        w.provider_config = replace(w.provider_config, grace_s=86_400)
        talk = await Talk(w).start()
        dialled = dials(w)
        w.cut()
        await w.clock.wait(1802)
        dialled.clear()
        talk.orders()
        await w.clock.wait(60)
        assert len(dialled) >= 118
        w.mend()
        await w.clock.until(talk.complete, within=0.6)


async def test_a_machine_that_wakes_after_a_long_outage_dials_at_once(world):
    async with world() as w:
        w.provider_config = replace(w.provider_config, grace_s=86_400)
        talk = await Talk(w).start()
        dialled = dials(w)
        w.cut()
        await w.clock.wait(1801)
        dialled.clear()
        w.clock.now_ns += 3000 * S
        await w.clock.wait(20)
        assert len(dialled) >= 39
        talk.prints()
        w.mend()
        await w.clock.until(talk.complete, within=0.6)


async def test_two_rentals_of_one_provider_are_kept_apart(world):
    async with world() as w:
        first = await Talk(w).start()
        second = await Talk(w).start()
        for _ in range(3):
            w.silence()
            for talk in (first, second):
                talk.orders()
                talk.prints()
            await w.clock.wait(4)
            w.mend()
            await w.clock.until(lambda: first.complete() and second.complete(), within=1)
        assert first.rental._driver.connection is not second.rental._driver.connection


async def test_the_tunnels_greeting_does_not_wait_for_the_providers_consent(world, monkeypatch):
    """Each wait for an answer is a round trip, of which a connection that was dialled anew has the fewest possible."""
    async with world() as w:
        talk = await Talk(w).start()
        written = talk.rental._driver._control.written
        answer, greeted = agent_module.answer, []

        async def answer_when_greeted(stream, reply):
            while talk.rental._driver._control.written == written:
                await anyio.lowlevel.checkpoint()
            greeted.append(reply)
            await answer(stream, reply)

        monkeypatch.setattr(agent_module, "answer", answer_when_greeted)
        w.drop()
        with anyio.fail_after(60):
            await w.clock.until(lambda: greeted and talk.rental._driver.attached, within=2)


async def test_a_lost_memory_is_renewed_once_however_often_the_way_back_is_cut(world, monkeypatch):
    """A cut between the provider's "attached" and the tunnel's opening must neither lose the renewal nor repeat it."""
    async with world() as w:
        talk = await Talk(w).start()
        driver = talk.tenancy.driver
        await w.endpoint.close()
        talk.prints()
        w.endpoint = w.network.endpoint("the next process")
        opened = type(talk.rental._opened)(
            **{
                name: getattr(talk.rental._opened, name)
                for name in ("offer", "deposit", "channel_id", "key", "address")
            }
        )
        taken: list[bytes] = []
        tunnel = TunnelDriver(
            Tunnel(grace_ns=600 * S, now=w.clock.now_ns, ping_ns=3 * S),
            opens=True,
            on_message=lambda lane, parts: taken.append(bytes(parts[0])) if lane is Lane.IOPUB else None,
            on_event=lambda event: link.notice(event),
        )
        link = Link(opened, w.endpoint, tunnel, on_cut=lambda: None)
        w.tasks.start_soon(link.keep)
        hear = link_module.hear
        cuts = []

        async def cut_after(*arguments):
            answer = await hear(*arguments)
            if len(cuts) < 3:
                cuts.append(answer)
                w.drop()
            return answer

        monkeypatch.setattr(link_module, "hear", cut_after)
        await w.clock.until(lambda: tunnel.attached, within=10)
        assert len(cuts) == 3
        await w.clock.until(lambda: taken == [b"0"], within=1)
        for number in range(1, 4):
            talk.prints()
            tunnel.send(Lane.SHELL, b"again")
            w.drop()
            await w.clock.until(lambda n=number: taken == [b"%d" % i for i in range(n + 1)], within=2)
        await w.clock.until(lambda: talk.heard == [b"again"] * 3, within=2)
        assert driver.attached
        tunnel.close()
