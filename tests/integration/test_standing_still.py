"""A client that reads nothing, and one that reads late, of a real rented kernel: bounded memory, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from jupyter_depin.channels import client_side
from jupyter_depin.consumer.runtime import Runtime
from tests.integration.talk import PATIENCE_S

BOUND = 4 << 20
LINES, LINE = 400, 100_000
PRINTING = f"""
import sys
for i in range({LINES}):
    sys.stdout.write(f'{{i:08}}' + 'x' * {LINE - 9} + '\\n')
    sys.stdout.flush()
"""


def iopub(kernel_id: str) -> Any:
    """What the rental keeps for clients that do not read its kernel's output."""
    (rental,) = (r for r in Runtime.get()._rentals.values() if r.kernel_id == kernel_id)
    side = rental._clients._side
    assert side is not None
    return side.channels["iopub"]


class Slow:
    """A client that reads only when it is told to, and asks ZeroMQ to keep next to nothing for it."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._context = zmq.asyncio.Context()
        self.session = Session(key=info["key"])
        self.iopub, self.shell, self.control = (
            self._socket(kind, info[f"{name}_port"], info)
            for kind, name in ((zmq.SUB, "iopub"), (zmq.DEALER, "shell"), (zmq.DEALER, "control"))
        )

    def _socket(self, kind: int, port: int, info: dict[str, Any]) -> zmq.asyncio.Socket:
        made = self._context.socket(kind)
        made.linger, made.rcvhwm = 0, 1
        if kind == zmq.SUB:
            made.subscribe(b"")
        separator = "-" if info["transport"] == "ipc" else ":"
        made.connect(f"{info['transport']}://{info['ip']}{separator}{port}")
        return made

    async def ask(self, socket: zmq.asyncio.Socket, kind: str, **content: Any) -> str:
        request = self.session.msg(kind, content)
        await socket.send_multipart(self.session.serialize(request))
        return str(request["header"]["msg_id"])

    async def hear(self, socket: zmq.asyncio.Socket) -> dict[str, Any]:
        _, frames = self.session.feed_identities(await socket.recv_multipart())
        return self.session.deserialize(frames)

    async def text_until_idle(self, cell: str) -> str:
        text = ""
        while True:
            message = await self.hear(self.iopub)
            if message["parent_header"].get("msg_id") != cell:
                continue
            text += message["content"].get("text", "")
            if message["content"].get("execution_state") == "idle":
                return text

    def close(self) -> None:
        self._context.destroy(0)


@contextmanager
def slow(talk: Any) -> Iterator[Slow]:
    # The client that started the kernel would be one that reads.
    talk.client.stop_channels()
    client = Slow(talk.manager.get_connection_info())
    try:
        yield client
    finally:
        client.close()


async def test_output_that_nobody_reads_is_bounded_and_all_there_later(start: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(client_side, "_UNREAD", BOUND)
    with anyio.fail_after(PATIENCE_S):
        async with start() as talk:
            with slow(talk) as client:
                assert (await client.hear(client.iopub))["msg_type"] == "iopub_welcome"
                cell = await client.ask(client.shell, "execute_request", code=PRINTING, silent=False)
                kept = iopub(talk.manager.kernel_id)
                while not kept.over:
                    await anyio.sleep(0.02)
                # An interrupt's way is free meanwhile.
                await client.ask(client.control, "kernel_info_request")
                assert (await client.hear(client.control))["msg_type"] == "kernel_info_reply"
                assert kept.over
                assert BOUND // 2 < kept.held <= BOUND + (1 << 20)
                text = await client.text_until_idle(cell)
                assert [int(line[:8]) for line in text.splitlines()] == list(range(LINES))
                while kept.over:
                    await anyio.sleep(0.02)
