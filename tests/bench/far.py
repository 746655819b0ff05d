"""One end of a benchmark over a link, on the machine where it is started.

`keep` starts a kernel and prints its connection info. `rent`, `local` and `reach INFO` print that they are connected to a
rented kernel, one of their own, or one that INFO describes; then, for each number read, the seconds of that many cells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from jupyter_client.manager import KernelManager

from jupyter_depin.demo import KERNEL_NAME
from tests.bench.client import Client, Endpoints
from tests.bench.kernels import connected, endpoints, local, started


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


def main() -> None:
    """Run the program."""
    _, role, *info = sys.argv
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
