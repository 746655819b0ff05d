"""Kernels for the sandbox suites: real ones, talked to by a real Jupyter client."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import ConnectionFileMixin

from jupyter_depin.errors import SandboxMissing
from provider_kernel.sandbox import KernelCommand, KernelSockets, Limits, Sandbox, SandboxedKernel
from provider_kernel.sandbox.choice import choose


def why_no_bubblewrap() -> str | None:
    try:
        choose("bubblewrap").check()
    except SandboxMissing as missing:
        return str(missing)
    return None


WHY = why_no_bubblewrap()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("sandbox") and WHY is not None:
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(params=["none", pytest.param("bubblewrap", marks=pytest.mark.sandbox)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return choose(request.param)


def connect(client: ConnectionFileMixin, sockets: KernelSockets, key: bytes) -> None:
    """Point a Jupyter client at a kernel's sockets, which are numbered 1 … 5."""
    info: dict[str, Any] = {"key": key.decode(), "signature_scheme": "hmac-sha256", "transport": "ipc"}
    for channel in ("shell", "iopub", "stdin", "control", "hb"):
        beginning, _, number = getattr(sockets, channel).removeprefix("ipc://").rpartition("-")
        info |= {"ip": beginning, f"{channel}_port": int(number)}
    client.load_connection_info(info)


@dataclass
class Talk:
    """A running kernel and a client of it."""

    kernel: SandboxedKernel
    client: AsyncKernelClient
    folder: Path
    cell: str = ""

    async def run(self, code: str, *, until: str | None = None) -> str:
        """Run a cell; return its printed text and, if it failed, its error. With `until`, return when that is printed."""
        # Otherwise a kernel drops what comes right after a failed cell.
        self.cell = message = self.client.execute(code, stop_on_error=False)
        said = ""
        while True:
            reply = await self.client.get_iopub_msg()
            if reply["parent_header"].get("msg_id") != message:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "stream":
                said += content["text"]
            elif kind == "error":
                said += f"{content['ename']}: {content['evalue']}"
            elif kind in ("execute_result", "display_data"):
                said += " ".join(content["data"])
            if (until is not None and until in said) or (
                kind == "status" and content["execution_state"] == "idle"
            ):
                return said

    async def finished(self) -> str:
        """Wait for the reply to the cell that `run(…, until=…)` left running; its status, or the error's name."""
        while True:
            reply = await self.client.get_shell_msg()
            if reply["parent_header"]["msg_id"] == self.cell:
                content = reply["content"]
                return str(content.get("ename", content["status"]))


Start = Callable[..., AbstractAsyncContextManager[Talk]]


@pytest.fixture
def start(sandbox: Sandbox, tmp_path: Path) -> Start:
    """`async with start(limits=…, env=…) as talk`: a kernel that is destroyed at the end."""

    @contextlib.asynccontextmanager
    async def starting(limits: Limits = Limits(), **command: Any) -> AsyncIterator[Talk]:  # noqa: B008
        key = secrets.token_hex(16).encode()
        folder = tmp_path / secrets.token_hex(2)
        kernel = await sandbox.start(KernelCommand(key=key, **command), folder=folder, limits=limits)
        client = AsyncKernelClient()
        connect(client, kernel.sockets, key)
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            yield Talk(kernel, client, folder)
        finally:
            client.stop_channels()
            await kernel.destroy()

    return starting
