"""Questions and answers before a tunnel: exactly the answer is read, and whatever else comes is somebody's fault."""

from __future__ import annotations

import anyio
import pytest

from jupyter_depin.drivers.handshake import (
    answer,
    ask,
    not_launched,
    outward,
    questions,
    refusal,
    unsettled,
)
from jupyter_depin.errors import (
    ChainUnreachable,
    ConnectionLost,
    DamagedJournal,
    DepinError,
    EmptyWallet,
    FeesMissing,
    JournalUnavailable,
    KernelStartFailed,
    LeaseEnded,
    LeaseRefused,
    MachineTrouble,
    NoFreeSlot,
    PortInUse,
    RemoteProtocolError,
    SandboxMissing,
    SettlementPending,
    TransactionFailed,
    VouchersSkipped,
    WrongChain,
)
from jupyter_depin.protocol.frames import encode_message
from jupyter_depin.protocol.messages import (
    AskOffers,
    Attached,
    AttachTunnel,
    LeaseOpened,
    OffersGiven,
    Refused,
)
from jupyter_depin.transport.memory import MemoryNetwork


async def talk(provider, request, expected):
    """Ask over a connection on which `provider(stream)` answers; the answer, and the stream."""
    network = MemoryNetwork()
    a, b = network.endpoint("asks"), network.endpoint("answers")

    async def serve() -> None:
        connection = await b.accept()
        await provider(await connection.accept_stream())

    outcome: object = None
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            stream = await (await a.connect(b.address())).open_stream()
            try:
                outcome = await ask(stream, request, expected)
            except DepinError as error:
                outcome = error
            tasks.cancel_scope.cancel()
    if isinstance(outcome, DepinError):
        raise outcome
    return outcome, stream


async def test_a_question_gets_its_answer():
    async def provider(stream):
        async for request in questions(stream):
            assert request == AskOffers(1)
            await answer(stream, OffersGiven(()))

    assert (await talk(provider, AskOffers(1), OffersGiven))[0] == OffersGiven(())


async def test_what_follows_the_answer_is_left_for_the_tunnel():
    async def provider(stream):
        await stream.write(encode_message(Attached()) + b"tunnel")

    _, stream = await talk(provider, AttachTunnel(b"", b""), Attached)
    assert await stream.read(100) == b"tunnel"


async def test_an_answer_may_come_in_pieces():
    async def provider(stream):
        for byte in encode_message(LeaseOpened("0xabc")):
            await stream.write(bytes([byte]))

    assert (await talk(provider, AskOffers(1), LeaseOpened))[0] == LeaseOpened("0xabc")


async def test_a_refusal_is_raised_as_the_error_it_was():
    async def provider(stream):
        await answer(stream, refusal(NoFreeSlot(slots=2)))

    with pytest.raises(NoFreeSlot, match="all 2 of its places"):
        await talk(provider, AskOffers(1), OffersGiven)


async def test_an_unknown_refusal_says_what_it_said():
    async def provider(stream):
        await answer(stream, Refused("FullMoon", {"phase": "full"}))

    with pytest.raises(LeaseRefused, match="FullMoon"):
        await talk(provider, AskOffers(1), OffersGiven)


async def test_an_answer_to_another_question_breaks_the_protocol():
    async def provider(stream):
        await answer(stream, Attached())

    with pytest.raises(RemoteProtocolError, match="Attached where OffersGiven was due"):
        await talk(provider, AskOffers(1), OffersGiven)


