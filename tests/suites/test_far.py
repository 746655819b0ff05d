"""That `--delay-ms` keeps a rented kernel at its distance, and a plain one where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FAR = Path(__file__).parent / "far"
CELL = """
import sys
from tests.bench.kernels import local, loopback
with {"local": local, "loopback": loopback}[sys.argv[1]]() as client:
    print(min(client.timed("1", 3)))
"""


def fastest(kernel: str, delay_ms: int) -> float:
    """Seconds of a cell, in a program of its own."""
    places = [str(FAR), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"DEPIN_DELAY_MS": str(delay_ms), "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, "-c", CELL, kernel],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_a_rented_kernel_answers_no_sooner_than_after_both_ways():
    assert fastest("loopback", 400) >= 0.8


def test_a_plain_kernel_is_not_slowed_down():
    # A plain kernel's cell takes milliseconds; a loaded machine has room up to a hundred times that.
    assert fastest("local", 100_000) < 100
