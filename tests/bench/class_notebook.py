"""A class's notebook of sixty cells over a phone's link: 1 Mbit/s, 600 ms round trip, cut for 3 s every 45 s.

Figures, progress bars, prints and plain results, executed by nbclient with a rented kernel on the far side. What each cell
shows is compared with a run on this machine; the bytes are counted on the link, in both directions, with all that QUIC adds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nbformat

from tests.bench.lossy import far_apart, rented
from tests.bench.report import Benchmark, Line
from tests.net.link import Link, Terms, missing
from tests.net.netns import Host

_TERMS = Terms(delay_ns=300_000_000, rate=1_000_000)
_CUT_EVERY_S, _CUT_S = 45, 3
_CELLS, _FEW = 60, 8
_MOST_MB = 5.0
_COMPLETE, _DIFFERENT, _BYTES, _TIME = (
    "notebook_cells", "notebook_cells_different", "notebook_MB", "notebook_s",
)  # fmt: skip

_PEER = "jupyter kernel gateway"
_GATEWAY_PORT = 42000

_KINDS = (
    "import numpy as np\nx = np.linspace(0, {i} + 1, 200)\nprint(x.sum().round(3))",
    "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 3))\nplt.plot(x, np.sin(x * {i}))\nplt.show()",
    "import sys, time\nfor n in range(41):\n    print(f'\\r{{n:3d}}/40 ' + '#' * n, end='', flush=True)\n"
    "    time.sleep(0.02)\nprint()",
    "for n in range(60):\n    print(f'epoch {{n}}: loss {{1 / (n + {i} + 1):.4f}}')",
    "x.reshape(20, 10)[:3].round(2)",
    "from IPython.display import display, update_display\ndisplay('starting', display_id='d{i}')\n"
    "for n in range(20):\n    update_display(f'step {{n}}', display_id='d{i}')\n    time.sleep(0.02)",
)


def notebook(cells: int) -> dict[str, Any]:
    """The class's notebook, as it lies on disk."""
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(_KINDS[i % len(_KINDS)].format(i=i)) for i in range(cells)]
    written: dict[str, Any] = json.loads(nbformat.writes(made))
    return written


@contextmanager
def _cuts(joined: Link) -> Iterator[None]:
    over = threading.Event()

    def cut() -> None:
        while not over.wait(_CUT_EVERY_S):
            joined.cut()
            over.wait(_CUT_S)
            joined.mend()

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _gateway(provider: Host, address: str) -> Iterator[str]:
    """A kernel gateway on the far side, once it listens; its address."""
    process = subprocess.Popen(
        provider.inside(
            sys.executable, "-m", "kernel_gateway", f"--KernelGatewayApp.ip={address}",
            f"--KernelGatewayApp.port={_GATEWAY_PORT}",
        ),
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while "available at" not in (said := process.stderr.readline()):
            assert said, "the kernel gateway ended early"
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield f"http://{address}:{_GATEWAY_PORT}"
    finally:
        process.terminate()
        process.wait(20)


def _measure(quick: bool) -> Iterator[Line]:
    cells = _FEW if quick else _CELLS
    reason = missing()
    if reason is not None:
        yield Line(_COMPLETE, None, "cells", _PEER, None, reason)
        return
    with (
        far_apart(_TERMS) as (world, renter, provider, joined),
        rented(world, renter, provider, joined.addresses[1], "notebook", json.dumps(notebook(cells))) as far,
    ):
        far.hear()
        local = far.ask("local")
        before = sum(joined.sent_bytes)
        with _cuts(joined):
            ours = far.ask("rented")
        sent = sum(joined.sent_bytes) - before
        with _gateway(provider, joined.addresses[1]) as url:
            before = sum(joined.sent_bytes)
            with _cuts(joined):
                theirs = far.ask("gateway", url)
            their_bytes = sum(joined.sent_bytes) - before
    yield Line(_COMPLETE, _ended(ours), "cells", _PEER, _ended(theirs))
    yield Line(_DIFFERENT, _different(ours, local), "cells", _PEER, _different(theirs, local))
    yield Line(_BYTES, sent / 1e6, "MB", _PEER, their_bytes / 1e6)
    yield Line(_BYTES, sent / 1e6, "MB", "bound", _MOST_MB)
    yield Line(_TIME, ours["seconds"], "s", _PEER, theirs["seconds"])
    yield Line(_TIME, ours["seconds"], "s", "on this machine", local["seconds"])


def _ended(run: dict[str, Any]) -> int:
    return sum(cell is not None for cell in run["cells"])


def _different(run: dict[str, Any], local: dict[str, Any]) -> int:
    return sum(one != other for one, other in zip(run["cells"], local["cells"], strict=True))


BENCHMARKS = (
    Benchmark(
        (_COMPLETE, _DIFFERENT, _BYTES, _TIME),
        "lower",
        "a class's notebook over 1 Mbit/s and 600 ms, cut every 45 s: cells that ended, cells that differ, bytes, time",
        _measure,
    ),
)
