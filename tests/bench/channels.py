"""How fast messages cross: a cell's round trip, a big buffer, many small outputs."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.bench.children import Child, child
from tests.bench.client import Client
from tests.bench.kernels import forwarded, local, loopback
from tests.bench.report import Benchmark, Line, in_turns, quantile

_ALLOWED_MS = 0.3
"""What a rented kernel's round trip may add to a local one's, over one ping of the transport."""
_BUFFER = 64 << 20
_DISPLAYS = 2000


@contextmanager
def _raw() -> Iterator[Child]:
    with (
        child("raw_stream", "serve") as server,
        child("raw_stream", "dial", json.dumps(server.hear())) as dialler,
    ):
        dialler.ask("ping", 20)
        yield dialler


def _execute(quick: bool) -> Iterator[Line]:
    blocks, rounds = (4, 10) if quick else (16, 25)
    with local() as here, loopback() as ours, forwarded() as ssh, _raw() as raw:
        peers: list[Callable[[], list[float]]] = [partial(c.timed, "1", rounds) for c in (ours, here, ssh)]
        in_turns(1, *peers)
        seconds = in_turns(
            blocks, *peers, partial(raw.ask, "ping", 2 * rounds), partial(raw.ask, "tcp", 2 * rounds)
        )
    half = [quantile(samples, 0.5) * 1e3 for samples in seconds]
    most = [quantile(samples, 0.99) * 1e3 for samples in seconds]
    yield Line("execute_p50_ms", half[0], "ms", "local kernel", half[1])
    yield Line("execute_p50_ms", half[0], "ms", "asyncssh forward", half[2])
    yield Line("execute_p99_ms", most[0], "ms", "local kernel", most[1])
    yield Line("execute_p99_ms", most[0], "ms", "asyncssh forward", most[2])
    added = half[0] - half[1]
    yield Line("execute_added_p50_ms", added, "ms", "iroh ping + 0.3 ms", half[3] + _ALLOWED_MS)
    yield Line("execute_added_p50_ms", added, "ms", "asyncssh forward added", half[2] - half[1])
    yield Line("ping_300_bytes_ms", half[3], "ms", "tcp echo", half[4])


_MAKE_BUFFER = f"""
import comm, os
buffer = os.urandom(1 << 20) * {_BUFFER >> 20}
channel = comm.create_comm(target_name="bench")
"""


def _sends_buffer(client: Client) -> list[float]:
    kinds: list[str] = []
    seconds = client.timed("channel.send({}, buffers=[buffer])", on_output=kinds.append)
    assert "comm_msg" in kinds, f"a buffer did not arrive: {kinds}"
    return seconds


def _buffers(quick: bool) -> Iterator[Line]:
    with local() as here, loopback() as ours, forwarded() as ssh, _raw() as raw:
        clients = (ours, here, ssh)
        for client in clients:
            client.execute(_MAKE_BUFFER)
        seconds = in_turns(
            2 if quick else 7,
            *(partial(_sends_buffer, client) for client in clients),
            partial(raw.ask, "bulk", _BUFFER),
        )
    half = [quantile(samples, 0.5) for samples in seconds]
    yield Line("buffers_64_MiB_s", half[0], "s", "raw iroh stream", half[3])
    yield Line("buffers_64_MiB_s", half[0], "s", "local kernel", half[1])
    yield Line("buffers_64_MiB_s", half[0], "s", "asyncssh forward", half[2])
    # ZeroMQ hands a message on when it is whole, so the local kernel's time comes on top of the stream's.
    yield Line("buffers_added_64_MiB_s", half[0] - half[1], "s", "raw iroh stream", half[3])


_SHOW = f"""
from IPython.display import publish_display_data
for i in range({_DISPLAYS}):
    publish_display_data({{"text/plain": f"line {{i}} " + 80 * "x"}})
"""


def _shows(client: Client) -> tuple[float, int]:
    kinds: collections.Counter[str] = collections.Counter()
    (seconds,) = client.timed(_SHOW, on_output=lambda kind: kinds.update([kind]))
    return seconds, kinds["display_data"]


def _displays(quick: bool) -> Iterator[Line]:
    with local() as here, loopback() as ours:
        arrived: list[int] = []

        def ours_shows() -> list[float]:
            seconds, count = _shows(ours)
            arrived.append(count)
            return [seconds]

        seconds = in_turns(2 if quick else 5, ours_shows, lambda: [_shows(here)[0]])
    assert set(arrived) == {_DISPLAYS}, f"outputs were lost: {arrived} of {_DISPLAYS} arrived"
    half = [quantile(samples, 0.5) for samples in seconds]
    yield Line("displays_2000_s", half[0], "s", "local kernel", half[1])


BENCHMARKS = (
    Benchmark(
        ("execute_p50_ms", "execute_p99_ms", "execute_added_p50_ms", "ping_300_bytes_ms"),
        "lower",
        "a cell's request to its reply and idle; the same less a local kernel's; 300 bytes there and back on iroh",
        _execute,
    ),
    Benchmark(
        ("buffers_64_MiB_s", "buffers_added_64_MiB_s"),
        "lower",
        "a cell that sends 64 MiB in one widget message to the client; the same less a local kernel's",
        _buffers,
    ),
    Benchmark(
        ("displays_2000_s",),
        "lower",
        "a cell that shows 2,000 outputs; that none is lost is checked",
        _displays,
    ),
)
