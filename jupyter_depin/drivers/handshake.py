"""Questions and answers on the control stream, before a tunnel is attached to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from jupyter_depin.errors import ConnectionLost, DepinError, RemoteProtocolError
from jupyter_depin.protocol.frames import MessageDecoder, encode_message
from jupyter_depin.protocol.messages import Answer, Refused, Request
from jupyter_depin.transport import Stream

_READ = 1 << 16

A = TypeVar("A")


async def ask(stream: Stream, request: Request, expected: type[A]) -> A:
    """Ask the provider one thing. Called by the rental.

    Raises what the provider refused with, `ConnectionLost`, or `RemoteProtocolError` on any other answer.
    """
    await stream.write(encode_message(request))
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
    decoder: MessageDecoder[Request] = MessageDecoder(Request)
    while data := await stream.read(_READ):
        for request in decoder.feed(data):
            yield request


async def answer(stream: Stream, reply: Answer) -> None:
    """Answer the consumer's last request."""
    await stream.write(encode_message(reply))


def refusal(error: DepinError) -> Refused:
    """An error as an answer."""
    return Refused(error.code, error.facts)
