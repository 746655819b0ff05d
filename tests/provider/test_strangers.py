"""What a node that nobody knows can hold of an agent, in count and bytes, and what its lies cost everybody else.

Each play has an honest renter whose kernel goes on, on the same agent.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import anyio
import pytest

from jupyter_depin.drivers.handshake import ask
from jupyter_depin.errors import ConnectionLost, LeaseRefused, UnknownLease
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.frames import VERSION, Lane, Resume, encode_message
from jupyter_depin.protocol.messages import (
    MAX_REQUEST,
    MOST_OFFERS,
    AskOffers,
    Attached,
    AttachTunnel,
    OffersGiven,
)
from jupyter_depin.protocol.voucher import attach_digest
from provider_kernel.visitors import HANDSHAKE_S, MOST_REQUESTS, MOST_VISITORS, Visitor, Visitors


class Stranger:
    """A node that nobody knows, and what of its bytes lies unread at the agent."""

    def __init__(self, w, name: str = "stranger") -> None:
        self.w, self.endpoint = w, w.network.endpoint(name)

    async def connect(self):
        self.connection = await self.endpoint.connect(self.w.agents[0].ticket.address)
        return self

    async def greet(self):
        await self.connect()
        self.control = await self.connection.open_stream()
        await ask(self.control, AskOffers(VERSION), OffersGiven)
        return self

    def unread(self) -> int:
        """Bytes that its streams hold at the agent; those of a connection that ended are given back."""
        link = self.connection._link
        return sum(len(pipe._delivered) for pipe in link.pipes) if link in self.w.network._links else 0

    @property
    def gone(self) -> bool:
        return self.connection.reason is not None


async def rented(w):
    """An honest renter, its kernel, and its tenancy."""
    await w.start_agent()
    rental = await w.rent()
    return rental, await w.launch(rental), w.agents[0]._tenancies[rental.channel_id]


async def undisturbed(w, rental, kernel, connection) -> None:
    """The honest renter never noticed: its kernel runs, on the connection that it had."""
    await w.clock.wait(30)
    (tenancy,) = w.agents[0]._tenancies.values()
    assert tenancy.driver.connection is connection
    assert tenancy.driver.attached
    assert rental.status().state == "running"
    assert not kernel.destroyed


# -- streams


@pytest.mark.parametrize("greets", [False, True], ids=["at once", "after a question"])
async def test_a_stranger_has_one_stream(world, greets):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = Stranger(w)
        await (stranger.greet() if greets else stranger.connect())
        held = 0

        async def fill() -> None:
            nonlocal held
            for _ in range(1000):
                stream = await stranger.connection.open_stream()
                await stream.write(bytes(w.network.window))
                held = max(held, stranger.unread())

        with pytest.raises(ConnectionLost):
            await fill()
        assert stranger.gone
        assert stranger.unread() == 0
        assert held < 100 * w.network.window
        await undisturbed(w, rental, kernel, connection)


async def test_a_stream_that_comes_with_the_right_to_the_lease_is_a_lane(world):
    """The watch for a second stream ends before the answer that allows them."""
    async with world() as w:
        rental, _, tenancy = await rented(w)
        for _ in range(5):
            w.drop()
            await w.clock.until(lambda: tenancy.driver.attached, within=10)
        assert rental.status().state == "running"


@pytest.mark.parametrize("side", ["provider", "consumer"])
async def test_whoever_is_attached_has_its_lanes_and_no_more(world, side):
    async with world() as w:
        rental, _, tenancy = await rented(w)
        driver = rental._driver if side == "consumer" else tenancy.driver
        before = driver.connection
        stray = await before.open_stream()
        await stray.write(bytes([Lane.SHELL]))
        await w.clock.until(lambda: driver.connection is not before, within=10)
        await w.clock.until(lambda: tenancy.driver.attached, within=10)
        assert rental.status().state == "running"


# -- requests


async def test_a_request_is_short_and_its_length_alone_is_enough(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = await Stranger(w).greet()
        await stranger.control.write((MAX_REQUEST + 1).to_bytes(4, "big"))
        with pytest.raises(ConnectionLost):
            await stranger.control.read(1)
        await undisturbed(w, rental, kernel, connection)


async def test_a_stranger_asks_so_often_and_no_more(world, caplog):
    caplog.set_level(logging.INFO)
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = await Stranger(w).greet()
        caplog.clear()
        for _ in range(MOST_REQUESTS - 1):
            await ask(stranger.control, AskOffers(VERSION), OffersGiven)
        with pytest.raises(ConnectionLost, match="broke the protocol"):
            await ask(stranger.control, AskOffers(VERSION), OffersGiven)
        (record,) = caplog.records
        assert "sent away" in record.getMessage()
        await undisturbed(w, rental, kernel, connection)


async def test_one_that_drips_its_request_is_sent_away_in_time(world):
    """A byte now and then is no request: the whole of it is due, not the next piece."""
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = await Stranger(w).connect()
        stranger.control = await stranger.connection.open_stream()
        request = encode_message(AskOffers(VERSION))
        for byte in request[:-1]:
            if stranger.gone:
                break
            await stranger.control.write(bytes([byte]))
            await w.clock.wait(1)
        assert stranger.gone
        await undisturbed(w, rental, kernel, connection)


async def test_one_that_takes_no_answers_is_sent_away(world):
    async with world() as w:
        w.network.window = 512
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = await Stranger(w).connect()
        stranger.control = await stranger.connection.open_stream()
        await stranger.control.write(encode_message(AskOffers(VERSION)))
        await w.clock.wait(16)
        assert stranger.gone
        await undisturbed(w, rental, kernel, connection)


async def test_an_answer_holds_few_offers_and_those_of_free_slots_first(world):
    async with world() as w:
        w.provider_config = replace(w.provider_config, slots=9)
        await w.start_agent()
        for _ in range(8):
            await w.rent()
        stranger = await Stranger(w).connect()
        control = await stranger.connection.open_stream()
        given = await ask(control, AskOffers(VERSION), OffersGiven)
        assert len(given.offers) == MOST_OFFERS
        assert await w.rent()


def test_more_offers_than_that_are_not_taken():
    with pytest.raises(Exception, match="offers at once"):
        OffersGiven((None,) * (MOST_OFFERS + 1))


# -- crowds


async def test_a_crowd_from_one_node_turns_out_its_own(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        honest = await Stranger(w, "honest").greet()
        crowd = [await Stranger(w, "crowd").greet() for _ in range(3 * MOST_VISITORS)]
        assert not honest.gone
        assert await ask(honest.control, AskOffers(VERSION), OffersGiven)
        assert sum(not each.gone for each in crowd) == MOST_VISITORS - 1
        assert len(w.agents[0]._visitors) == MOST_VISITORS
        await undisturbed(w, rental, kernel, connection)


async def test_whoever_fills_the_room_most_makes_room():
    room = Visitors()
    many = [Visitor(b"a" * 32, anyio.CancelScope()) for _ in range(MOST_VISITORS - 1)]
    one = Visitor(b"b" * 32, anyio.CancelScope())
    assert [room.admit(each) for each in (one, *many)] == [None] * MOST_VISITORS
    late = Visitor(b"c" * 32, anyio.CancelScope())
    assert room.admit(late) is many[0]
    room.leave(many[0])
    room.leave(many[0])
    assert len(room) == MOST_VISITORS


# -- other people's leases


async def test_the_name_of_anothers_lease_opens_nothing(world):
    async with world() as w:
        rental, kernel, tenancy = await rented(w)
        connection = tenancy.driver.connection
        stranger = await Stranger(w).greet()
        digest = attach_digest(w.ledger.asset.domain, rental.channel_id, stranger.endpoint.node)
        with pytest.raises(LeaseRefused, match="no right"):
            await ask(
                stranger.control, AttachTunnel(rental.channel_id, Wallet.generate().sign(digest)), Attached
            )
        stranger = await Stranger(w).greet()
        with pytest.raises(LeaseRefused, match="no right"):
            await ask(
                stranger.control,
                AttachTunnel(rental.channel_id, rental._opened.key.sign(bytes(32))),
                Attached,
            )
        stranger = await Stranger(w).greet()
        with pytest.raises(UnknownLease):
            await ask(stranger.control, AttachTunnel(b"\x07" * 32, bytes(65)), Attached)
        # It goes on as if it had been let in.
        await stranger.control.write(encode_message(Resume({})))
        await w.clock.wait(HANDSHAKE_S + 1)
        with pytest.raises(ConnectionLost):
            await stranger.control.read(1)
        await undisturbed(w, rental, kernel, connection)
