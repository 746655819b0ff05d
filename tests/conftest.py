"""pytest-jupyter owns asynchronous tests, everywhere: one event loop per test, and Jupyter's folders kept apart."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["pytest_jupyter.jupyter_server"]


MAY_BE_SKIPPED = ("iroh-relay", "network namespaces", "-m suites", "History range")
"""The relay is a program of its own that takes minutes to compile; containers may make no networks; other people's suites run for half an hour and are
asked for by name (tests/suites); what a suite expects of history ranges holds for no kernel with IPython 9."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is installed (`.ci/run` says so), a skipped test is a failure: it would hide what is missing."""
    report = yield
    if os.environ.get("DEPIN_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(words in reason for words in MAY_BE_SKIPPED):
            report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {reason}"
    return report
