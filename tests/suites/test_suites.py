"""What other people's suites say, as a test. CI runs `pytest -m suites`; all of them: `python -m tests.suites`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.suites.run import SUITES, compare, prepare

pytestmark = [pytest.mark.suites, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The suites' sources and the plugins that they need."""
    if "suites" not in request.config.option.markexpr:
        pytest.skip("downloads and runs for minutes; ask for it with -m suites")
    folder = tmp_path_factory.mktemp("suites")
    return folder, prepare([SUITES["jupyter_client"], SUITES["nbclient"]], folder)


@pytest.mark.parametrize("name", ["jupyter_client", "nbclient"])
def test_a_rented_kernel_passes_what_a_local_one_passes(name: str, prepared: tuple[Path, Path]) -> None:
    folder, plugins = prepared
    line, runs = compare(name, folder=folder, plugins=plugins, fast=True)
    assert line["plain"].get("passed"), runs[0].said
    assert [found for found in line["differences"] if not found["known"]] == [], runs[1].said
