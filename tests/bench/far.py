"""One end of a benchmark over a link, on the machine where it is started.

`keep` starts a kernel and prints its connection info. `rent`, `local` and `reach INFO` print that they are connected to a
rented kernel, one of their own, or one that INFO describes; then, for each number read, the seconds of that many cells.
`notebook TEXT` executes a notebook for each line read (`rented`, `local` or `gateway URL`), and prints what its cells show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from jupyter_server.gateway.gateway_client import GatewayClient
from nbclient import NotebookClient

from jupyter_depin.demo import KERNEL_NAME
from tests.bench.client import Client, Endpoints
from tests.bench.kernels import connected, endpoints, local, started
from tests.coalescing.notebook import terminal

_CELL_S = 60
"""After so long a cell is given up, and the notebook with it."""


@contextmanager
def _rented() -> Iterator[Client]:
    manager = KernelManager(kernel_name=KERNEL_NAME)
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        with connected(endpoints(manager)) as client:
            yield client
    finally:
        manager.shutdown_kernel(now=True)


def _say(word: object) -> None:
    print(json.dumps(word), flush=True)


def _shown(outputs: list[Any]) -> list[Any]:
    """What a reader sees of a cell: texts as they look in the end, and that there is a figure."""
    seen: list[Any] = []
    for output in outputs:
        if output["output_type"] == "stream":
            seen.append([output["name"], terminal(output["text"])])
        else:
            data = output.get("data", {})
            seen.append(
                sorted(data) if "image/png" in data else data.get("text/plain", output["output_type"])
            )
    return seen


def _notebook(text: str, kernel: str, *gateway: str) -> dict[str, Any]:
    book = nbformat.reads(text, as_version=4)
    options: dict[str, Any] = {"kernel_name": KERNEL_NAME if kernel == "rented" else "python3"}
    if gateway:
        GatewayClient.instance().url = gateway[0]
        options["kernel_manager_class"] = "jupyter_server.gateway.managers.GatewayKernelManager"
    began = time.perf_counter()
    # Whatever ends it: the cells before that count.
    with suppress(Exception):
        NotebookClient(book, timeout=_CELL_S, startup_timeout=_CELL_S, **options).execute()
    ended = [cell.get("metadata", {}).get("execution", {}) for cell in book.cells]
    shown = [
        _shown(cell.outputs) if "shell.execute_reply" in times else None
        for cell, times in zip(book.cells, ended, strict=True)
    ]
    return {"cells": shown, "seconds": time.perf_counter() - began}


def main() -> None:
    """Run the program."""
    _, role, *info = sys.argv
    if role == "notebook":
        _say("connected")
        for line in sys.stdin:
            _say(_notebook(info[0], *line.split()))
        return
    if role == "keep":
        with started("local-provisioner") as manager:
            known = manager.get_connection_info()
            _say(known | {"key": known["key"].decode()})
            sys.stdin.read()
        return
    if role == "reach":
        described = json.loads(info[0])
        reached = connected(Endpoints.of(described | {"key": described["key"].encode()}))
    else:
        reached = _rented() if role == "rent" else local()
    with reached as client:
        _say("connected")
        for line in sys.stdin:
            _say(client.timed("1", int(line)))


if __name__ == "__main__":
    main()
