"""A client of a running kernel, as tests talk through it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelClient, AsyncKernelManager

PATIENCE_S = 120
"""How long a test waits for what must happen."""


@dataclass
class Ran:
    """What a cell gave."""

    status: str
    text: str = ""
    error: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Talk:
    """A client, and the manager of its kernel where there is one."""

    client: AsyncKernelClient
    manager: AsyncKernelManager | None = None

    async def run(
        self,
        code: str,
        *,
        client: AsyncKernelClient | None = None,
        answer: str | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Ran:
        """Run a cell to its end. `answer` is what `input()` gets; `on_text` is called with all text printed so far."""
        asked = client or self.client
        ran = Ran("")

        def said(message: dict[str, Any]) -> None:
            ran.messages.append(message)
            if message["msg_type"] == "stream":
                ran.text += message["content"]["text"]
                if on_text is not None:
                    on_text(ran.text)
            elif message["msg_type"] == "error":
                ran.error = message["content"]["ename"]

        reply = await asked.execute_interactive(
            code,
            allow_stdin=answer is not None,
            stdin_hook=lambda _: asked.input(answer),
            output_hook=said,
            timeout=PATIENCE_S,
        )
        ran.status = reply["content"]["status"]
        return ran

    @asynccontextmanager
    async def another_client(self) -> AsyncIterator[AsyncKernelClient]:
        """A client that knows nothing but the connection file."""
        client = AsyncKernelClient(connection_file=self.client.connection_file)
        client.load_connection_file()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=PATIENCE_S)
            yield client
        finally:
            client.stop_channels()


@asynccontextmanager
async def talking(manager: AsyncKernelManager, **how: Any) -> AsyncIterator[Talk]:
    """Start a kernel and talk to it; `how` is for `start_kernel`."""
    await manager.start_kernel(**how)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=PATIENCE_S)
        yield Talk(client, manager)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


@asynccontextmanager
async def launched(path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Talk]]:
    """As VS Code does it: write the connection file, run the kernel spec's own command, send that signals."""
    client = AsyncKernelClient(connection_file=str(path))
    client.write_connection_file()
    program = ("-m", "jupyter_depin.kernel", "--loopback", "-f", str(path))
    process = await asyncio.create_subprocess_exec(sys.executable, *program)
    client.load_connection_file()
    client.start_channels(hb=False)
    try:
        # ZeroMQ keeps the question until there is somebody to ask.
        await client.kernel_info(reply=True, timeout=PATIENCE_S)
        client.hb_channel.start()
        await client.wait_for_ready(timeout=PATIENCE_S)
        yield process, Talk(client)
    finally:
        client.stop_channels()
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