@pytest.mark.parametrize("noise", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02hm", encode_message(AskOffers(1))])
async def test_noise_breaks_the_protocol(noise):
    async def provider(stream):
        await stream.write(noise)

    with pytest.raises(RemoteProtocolError):
        await talk(provider, AskOffers(1), OffersGiven)


@pytest.mark.parametrize("said", [b"", encode_message(Attached())[:5]], ids=["nothing", "half an answer"])
async def test_a_provider_that_hangs_up_is_lost(said):
    async def provider(stream):
        if said:
            await stream.write(said)
        await stream.finish()

    with pytest.raises(ConnectionLost):
        await talk(provider, AskOffers(1), Attached)


async def test_questions_end_when_the_consumer_hangs_up_and_break_on_noise():
    network = MemoryNetwork()
    a, b = network.endpoint("a"), network.endpoint("b")
    with anyio.fail_after(60):
        connection = await a.connect(b.address())
        good, bad = await connection.open_stream(), await connection.open_stream()
        await good.write(encode_message(AskOffers(1)) + encode_message(AskOffers(2)))
        await good.finish()
        await bad.write(encode_message(AskOffers(1)) + b"\xff\xff\xff\xff")
        theirs = await b.accept()
        heard = [request async for request in questions(await theirs.accept_stream())]
        assert heard == [AskOffers(1), AskOffers(2)]
        with pytest.raises(RemoteProtocolError):
            [request async for request in questions(await theirs.accept_stream())]


SECRETS = (
    ChainUnreachable(url="https://rpc.example/v2/key-secret"),
    WrongChain(url="https://rpc.example/v2/key-secret", found=1, expected=2),
    TransactionFailed(action="the settlement", reason="key-secret has used up its requests"),
    FeesMissing(balance="secret", needed="0.1"),
    JournalUnavailable(path="/home/secret/journal.sqlite", reason="disk full"),
    DamagedJournal(path="/home/secret/journal.sqlite", reason="torn"),
    KernelStartFailed(reason="/home/secret/kernels"),
    PortInUse(port="secret"),
    DepinError(detail="secret"),
)


@pytest.mark.parametrize("error", SECRETS, ids=lambda error: error.code)
def test_the_owners_own_affairs_do_not_cross(error):
    assert "secret" in str(error)
    for word in (refusal(error), unsettled(error), str(outward(error))):
        assert "secret" not in str(word)
        assert "0.1" not in str(word)
    assert isinstance(DepinError.from_wire(refusal(error).code, refusal(error).facts), LeaseRefused)
    told = unsettled(error)
    assert isinstance(DepinError.from_wire(told.code, told.facts), SettlementPending)


@pytest.mark.parametrize(
    "error",
    [
        *(secret for secret in SECRETS if not isinstance(secret, KernelStartFailed)),
        MachineTrouble(reason="no space left on /home/secret"),
        SandboxMissing(reason="/home/secret", fix="Ask secret."),
    ],
    ids=lambda error: error.code,
)
def test_why_the_machine_cannot_start_a_kernel_is_its_owners_affair(error):
    failed = not_launched(3, error)
    assert failed.epoch == 3
    assert "secret" not in str(failed)
    assert isinstance(DepinError.from_wire(failed.code, failed.facts), MachineTrouble)


@pytest.mark.parametrize(
    "error",
    [KernelStartFailed(reason="no such signature scheme"), LeaseEnded(reason="x")],
    ids=lambda error: error.code,
)
def test_what_the_renters_kernel_said_crosses_whole(error):
    failed = not_launched(3, error)
    assert (failed.code, failed.facts) == (error.code, error.facts)


def test_a_network_that_is_away_is_said_without_its_address():
    assert "its payment network does not answer" in str(outward(SECRETS[0]))
    assert "does not reach its payment network" in str(unsettled(SECRETS[0]))


@pytest.mark.parametrize(
    "error",
    [
        NoFreeSlot(slots=2),
        LeaseRefused(reason="x"),
        EmptyWallet(balance="0", symbol="DEMO", needed="1"),
        VouchersSkipped(skipped=1, total=1, reason="too little time"),
    ],
    ids=lambda error: error.code,
)
def test_what_speaks_of_the_renter_crosses_whole(error):
    for word in (refusal(error), unsettled(error)):
        assert (word.code, word.facts) == (error.code, error.facts)
