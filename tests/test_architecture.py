"""The layers of `pyproject.toml`, and the house's rules about files, as tests.

Each contract is also seen to fail: a violation is planted in a copy of the two packages, and that contract alone must
break. A contract that nothing can break guards nothing.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("jupyter_depin", "provider_kernel")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
]

PLANTS = {
    "jupyter_depin is a stack of layers": ("jupyter_depin/demo/lab.py", "import jupyter_depin.doctor"),
    "provider_kernel is a stack of layers": ("provider_kernel/config.py", "import provider_kernel.tenancy"),
    "The two sides meet only on the wire": (
        "provider_kernel/tenancy.py",
        "from jupyter_depin.consumer import config",
    ),
    "The provider needs no Jupyter Server": ("provider_kernel/agent.py", "import jupyter_client"),
    "The consumer never imports the provider": ("jupyter_depin/doctor.py", "import provider_kernel.config"),
    "Machines and vocabulary do no I/O and read no clock": ("jupyter_depin/tunnel/window.py", "import time"),
    "Each outside library has one door": ("jupyter_depin/consumer/offers.py", "import sqlite3"),
    "Chain libraries stay off the provisioner's import path": ("jupyter_depin/keys.py", "import eth_account"),
    "No cycles anywhere": ("jupyter_depin/protocol/money.py", "import jupyter_depin.protocol.voucher"),
    "The front door is light": ("jupyter_depin/__init__.py", "import zmq"),
}
"""For each contract a file and the import that it must not have."""

NAMED_BY_NO_TEST = {
    "jupyter_depin.__main__": "starts `cli.main`; tests/e2e runs it as a program",
    "jupyter_depin.chain.engine": "the embedded chain's inside; everything in tests/chain runs on it",
    "jupyter_depin.chain.refusals": "the words of both ledgers' refusals; tests/chain/test_ledger.py reads them",
    "jupyter_depin.chain.rpc_methods": "the embedded chain's inside, asked over HTTP by tests/chain",
    "jupyter_depin.consumer.ending": "the rental's last steps; tests/consumer/test_rental.py",
    "jupyter_depin.consumer.shown": "draws the status that tests/consumer/test_rental.py reads",
    "jupyter_depin.drivers.clock": "reads the machine's two clocks and does nothing else",
    "jupyter_depin.journal.books": "the journal itself, as its package names it; tests/test_journal.py",
    "jupyter_depin.journal.owner": "whose lease it is; tests/test_journal.py asks through the journal",
    "jupyter_depin.provisioner": "is named as Jupyter knows it, depin-loopback; tests/integration and tests/suites",
    "jupyter_depin.server.source": "a port, and the one line that finds what stands behind it",
    "provider_kernel.__main__": "starts `cli.main`; tests/e2e runs it as a program",
    "provider_kernel.collector": "the agent's own part; tests/provider/test_agent.py",
    "provider_kernel.visitors": "the agent's own part; tests/provider/test_agent.py",
    "provider_kernel.sandbox.confined": "the inside of bubblewrap.py",
    "provider_kernel.sandbox.connection": "the inside of both sandboxes: every kernel of tests/sandbox uses it",
    "provider_kernel.sandbox.kernel_main": "runs inside the sandbox, as each kernel of tests/sandbox",
    "provider_kernel.sandbox.tail": "the inside of both sandboxes: what a failed kernel start says",
    "provider_kernel.tenancy": "the agent's own part; tests/provider/test_agent.py",
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from importlinter.cli import lint_imports_command as run; sys.path.insert(0, '.'); run()"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", program, "--cache-dir", str(ROOT / ".import_linter_cache")],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def verdicts(report: str) -> dict[str, str]:
    """Contract → KEPT or BROKEN, from the linter's report."""
    lines = re.findall(r"^(.*) (KEPT|BROKEN)\b", report, re.MULTILINE)
    return {name: verdict for name, verdict in lines if name in CONTRACTS}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def front_end() -> list[Path]:
    return sorted((ROOT / "labextension" / "src").rglob("*.ts*"))


def test_the_layers_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == dict.fromkeys(CONTRACTS, "KEPT")


def test_every_contract_has_a_planted_violation():
    assert set(PLANTS) == set(CONTRACTS)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_planted_violation_breaks_exactly_its_contract(contract, tmp_path):
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=lambda folder, names: {n for n in names if "." in n and not n.endswith(".py")}
        )  # fmt: skip
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    name, planted = PLANTS[contract]
    with (tmp_path / name).open("a") as file:
        file.write(f"\n{planted}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdicts(done.stdout) == {**dict.fromkeys(CONTRACTS, "KEPT"), contract: "BROKEN"}, done.stdout


def test_no_file_is_longer_than_400_lines():
    lengths = {
        str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in sources() + front_end()
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_nothing_is_left_to_do():
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources() + front_end()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert found == []


def named_in(path: Path) -> set[str]:
    """Modules that a test file imports, or names in full."""
    text = path.read_text("utf-8")
    named = set(re.findall(r"\b(?:jupyter_depin|provider_kernel)(?:\.\w+)+", text))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return named


def test_every_module_is_named_by_a_test():
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    beside = [path for path in (ROOT / "tests").rglob("*.py") if path.name in ("conftest.py", "world.py")]
    named = set().union(*map(named_in, tests + beside))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources()
        if path.name != "__init__.py"
    }
    named |= {
        name for name in modules if f"test_{name.rpartition('.')[2]}.py" in {path.name for path in tests}
    }
    assert sorted(modules - named - set(NAMED_BY_NO_TEST)) == [], "write a test, or say why there is none"
    assert sorted(set(NAMED_BY_NO_TEST) - modules) == [], "these exceptions are for modules that are gone"


LIGHT = {
    "jupyter_depin.provisioner": ("web3", "eth_account", "eth_tester", "eth"),
    "jupyter_depin.protocol": ("tornado", "traitlets", "jupyter_server", "zmq", "asyncio"),
    "jupyter_depin.server": ("web3", "eth_account", "eth_tester", "eth"),
}


@pytest.mark.parametrize("package", LIGHT)
def test_an_import_loads_nothing_heavy(package):
    program = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.iter_modules(getattr(package, '__path__', [])):\n"
        f"    importlib.import_module({package!r} + '.' + module.name)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint(LIGHT[package]), loaded & set(LIGHT[package])


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join
)
def test_the_linters_are_content(command):
    checked = [*PACKAGES, "tests", "hatch_build.py"] if command[0] == "ruff" else []
    done = subprocess.run(
        [sys.executable, "-m", *command, *checked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
