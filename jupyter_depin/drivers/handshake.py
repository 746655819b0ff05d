"""Questions and answers on the control stream, before a tunnel is attached to it; what a stranger hears of an error.

An error's facts are for whoever runs the program: they name its folders, its wallet's fees, its payment network's address
with the key in it. Only what speaks of the other party's own request, money and vouchers leaves as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from jupyter_depin.errors import (
    ChainUnreachable,
    ConnectionLost,
    DepinError,
    EmptyWallet,
    FeesMissing,
    KernelStartFailed,
    LeaseError,
    LeaseRefused,
    LimitTooLow,
    MachineTrouble,
    RemoteProtocolError,
    SettlementPending,
    VoucherRefused,
    VouchersSkipped,
    WrongChain,
)
from jupyter_depin.protocol.frames import MessageDecoder, encode_message
from jupyter_depin.protocol.messages import MAX_REQUEST, Answer, LaunchFailed, Refused, Request, SettleFailed
from jupyter_depin.transport import Stream

_ABOUT_THE_OTHER = (
    LeaseError,
    EmptyWallet,
    LimitTooLow,
    VoucherRefused,
    VouchersSkipped,
    RemoteProtocolError,
)
_NO_LEDGER = (ChainUnreachable, WrongChain)

A = TypeVar("A")


async def ask(stream: Stream, request: Request, expected: type[A]) -> A:
    """Ask the provider one thing. Called by the rental.

    Raises what the provider refused with, `ConnectionLost`, or `RemoteProtocolError` on any other answer.
    """
    await stream.write(encode_message(request))
    return await hear(stream, expected)


async def hear(stream: Stream, expected: type[A]) -> A:
    """Wait for the answer to what was asked already. Called by `ask`, and by the link, which does not wait to ask.

    Raises as `ask` does.
    """
    decoder: MessageDecoder[Answer] = MessageDecoder(Answer)
    answers: list[Answer] = []
    # Not a byte more than the answer: what follows "attached" belongs to the tunnel.
    while not answers:
        data = await stream.read(decoder.missing)
        if not data:
            raise ConnectionLost(detail="the provider hung up")
        answers = decoder.feed(data)
    answer = answers[0]
    if isinstance(answer, Refused):
        raise DepinError.from_wire(answer.code, answer.facts)
    if not isinstance(answer, expected):
        raise RemoteProtocolError(detail=f"{type(answer).__name__} where {expected.__name__} was due")
    return answer


async def questions(stream: Stream) -> AsyncIterator[Request]:
    """The consumer's requests, one by one, until it hangs up. Called by the agent, which answers each."""
    decoder: MessageDecoder[Request] = MessageDecoder(Request, MAX_REQUEST)
    # Not a byte more than the request: behind "attach" the consumer's tunnel speaks already.
    while data := await stream.read(decoder.missing):
        for request in decoder.feed(data):
            yield request


async def answer(stream: Stream, reply: Answer) -> None:
    """Answer the consumer's last request."""
    await stream.write(encode_message(reply))


def outward(error: DepinError) -> DepinError:
    """What a stranger may hear of an error: it, or `LeaseRefused` without its facts. Called by the agent."""
    if _may_leave(error):
        return error
    if isinstance(error, _NO_LEDGER):
        return LeaseRefused(reason="its payment network does not answer")
    return LeaseRefused(reason="it cannot do that now")


def refusal(error: DepinError) -> Refused:
    """An error as an answer. Called by the agent."""
    said = outward(error)
    return Refused(said.code, said.facts)


def unsettled(error: DepinError) -> SettleFailed:
    """An error as the word that nothing was collected yet. Called by the tenancy."""
    said = error
    if not _may_leave(error):
        network = isinstance(error, _NO_LEDGER)
        said = SettlementPending(
            reason=f"the provider {'does not reach its payment network' if network else 'cannot collect now'}"
        )
    return SettleFailed(said.code, said.facts)


def not_launched(epoch: int, error: DepinError) -> LaunchFailed:
    """An error as the word that a kernel did not start. Called by the tenancy, for a stranger.

    What the kernel itself said last is the stranger's own affair; what the machine says is the owner's.
    """
    said = error
    if isinstance(error, MachineTrouble) or not isinstance(error, (KernelStartFailed, LeaseError)):
        said = MachineTrouble(reason="its owner can see why")
    return LaunchFailed(epoch, said.code, said.facts)


def _may_leave(error: DepinError) -> bool:
    return isinstance(error, _ABOUT_THE_OTHER) and not isinstance(error, FeesMissing)
