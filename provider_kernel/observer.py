"""Tells nodes at which address they are seen here, so that two behind NATs find each other without anybody's service.

Every agent does so beside its lending, and `provider-kernel observe` does nothing else: a node on a public address,
for people whose providers are all behind NATs. A stranger gets one short answer, and only so many at a time do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.transport import SEEN, Connection, Endpoint
from jupyter_depin.transport.seen import answer

log = logging.getLogger(__name__)

MOST = 32
"""Who is answered at a time. An answer takes one round trip, and 5 s at most."""


class Observer:
    """Answers whoever asks how it is seen. One for each node."""

    def __init__(self) -> None:
        self._asking = 0

    async def answer(self, connection: Connection) -> None:
        """Answer one peer, or none where too many ask; closes the connection. Called for protocol `SEEN`. Never raises."""
        if self._asking >= MOST:
            await connection.close("too many ask just now")
            return
        self._asking += 1
        try:
            await answer(connection)
        except Exception:
            # Other people's kernels run beside this: whatever one question brings up, it ends that connection alone.
            log.exception("a question was not answered")
            await connection.close("that was not expected")
        finally:
            self._asking -= 1


Serve = Callable[[Connection, TaskGroup], Coroutine[Any, Any, None]]


async def receive(endpoint: Endpoint, tasks: TaskGroup, serve: Serve) -> None:
    """Answer those who ask how they are seen, and hand everybody else to `serve`, each in a task. Run by the agent.

    Raises `ConnectionLost` once the endpoint is closed.
    """
    observer = Observer()
    while True:
        connection = await endpoint.accept()
        if connection.protocol == SEEN:
            tasks.start_soon(observer.answer, connection)
        else:
            tasks.start_soon(serve, connection, tasks)


async def observe(endpoint: Endpoint) -> None:
    """Answer until the endpoint is closed. Run by `provider-kernel observe`."""

    async def turn_away(connection: Connection, _: TaskGroup) -> None:
        await connection.close("this node lends no kernels")

    async with anyio.create_task_group() as tasks:
        with suppress(ConnectionLost):
            await receive(endpoint, tasks, turn_away)
