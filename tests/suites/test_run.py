"""That a suite is run against the package that whoever runs it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.suites.run import Suite, run

TEST = """
import os, sys
import meant

def test_where(): assert meant.HERE
def test_far(): assert "DEPIN_DELAY_MS" in os.environ and "far" in sys.modules["sitecustomize"].__file__
"""


@pytest.mark.parametrize("delay_ms", [0, 50])
def test_a_suite_finds_what_the_runner_was_told_to_test(
    delay_ms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant, sources = tmp_path / "checkout", tmp_path / "other-1" / "tests"
    meant.mkdir()
    (meant / "meant.py").write_text("HERE = True\n", "utf-8")
    sources.mkdir(parents=True)
    (sources / "test_it.py").write_text(TEST, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(meant))
    suite = Suite(package="other", version="1", options=("-c", "/dev/null", "--rootdir", "."))
    outcome = run(suite, "loopback", folder=tmp_path, plugins=tmp_path, fast=False, delay_ms=delay_ms)
    assert outcome.tests == {
        "tests.test_it::test_where": "passed",
        "tests.test_it::test_far": "passed" if delay_ms else "failure",
    }, outcome.said
