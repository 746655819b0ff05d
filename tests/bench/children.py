"""Programs that a benchmark starts beside itself: one line of JSON out for each line in; the end of input ends them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.net.netns import Host

_ROOT = Path(__file__).parents[2]


class Child:
    """A running one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> Any:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a program of the benchmark ended early")
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self.hear()


@contextmanager
def child(
    module: str, *arguments: object, on: Host | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Start `tests.bench.<module>`, here or on a machine of a network of one's own, and end it at the end."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    process = subprocess.Popen(
        command if on is None else on.inside(*command),
        env=environment,
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Child(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
