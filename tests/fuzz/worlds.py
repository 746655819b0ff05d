"""The doors behind which a whole side stands: a renter's rental, a lease on the provider's machine, the agent.

They are knocked at in the world of the consumer's tests, whose clock stands still. What is said goes to the handlers as
the tunnel would hand it on, so that a lie meets the state of a lease that is in use.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from jupyter_depin.consumer.offers import ranked
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.drivers.handshake import answer, ask, questions
from jupyter_depin.errors import DepinError, RemoteProtocolError, TransportError
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol import messages
from jupyter_depin.protocol.frames import Lane, MessageDecoder
from jupyter_depin.protocol.identity import Ticket
from jupyter_depin.protocol.messages import LeaseFact, LeaseOrder, OffersGiven, Request, ToPayer, VoucherGiven
from jupyter_depin.protocol.money import Rate
from jupyter_depin.transport.seen import _asked
from provider_kernel.visitors import Visitor
from tests.consumer.world import World, living
from tests.fuzz.run import Outcome, told
from tests.fuzz.words import Speaker

ENDS_A_CONNECTION = (RemoteProtocolError, TransportError)
_A_WORLD = 3000
"""Frames after which there is a new world: a journal and a ledger that only grow would make the end slow."""


def whole(word: bytes) -> bytes:
    """A word with its right length in front."""
    return len(word).to_bytes(4, "big") + word


class Side:
    """One side of a lease, and the lanes on which the other side talks to it."""

    def __init__(self, w: World, speaker: Speaker) -> None:
        self.w, self.speaker = w, speaker
        self.rental: Rental | None = None

    async def rented(self) -> Rental:
        """A rental whose kernel runs; a new one when the last is over, as a lie may well end it."""
        if self.rental is None or self.rental.over:
            if self.rental is not None:
                # It waits for a goodbye, which this provider has no reason to hold back.
                await self.w.clock.wait(120)
            self.rental = await self.w.rent()
            await self.w.launch(self.rental)
        return self.rental

    def parts(self, kinds: Any) -> list[bytes]:
        """A message: a word of `kinds` mostly, or something of a kernel's form."""
        speaker, rng = self.speaker, self.speaker.rng
        word = speaker.word(kinds, lie=rng.choice((0.0, 0.1, 0.4)))
        if rng.random() < 0.2:
            # Words about the launch that runs.
            made = json.loads(word)
            if isinstance(made, dict) and "epoch" in made:
                made["epoch"] = rng.choice((1, 2))
                word = json.dumps(made).encode()
        more = [rng.randbytes(rng.choice((0, 5, 300))) for _ in range(rng.choice((0, 0, 1, 4)))]
        return [speaker.spoken(word), *more]


async def renter(side: Side) -> None:
    """The provider says something to a renter."""
    rng = side.speaker.rng
    rental = await side.rented()
    lane = rng.choice(list(Lane))
    parts = side.parts(ToPayer if lane is Lane.PAYMENT else LeaseFact)
    if lane not in (Lane.LEASE, Lane.PAYMENT):
        parts.insert(0, rng.choice((b"\0\0\0\1", b"x", b"")))
    await _handed(rental._received, lane, parts)
    rental.status()
    assert rental.status().spent <= rental.status().cap


async def lender(side: Side) -> None:
    """The renter says something to its lease's tenancy."""
    rng = side.speaker.rng
    rental = await side.rented()
    (tenancy,) = (t for t in side.w.agents[0]._tenancies.values() if t.channel_id == rental.channel_id)
    lane = rng.choice(list(Lane))
    parts = side.parts(VoucherGiven if lane is Lane.PAYMENT else LeaseOrder)
    if lane not in (Lane.LEASE, Lane.PAYMENT):
        parts[:0] = [
            rng.choice((b"\0\0\0\1", b"\0\0\0\2", b"")),
            rng.choice((b"who", b"", b"\0who", b"x" * 300)),
        ]
    try:
        await _handed(tenancy._received, lane, parts)
    finally:
        await side.w.clock.turns(3)
        if tenancy.ended:
            side.rental = None
            await side.w.clock.wait(30)


async def _handed(received: Callable[[Lane, Sequence[bytes]], None], lane: Lane, parts: list[bytes]) -> None:
    with contextlib.suppress(*ENDS_A_CONNECTION):
        received(lane, parts)


