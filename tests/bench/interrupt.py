"""How long an interrupt takes while a kernel prints without end, and what the memory grows by meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import psutil
import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

from tests.bench.client import Client, Endpoints
from tests.bench.kernels import endpoints, started
from tests.bench.report import Benchmark, Line

_ALLOWED_MS = 20
"""What an interrupt may take on top of two round trips."""
_PATIENCE_S = 300

_PRINT = """
import sys
_line = 'x' * 99_999 + '\\n'
for _ in range({lines}):
    sys.stdout.write(_line)
    sys.stdout.flush()
"""
_LINE = 100_000
"""Each is flushed, or ipykernel would keep gigabytes in the kernel itself and answer no interrupt for seconds."""


class Reader(threading.Thread):
    """Reads a kernel's output as fast as it comes, or not at all; knows how much there was, and when it was idle."""

    def __init__(self, place: Endpoints) -> None:
        super().__init__(daemon=True)
        self._context = zmq.Context()
        self._iopub = self._context.socket(zmq.SUB)
        self._iopub.rcvhwm = 100
        self._iopub.subscribe(b"")
        self._iopub.connect(place.iopub)
        self._reading = threading.Event()
        self._over = False
        self.idle: dict[str, float] = {}
        self.got = 0
        self.news = threading.Condition()

    def read(self, on: bool) -> None:
        (self._reading.set if on else self._reading.clear)()

    def run(self) -> None:
        session = Session(key=b"")
        while not self._over:
            self._reading.wait()
            if not self._iopub.poll(100):
                continue
            _, frames = session.feed_identities(self._iopub.recv_multipart())
            with self.news:
                self.got += sum(map(len, frames))
                if b'"status"' in frames[1][:400] and b'"idle"' in frames[4]:
                    parent = session.unpack(frames[2])
                    self.idle[parent.get("msg_id", "")] = time.perf_counter()
                self.news.notify_all()

    def until(self, fact: Callable[[], object]) -> None:
        with self.news:
            if not self.news.wait_for(fact, _PATIENCE_S):
                raise TimeoutError(f"not so in {_PATIENCE_S} s")

    def close(self) -> None:
        self._over = True
        self._reading.set()
        self.join()
        self._context.destroy(0)


class Printing:
    """A kernel with a shell, a control channel and a reader."""

    def __init__(self, manager: KernelManager) -> None:
        place = endpoints(manager)
        self._session = Session(key=place.key)
        self._context = zmq.Context()
        self._shell, self._control = (self._context.socket(zmq.DEALER) for _ in range(2))
        info = manager.get_connection_info()
        self._shell.connect(place.shell)
        self._control.connect(place.shell.replace(str(info["shell_port"]), str(info["control_port"])))
        self.reader = Reader(place)
        self.reader.start()
        self.reader.read(True)

    def run(self, code: str) -> str:
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        request = self._session.msg("execute_request", content)
        self._shell.send_multipart(self._session.serialize(request))
        return str(request["header"]["msg_id"])

    def interrupt(self, cell: str) -> tuple[float, float]:
        """Seconds until an interrupt request is answered, and until the cell that ran is over."""
        begun = time.perf_counter()
        self._control.send_multipart(self._session.serialize(self._session.msg("interrupt_request", {})))
        if not self._control.poll(_PATIENCE_S * 1000):
            raise TimeoutError("the interrupt was not answered")
        self._control.recv_multipart()
        replied = time.perf_counter() - begun
        self.reader.until(lambda: cell in self.reader.idle)
        return replied, self.reader.idle[cell] - begun

    def close(self) -> None:
        self.reader.close()
        self._context.destroy(0)


@contextmanager
def printing(provisioner: str) -> Iterator[Printing]:
    with started(provisioner) as manager:
        client = Client(endpoints(manager))
        client.first_result()
        client.close()
        kernel = Printing(manager)
        try:
            yield kernel
        finally:
            kernel.close()


def _interrupted(kernel: Printing, size: int) -> tuple[float, float]:
    before = kernel.reader.got
    cell = kernel.run(_PRINT.format(lines=1 << 40))
    kernel.reader.until(lambda: kernel.reader.got >= before + size)
    return kernel.interrupt(cell)


def _interrupt(quick: bool) -> Iterator[Line]:
    size, rounds = (50 if quick else 500) * 1_000_000, 3
    with printing("depin-loopback") as ours, printing("local-provisioner") as here:
        took = [(_interrupted(ours, size), _interrupted(here, size)) for _ in range(rounds)]
    ours_s, here_s = ([median(each[side][i] for each in took) for i in range(2)] for side in range(2))
    yield Line("interrupt_behind_500_MB_ms", ours_s[0] * 1e3, "ms", "local kernel", here_s[0] * 1e3)
    yield Line("interrupt_behind_500_MB_idle_ms", ours_s[1] * 1e3, "ms", "local kernel", here_s[1] * 1e3)
    yield Line(
        "interrupt_behind_500_MB_allowed_ms",
        ours_s[0] * 1e3,
        "ms",
        "local kernel + 20 ms",
        here_s[0] * 1e3 + _ALLOWED_MS,
    )


def _rss() -> tuple[int, int]:
    """Bytes in memory here (the renter) and in the agent's program."""
    me = psutil.Process()
    agents = [p for p in me.children(recursive=True) if "provider_kernel" in " ".join(p.cmdline())[:200]]
    agent = next(p for p in agents if "start" in p.cmdline())
    return me.memory_info().rss, agent.memory_info().rss


def _memory(quick: bool) -> Iterator[Line]:
    size = (200 if quick else 2000) * 1_000_000
    with printing("depin-loopback") as kernel:
        kernel.reader.read(False)
        idle = most = _rss()
        cell = kernel.run(_PRINT.format(lines=size // _LINE))
        still_since, still = time.monotonic(), idle
        # It stands still once nothing grows any more; then the client reads on.
        while time.monotonic() - still_since < 3:
            time.sleep(0.05)
            now = _rss()
            most = (max(most[0], now[0]), max(most[1], now[1]))
            if any(abs(a - b) > 1 << 20 for a, b in zip(now, still, strict=True)):
                still_since, still = time.monotonic(), now
        kernel.reader.read(True)
        while cell not in kernel.reader.idle:
            time.sleep(0.05)
            now = _rss()
            most = (max(most[0], now[0]), max(most[1], now[1]))
        got = kernel.reader.got
    assert got >= size, f"{size - got} bytes of output were lost"
    for name, before, peak in zip(("renter", "agent"), idle, most, strict=True):
        yield Line(f"memory_2_GB_{name}_MB", (peak - before) / 1e6, "MB", "what was printed", size / 1e6)


BENCHMARKS = (
    Benchmark(
        (
            "interrupt_behind_500_MB_ms",
            "interrupt_behind_500_MB_idle_ms",
            "interrupt_behind_500_MB_allowed_ms",
        ),
        "lower",
        "from an interrupt, while output pours, to its reply; to the cell's end; against a local kernel's and 20 ms",
        _interrupt,
    ),
    Benchmark(
        ("memory_2_GB_renter_MB", "memory_2_GB_agent_MB"),
        "lower",
        "what the memory of either side grows by while a kernel prints 2 GB that a client reads only later",
        _memory,
    ),
)
