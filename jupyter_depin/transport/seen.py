"""What address do you see of me? A tiny exchange by which nodes behind NATs learn how others reach them.

A node's own socket does not tell under which address its packets leave its network, and two nodes that don't know that
of each other stay on their relay for ever. Any node that is reached directly sees it, so any node can tell: the caller
opens a stream and writes one byte, the other side answers with `ip:port` in text, or with nothing where the path is no
direct one, and ends the stream. It is asked of several nodes: where no two see the same one, the NAT gives each peer
a port of its own, no other one will see any of them, and the node says nothing.

Whoever answers wrongly gains little: a peer sends a few packets to the wrong place, and no answer comes from there.

Rejected: STUN and the relays' own address discovery (a service of somebody's, or a certificate from a public
authority); believing a single node.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from jupyter_depin.errors import ConfigError, RemoteProtocolError, TransportError
from jupyter_depin.protocol.identity import NodeAddress, socket_address
from jupyter_depin.transport import SEEN, Connection, Home
from jupyter_depin.transport.alone import alone

_ASK_S = 5.0
_ANSWER_S = 5.0
_LONGEST = 64
"""Bytes of an answer: the longest address of IPv6 with its port has 47."""


async def agreed(home: Home, observers: Sequence[NodeAddress]) -> str | None:
    """The `ip:port` at which two nodes see a home's socket, or None if no two see it alike. Never raises.

    Called by `homes.py` for each of a node's endpoints.
    """
    answers: set[str] = set()
    found: list[str] = []

    async def look(observer: NodeAddress) -> None:
        seen = await ask(home, observer)
        if seen in answers:
            found.append(seen)
            tasks.cancel_scope.cancel()
        elif seen is not None:
            answers.add(seen)

    async with anyio.create_task_group() as tasks:
        for observer in {each.node: each for each in observers if each.node != home.node}.values():
            tasks.start_soon(look, observer)
    return found[0] if found else None


async def ask(home: Home, observer: NodeAddress) -> str | None:
    """What one node sees, or None if it does not say. Never raises."""
    try:
        with anyio.fail_after(_ASK_S):
            # Through a relay it would see nothing.
            connection = await home.connect(NodeAddress(observer.node, (), observer.direct), SEEN)
            try:
                # A provider's ticket may have named it: it is a stranger too.
                return await alone(connection, _asked(connection))
            finally:
                with anyio.CancelScope(shield=True):
                    await connection.close("thank you")
    except (TransportError, RemoteProtocolError, TimeoutError):
        return None


async def _asked(connection: Connection) -> str | None:
    stream = await connection.open_stream()
    await stream.write(b"?")
    answer = b""
    while piece := await stream.read(_LONGEST):
        answer += piece
        if len(answer) > _LONGEST:
            raise RemoteProtocolError(detail="an address of more bytes than addresses have")
    if not answer:
        return None
    try:
        return socket_address(answer.decode("ascii", "replace"))
    except ConfigError as error:
        raise RemoteProtocolError(detail=f"{answer!r} is no address") from error


async def answer(connection: Connection) -> None:
    """Tell a peer at which address it is seen here, and nothing else; closes the connection. Never raises.

    Called for each connection of protocol `SEEN`, by whoever accepts them, who also bounds their number.
    """
    try:
        with anyio.move_on_after(_ANSWER_S):
            stream = await connection.accept_stream()
            if await alone(connection, stream.read(1)):
                path = connection.path()
                if path is not None and not path.relayed:
                    await stream.write(path.remote.encode())
                await stream.finish()
                await alone(connection, connection.closed())
    except (TransportError, RemoteProtocolError):
        pass
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close("that was all")