async def agent(side: Side) -> None:
    """A stranger asks the agent something: every request is answered, refused, or ends the visit."""
    speaker, w = side.speaker, side.w
    visitor = Visitor(w.endpoint.node, anyio.CancelScope())
    decoder: MessageDecoder[Request] = MessageDecoder(Request)
    with contextlib.suppress(DepinError):
        honest = speaker.word(Request, lie=speaker.rng.choice((0.0, 0.1, 0.3)))
        for request in decoder.feed(whole(honest) if speaker.rng.random() < 0.7 else speaker.bent(honest)):
            if not isinstance(request, messages.AttachTunnel):
                await w.agents[0]._answer(request, visitor, w.tasks)
    w.agents[0]._leave(visitor)


async def offers(side: Side) -> None:
    """A provider's answer to the first question, as a renter reads it: signed by the right wallet, or not."""
    speaker, w = side.speaker, side.w
    honest = w.agents[0]._offers.current(w.clock.unix_now())
    made = whole(speaker.word(OffersGiven, lie=0.1))
    with contextlib.suppress(DepinError):
        decoder: MessageDecoder[messages.Answer] = MessageDecoder(messages.Answer)
        for word in decoder.feed(made):
            if isinstance(word, OffersGiven):
                lies = [
                    messages.SignedOffer(each.offer, w.provider.sign(each.offer.digest()))
                    for each in word.offers
                ]
                ticket = Ticket(
                    w.agents[0].ticket.address, speaker.rng.choice((w.provider, Wallet.generate())).address
                )
                ranked(
                    [*word.offers, *lies, *honest], ticket=ticket, node=ticket.address.node, asset=w.ledger.asset,
                    cap=Rate(10**12), now=w.clock.unix_now(),
                )  # fmt: skip


async def handshake(side: Side) -> None:
    """Both ends of questions and answers over a stream, of which one end is a liar."""
    speaker, w = side.speaker, side.w
    a, b = w.network.endpoint("asks"), w.network.endpoint("answers")
    connection = await a.connect(b.address())
    mine = await connection.open_stream()
    said = speaker.spoken(speaker.framed(speaker.word(messages.Answer | Request)))
    await mine.write(b"!" + said)
    await mine.finish()
    theirs = await (await b.accept()).accept_stream()
    await theirs.read(1)
    with contextlib.suppress(*ENDS_A_CONNECTION):
        async for _ in questions(theirs):
            await answer(theirs, messages.Attached())
    back = await connection.open_stream()
    await back.write(b"!" + said)
    await back.finish()
    with contextlib.suppress(DepinError):
        stream = await _accepted(w, connection)
        await ask(stream, messages.AskOffers(1), OffersGiven)
    await connection.close()
    await a.close()
    await b.close()


async def seen(side: Side) -> None:
    """A node that tells another how it sees it."""
    speaker, w = side.speaker, side.w
    a, b = w.network.endpoint("asks"), w.network.endpoint("tells")
    connection = await a.connect(b.address())

    async def lie() -> None:
        stream = await (await b.accept()).accept_stream()
        await stream.write(
            speaker.spoken(speaker.rng.choice((b"1.2.3.4:5", b"[::1]:65535", b"", b":", b"1.2.3.4:0")))
        )
        await stream.finish()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lie)
        with contextlib.suppress(*ENDS_A_CONNECTION):
            await _asked(connection)
    await connection.close()
    await a.close()
    await b.close()


async def _accepted(w: World, connection: Any) -> Any:
    other = connection._link.other(connection)
    stream = await other.accept_stream()
    await stream.read(1)
    return stream


DOORS: dict[str, Callable[[Side], Awaitable[None]]] = {
    "renter": renter,
    "lender": lender,
    "agent": agent,
    "offers": offers,
    "handshake": handshake,
    "seen": seen,
}


async def knocked(frames: int, speaker: Speaker, outcome: Outcome) -> None:
    """So many frames at the doors of a few worlds, one after the other."""
    while frames > 0:
        count = min(frames, _A_WORLD)
        frames -= count
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            async with living(Path(folder), patch) as w:
                await w.start_agent()
                sides = {name: Side(w, speaker) for name in DOORS}
                for i in range(count):
                    name = list(DOORS)[i % len(DOORS)]
                    outcome.knocks[name] += 1
                    try:
                        await DOORS[name](sides[name])
                    except Exception as error:
                        told(outcome, name, error)
                        sides[name] = Side(w, speaker)
