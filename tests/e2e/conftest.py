"""The demo as a program of its own, started as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.market import Market, market

DEMO = [sys.executable, "-m", "jupyter_depin", "demo"]
TOKEN = "for-this-test-only"


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and everything it started."""
    return [process, *process.children(recursive=True)]


def assert_all_gone(processes: list[psutil.Process]) -> None:
    """Whatever the demo had started has ended with it."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"still running: {[p.cmdline() for p in alive if p.is_running()]}"


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment with nothing of ours in it, and a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "PYTEST"))}
    return {**kept, "HOME": str(tmp_path / "home"), "JUPYTER_TOKEN": TOKEN, "TMPDIR": str(tmp_path)}


RunDemo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_demo(demo_environment: dict[str, str], tmp_path: Path) -> RunDemo:
    """`jupyter depin demo …` to its end."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DEMO, *map(str, arguments)],
            env=demo_environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


StartDemo = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def start_demo(demo_environment: dict[str, str], tmp_path: Path) -> StartDemo:
    """`jupyter depin demo …` in the background; killed, if the test has not ended it."""

    @contextmanager
    def start(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        with (
            (tmp_path / "demo.err").open("w") as errors,
            subprocess.Popen(
                [*DEMO, *map(str, arguments)],
                env=demo_environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True,
            ) as demo,
        ):  # fmt: skip
            try:
                yield demo
            finally:
                if demo.poll() is None:
                    for process in family(psutil.Process(demo.pid)):
                        process.kill()

    return start


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A chain, an agent and a funded renter for all refusals."""
    with market(tmp_path_factory.mktemp("market")) as made:
        yield made
