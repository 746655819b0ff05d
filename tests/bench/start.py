"""How long a person waits for a kernel: from the order to the first cell's reply."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio

from jupyter_depin.errors import SandboxMissing
from provider_kernel.sandbox import KernelCommand, Limits, Sandbox
from provider_kernel.sandbox.choice import choose
from tests.bench.children import child
from tests.bench.client import Client, Endpoints
from tests.bench.kernels import endpoints, started
from tests.bench.report import Benchmark, Line, in_turns, quantile


def _first_reply(place: Endpoints) -> None:
    client = Client(place)
    try:
        client.execute("1", until_idle=False, idle_s=0)
    finally:
        client.close()


def _kernel(provisioner: str) -> list[float]:
    begun = time.perf_counter()
    with started(provisioner) as manager:
        _first_reply(endpoints(manager))
        return [time.perf_counter() - begun]


def _first_kernel(provisioner: str) -> list[float]:
    """In a program of its own, so that the first rental's preparations count too."""
    with child("start", provisioner) as program:
        return list(program.hear())


def _start(quick: bool) -> Iterator[Line]:
    _kernel("depin-loopback")
    peers = ("depin-loopback", "local-provisioner")
    warm = in_turns(2 if quick else 5, *(partial(_kernel, peer) for peer in peers))
    first = in_turns(1 if quick else 3, *(partial(_first_kernel, peer) for peer in peers))
    for name, seconds in (("start_to_first_result_s", warm), ("start_first_in_program_s", first)):
        ours, theirs = (quantile(samples, 0.5) for samples in seconds)
        yield Line(name, ours, "s", "local kernel", theirs)


async def _sandboxed(sandbox: Sandbox, folder: Path) -> float:
    key = secrets.token_hex(16).encode()
    begun = time.perf_counter()
    kernel = await sandbox.start(KernelCommand(key=key), folder=folder, limits=Limits())
    try:
        await anyio.to_thread.run_sync(
            _first_reply, Endpoints(kernel.sockets.shell, kernel.sockets.iopub, key)
        )
        return time.perf_counter() - begun
    finally:
        await kernel.destroy()


def _sandbox_start(sandbox: Sandbox) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        return [anyio.run(_sandboxed, sandbox, Path(folder, "k"))]


def _sandboxes(quick: bool) -> Iterator[Line]:
    confined = choose("bubblewrap")
    try:
        confined.check()
    except SandboxMissing as missing:
        yield Line("sandbox_start_s", None, "s", "plain process", None, str(missing))
        return
    peers = (confined, choose("none"))
    seconds = in_turns(1 if quick else 4, *(partial(_sandbox_start, sandbox) for sandbox in peers))
    ours, theirs = (quantile(samples, 0.5) for samples in seconds)
    yield Line("sandbox_start_s", ours, "s", "plain process", theirs)


BENCHMARKS = (
    Benchmark(
        ("start_to_first_result_s", "start_first_in_program_s"),
        "lower",
        "from start_kernel to the first cell's reply; the same for a program's first kernel",
        _start,
    ),
    Benchmark(
        ("sandbox_start_s",),
        "lower",
        "a cold kernel in bubblewrap, from the agent's order to the first cell's reply",
        _sandboxes,
    ),
)


if __name__ == "__main__":
    print(json.dumps(_kernel(sys.argv[1])), flush=True)
