"""Waiting for a stranger on one stream, while it may have no other.

QUIC lets a peer fill each stream's window before anybody reads it, and the binding offers no smaller windows: a hundred
streams of a node that nobody knows yet would take 125 MB. So nothing but its first stream is borne; the second one
ends the connection, which gives all of its bytes back. Rejected: reading the others and dropping what they bring (it
pays for a stranger's bytes with our own time), a limit set after the handshake (the peer has its allowance by then).
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio

from jupyter_depin.errors import DepinError, RemoteProtocolError, TransportError
from jupyter_depin.transport import Connection

T = TypeVar("T")


async def alone(connection: Connection, waiting: Awaitable[T]) -> T:
    """What `waiting` brings. Called for each thing that is awaited from a peer that may have one stream only.

    Raises `RemoteProtocolError` when the peer opens another stream meanwhile, and what `waiting` raises as `DepinError`.
    Cancelling is safe if cancelling `waiting` is.
    """
    brought: list[T] = []
    failure: DepinError | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            nonlocal failure
            try:
                await connection.accept_stream()
            except TransportError:
                # Whoever reads hears of it as well.
                return
            failure = RemoteProtocolError(detail="a second stream before there is a lease")
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            brought.append(await waiting)
        except DepinError as error:
            failure = failure or error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return brought[0]
