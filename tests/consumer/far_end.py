"""The provider's end of a tunnel, in a program and a network of its own: what it hears on shell it says on iopub."""

from __future__ import annotations

import os
import socket
import sys

import anyio

from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.handshake import answer, questions
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import DepinError
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.messages import Attached, AttachTunnel
from jupyter_depin.transport import Connection, iroh
from jupyter_depin.tunnel.machine import Tunnel
from tests.udp_proxy import hand_over, udp_to


async def serve(door: socket.socket) -> None:
    """Serve until the input ends. Each connection that attaches takes over from the one before."""
    endpoint = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0")
    port = int(endpoint.address().direct[0].rpartition(":")[2])
    driver = TunnelDriver(
        Tunnel(grace_ns=600 * 10**9, now=steady_ns()),
        opens=False,
        on_message=lambda lane, parts: driver.send(Lane.IOPUB, *map(bytes, parts)),
        on_event=lambda event: None,
    )

    async def carry(connection: Connection) -> None:
        try:
            control = await connection.accept_stream()
            request = await anext(questions(control))
            assert isinstance(request, AttachTunnel)
            await answer(control, Attached())
            await driver.carry(connection, control, memory=request.memory)
        except (DepinError, StopAsyncIteration):
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close("over")

    async with anyio.create_task_group() as tasks:

        async def accept() -> None:
            while True:
                tasks.start_soon(carry, await endpoint.accept())

        tasks.start_soon(accept)
        hand_over(door, [udp_to(port) for _ in range(2)], {"node": endpoint.node.hex()})
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()
    await endpoint.close()


if __name__ == "__main__":
    anyio.run(serve, socket.socket(fileno=int(sys.argv[1])))
