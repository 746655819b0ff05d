"""Renters that ask and ask and acknowledge nothing: what an agent keeps for them stays within its bound."""

from __future__ import annotations

import pytest

from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import Lane, encode_message
from jupyter_depin.protocol.messages import Launch, LeftOut, VoucherGiven, encode
from jupyter_depin.protocol.money import Amount
from provider_kernel import tenancy as tenancies
from tests.consumer.test_taking_up import dies, running, taken_up
from tests.consumer.world import PER_SECOND

LIMIT = 256 << 10
SLACK = 512 * 512
"""What comes of the messages that were handed over in the same moment."""
FLOOD = 5000


async def rented(w, monkeypatch):
    monkeypatch.setattr(tenancies, "LANE_LIMIT", LIMIT)
    await w.start_agent()
    rental = await w.rent()
    kernel = await w.launch(rental)
    return rental, kernel, w.agents[0]._tenancies[rental.channel_id]


def deaf(rental, monkeypatch):
    """It takes everything and acknowledges nothing, until the context that comes back is left."""
    patch = monkeypatch.context()
    tunnel = rental._driver.tunnel
    patch.__enter__().setattr(tunnel, "_acknowledge", lambda: setattr(tunnel, "_ack_at", None))
    return patch


def bad_vouchers(rental):
    return [VoucherGiven(Amount(i), bytes(65)) for i in range(1, FLOOD + 1)]


def old_vouchers(rental):
    newest = rental._meter._newest
    return [VoucherGiven(newest.voucher.amount, newest.signature)] * FLOOD


@pytest.mark.parametrize("words", [bad_vouchers, old_vouchers])
async def test_vouchers_are_not_read_while_their_answers_are_not(world, monkeypatch, words):
    async with world() as w:
        rental, kernel, tenancy = await rented(w, monkeypatch)
        await w.clock.wait(6)
        connection = tenancy.driver.connection
        patch = deaf(rental, monkeypatch)
        for word in words(rental):
            rental._driver.send(Lane.PAYMENT, encode(word))
        await w.clock.wait(3)
        assert LIMIT <= tenancy.driver.tunnel.held < LIMIT + SLACK
        # The control stream goes on meanwhile, so it comes back from there.
        patch.__exit__(None, None, None)
        await w.clock.wait(30)
        assert tenancy.driver.connection is connection
        assert tenancy.driver.tunnel.held < LIMIT // 2
        assert rental._driver.tunnel.drained(Lane.PAYMENT)
        assert rental.status().spent >= 30 * PER_SECOND
        assert not kernel.paused


async def test_orders_are_not_read_while_their_answers_are_not(world, monkeypatch):
    async with world() as w:
        rental, _, tenancy = await rented(w, monkeypatch)
        patch = deaf(rental, monkeypatch)
        tenancy.end(EndReason.PROVIDER_STOPPED)
        for epoch in range(2, FLOOD):
            rental._driver.send(Lane.LEASE, encode(Launch(epoch, b"k", "hmac-sha256", {})))
        await w.clock.wait(3)
        assert LIMIT <= tenancy.driver.tunnel.held < LIMIT + SLACK
        patch.__exit__(None, None, None)
        await w.ended(rental, within=60)
        assert rental.receipt.chain_agrees


async def test_one_that_forgets_again_and_again_is_told_once_how_its_kernel_stands(world, monkeypatch):
    monkeypatch.setattr(tenancies, "LANE_LIMIT", LIMIT)
    async with world() as w:
        first, kernel = await running(w)
        tenancy = w.agents[0]._tenancies[first.channel_id]
        await dies(w, first)
        while tenancy.driver.tunnel.held < LIMIT:
            tenancy._answers.say(LeftOut(1, 1))
        held = tenancy.driver.tunnel.held
        for i in range(20):
            # Another memory each time; it goes before it has read anything.
            connection = await w.endpoint.connect(w.agents[0].ticket.address)
            stream = await connection.open_stream()
            attach = first._opened.attach(w.endpoint.node, memory=bytes([i] * 8))
            await stream.write(encode_message(attach))
            await w.clock.turns()
            await connection.close()
            await w.clock.turns()
        assert tenancy.driver.tunnel.held == held
        second = await taken_up(w)
        assert (second.status().state, kernel.destroyed) == ("running", False)
