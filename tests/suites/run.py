"""Other people's suites as our conformance suite: the same tests with a plain kernel and with a rented one.

`JUPYTER_DEFAULT_PROVISIONER_NAME` makes every kernel of any Jupyter program a rented one, so the projects' own tests,
taken from their source distributions, ask of us what they ask of a local kernel. What counts is the difference: a test
that fails on both says nothing about us. Names on the command line choose suites; `--fast` takes a few of each one's
tests, as CI does; `--delay-ms` puts a rented kernel so far away, each way. One line of JSON per suite goes to standard output: the counts and every test that ended otherwise.

The suites need plugins that would take over our own tests; those are installed into a folder of their own, beside this
environment and not in it. Rejected: copies of the suites in this repository, which would age.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "plain": {},
    "loopback": {"JUPYTER_DEFAULT_PROVISIONER_NAME": "depin-loopback"},
}
PLUGINS = (
    "pytest-asyncio==1.5.0",
    "flaky==3.8.1",
    "pytest-cov==7.1.0",
    "coverage==7.17.3",
    "testpath==0.6.0",
)
_RUN_S = 1800
_FAR = Path(__file__).parent / "far"


@dataclass(frozen=True)
class Suite:
    """One project's tests. `known`: tests that end otherwise with a rented kernel, and why that is right."""

    package: str
    version: str
    tests: tuple[str, ...] = ("tests",)
    fast: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)


SUITES: dict[str, Suite] = {
    "jupyter_client": Suite(
        package="jupyter_client",
        version="8.10.0",
        fast=(
            "tests/test_client.py",
            "tests/test_multikernelmanager.py",
            "tests/test_restarter.py::test_restart_check",
            "tests/test_runapp.py",
        ),
        known={
            "tests.test_kernelapp::test_kernelapp_lifecycle": (
                "ends the program one second after its event loop first turned, which is while the agent still starts"
            ),
        },
    ),
    "nbclient": Suite(
        package="nbclient",
        version="0.11.0",
        needs=("xmltodict==1.0.4",),
        fast=(
            "tests/test_client.py::test_run_all_notebooks",
            "tests/test_client.py::test_many_parallel_notebooks",
            "tests/test_client.py::TestExecute::test_disable_stdin",
            "tests/test_client.py::TestExecute::test_kernel_death_during_execution",
            "tests/test_client.py::TestExecute::test_timeout",
            "tests/test_client.py::TestExecute::test_widgets",
        ),
    ),
    "jupyter_server": Suite(
        package="jupyter_server",
        version="2.21.1",
        # The rest serves files, pages and settings.
        tests=("tests/services/kernels", "tests/services/sessions", "tests/services/kernelspecs"),
        fast=("tests/services/kernels/test_execution_state.py",),
    ),
    "ipykernel": Suite(
        package="ipykernel",
        version="7.4.0",
        needs=("trio", "sortedcontainers", "outcome", "sniffio"),
        fast=("tests/test_message_spec.py", "tests/test_kernel.py", "tests/test_subshells.py"),
    ),
    "papermill": Suite(
        package="papermill",
        version="2.7.0",
        # The rest reads and writes cloud storage and has nothing to do with kernels.
        tests=tuple(
            f"papermill/tests/test_{name}.py"
            for name in ("cli", "clientwrap", "engines", "execute", "parameterize")
        ),
        fast=("papermill/tests/test_clientwrap.py", "papermill/tests/test_execute.py"),
    ),
}


@dataclass
class Outcome:
    """How one run of a suite ended: each test's own outcome, by name."""

    tests: dict[str, str]
    seconds: float
    said: str

    def counts(self) -> dict[str, Any]:
        """Numbers for people."""
        return {**Counter(self.tests.values()), "seconds": round(self.seconds)}


