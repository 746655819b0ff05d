"""Pairs of nodes for tests, and what both ends of a test do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from jupyter_depin.transport import Connection, Endpoint, Stream, iroh
from jupyter_depin.transport.memory import MemoryNetwork

GENEROUS = 60

Pair = tuple[Endpoint, Endpoint]
Nodes = Callable[[], AbstractAsyncContextManager[Pair]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def relays(tmp_path):
    """Start relays of our own, over plain HTTP; gives their programs by their addresses."""
    program = shutil.which("iroh-relay")
    if program is None:
        pytest.skip("iroh-relay is not installed")
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(count: int) -> dict[str, subprocess.Popen[bytes]]:
        for _ in range(count):
            port = free_port()
            config = tmp_path / f"relay-{port}.toml"
            config.write_text(
                f'enable_relay = true\nhttp_bind_addr = "127.0.0.1:{port}"\n'
                "enable_metrics = false\nenable_quic_addr_discovery = false\n"
            )
            running[f"http://127.0.0.1:{port}"] = subprocess.Popen(
                [program, "-c", config], stderr=subprocess.DEVNULL
            )
        return running

    yield start
    for process in running.values():
        process.kill()
        process.wait()


@asynccontextmanager
async def _iroh_pair() -> AsyncIterator[Pair]:
    with anyio.fail_after(GENEROUS):
        a = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0")
        b = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0")
        try:
            yield a, b
        finally:
            await a.close()
            await b.close()


@asynccontextmanager
async def _memory_pair() -> AsyncIterator[Pair]:
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        yield network.endpoint("a"), network.endpoint("b")


@pytest.fixture(params=["iroh", "memory"])
def nodes(request: pytest.FixtureRequest) -> Nodes:
    """Two nodes that can reach each other, on each of the networks in turn."""
    return {"iroh": _iroh_pair, "memory": _memory_pair}[request.param]


@pytest.fixture
def iroh_nodes() -> Nodes:
    """Two nodes on the real network."""
    return _iroh_pair


@pytest.fixture
def join() -> Callable[[Endpoint, Endpoint], object]:
    """Let the first node dial the second; gives both ends of the connection."""

    async def joined(dialler: Endpoint, answerer: Endpoint) -> tuple[Connection, Connection]:
        answered: list[Connection] = []

        async def answer() -> None:
            answered.append(await answerer.accept())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            dialled = await dialler.connect(answerer.address())
        return dialled, answered[0]

    return joined


@pytest.fixture
def open_pair() -> Callable[[Connection, Connection], object]:
    """Open a stream on the first end, greet with one byte, and take it in on the second; gives both ends."""

    async def opened(here: Connection, there: Connection) -> tuple[Stream, Stream]:
        mine = await here.open_stream()
        await mine.write(b"!")
        theirs = await there.accept_stream()
        assert await theirs.read(1) == b"!"
        return mine, theirs

    return opened


@pytest.fixture
def read_all() -> Callable[[Stream], object]:
    """Read a stream to its end."""

    async def everything(stream: Stream) -> bytes:
        whole = bytearray()
        while piece := await stream.read(1 << 16):
            whole += piece
        return bytes(whole)

    return everything
