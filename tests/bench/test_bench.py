"""The benchmarks run and print what they promise. Their figures are for people; none is checked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_chosen_figure_is_a_line_of_json_beside_its_peers() -> None:
    figures = [json.loads(line) for line in bench("--quick", "execute", "voucher", "spared_bar")]
    assert {figure["name"] for figure in figures} == {
        "execute_p50_ms",
        "execute_p99_ms",
        "execute_added_p50_ms",
        "ping_300_bytes_ms",
        "voucher_sign_us",
        "voucher_verify_us",
        "spared_bar_kb",
    }
    for figure in figures:
        assert list(figure) == ["name", "value", "unit", "peer", "peer_value", "ratio"]
        assert figure["peer"]
        assert figure["ratio"] == pytest.approx(figure["value"] / figure["peer_value"], rel=0.01, abs=0.01)
    assert {figure["peer"] for figure in figures if figure["name"] == "execute_p50_ms"} == {
        "local kernel",
        "asyncssh forward",
    }


def test_the_list_names_every_figure_and_which_way_is_better() -> None:
    lines = bench("--list")
    assert len(lines) == len(BENCHMARKS)
    for benchmark, line in zip(BENCHMARKS, lines, strict=True):
        assert all(name in line for name in benchmark.names)
        assert f"({benchmark.better} is better)" in line


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "nothing"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no benchmark nothing" in done.stderr