def prepare(suites: Sequence[Suite], folder: Path) -> Path:
    """Download the suites and install their plugins below `folder`; return the plugins' place."""
    plugins = folder / "plugins"
    wanted = [*PLUGINS, *(need for suite in suites for need in suite.needs)]
    # Without dependencies: what a plugin needs of ours (pytest itself) must not come a second time.
    _pip("install", "--no-deps", "--upgrade", "--target", str(plugins), *wanted)
    for suite in suites:
        name = f"{suite.package}=={suite.version}"
        _pip("download", "--no-deps", "--no-binary", suite.package, "--dest", str(folder), name)
        with tarfile.open(next(folder.glob(f"{suite.package}-{suite.version}.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return plugins


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True, stdout=sys.stderr)


def run(suite: Suite, mode: str, *, folder: Path, plugins: Path, fast: bool, delay_ms: int = 0) -> Outcome:
    """Run a suite once, `plain` or `loopback`, in the folder of its sources."""
    report = folder / f"{suite.package}.{mode}.xml"
    environment = os.environ | ENVIRONMENTS[mode]
    # Where this package comes from stays as it is: without that another checkout's may be tested.
    places = [str(plugins), *filter(None, [environment.get("PYTHONPATH")])]
    if delay_ms:
        environment["DEPIN_DELAY_MS"] = str(delay_ms)
        places.insert(0, str(_FAR))
    environment["PYTHONPATH"] = os.pathsep.join(places)
    # The suites run programs by name.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # What an outer run of pytest says about itself would mislead the inner one.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
        *("-o", "asyncio_default_fixture_loop_scope=function", "--timeout", "120", "--color=no"),
        *suite.options,
        *(suite.fast if fast else suite.tests),
    ]
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder / f"{suite.package}-{suite.version}",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_RUN_S,
        check=False,
    )
    seconds = time.monotonic() - began
    return Outcome(_outcomes(report) if report.exists() else {}, seconds, done.stdout)


def _outcomes(report: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = next((kind for kind in ("error", "failure", "skipped") if kind in kinds), "passed")
        # A test that is run again after a failure is listed twice; its last run counts.
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def differences(plain: Outcome, loopback: Outcome) -> list[dict[str, str]]:
    """Every test that ended otherwise with a rented kernel."""
    names = sorted(plain.tests.keys() | loopback.tests.keys())
    return [
        {
            "test": name,
            "plain": plain.tests.get(name, "missing"),
            "loopback": loopback.tests.get(name, "missing"),
        }
        for name in names
        if plain.tests.get(name) != loopback.tests.get(name)
    ]


def compare(
    name: str, *, folder: Path, plugins: Path, fast: bool, delay_ms: int = 0
) -> tuple[dict[str, Any], list[Outcome]]:
    """Run a suite in both ways. Returns what is printed, and the runs themselves."""
    suite = SUITES[name]
    plain, loopback = (
        run(suite, m, folder=folder, plugins=plugins, fast=fast, delay_ms=delay_ms)
        for m in ("plain", "loopback")
    )
    found = differences(plain, loopback)
    line = {
        "suite": name,
        "version": suite.version,
        "delay_ms": delay_ms,
        "plain": plain.counts(),
        "loopback": loopback.counts(),
        "differences": [d | {"known": suite.known.get(d["test"], "")} for d in found],
    }
    return line, [plain, loopback]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites that were named, or all. 1 if a test ended otherwise that is not known to."""
    parser = argparse.ArgumentParser(prog="tests.suites", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SUITES, []], metavar="name")
    parser.add_argument("--fast", action="store_true", help="only a few tests of each")
    parser.add_argument("--delay-ms", type=int, default=0, help="how far away the rented kernel is, one way")
    parser.add_argument("--folder", type=Path, help="keep sources, reports and logs here")
    options = parser.parse_args(arguments)
    names = options.names or list(SUITES)
    surprised = False
    with tempfile.TemporaryDirectory(prefix="suites-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plugins = prepare([SUITES[name] for name in names], folder)
        for name in names:
            line, runs = compare(
                name, folder=folder, plugins=plugins, fast=options.fast, delay_ms=options.delay_ms
            )
            for mode, outcome in zip(ENVIRONMENTS, runs, strict=True):
                (folder / f"{name}.{mode}.log").write_text(outcome.said, "utf-8")
            print(json.dumps(line), flush=True)
            surprised |= any(not d["known"] for d in line["differences"]) or not line["plain"].get("passed")
    return int(surprised)
