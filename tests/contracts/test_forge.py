"""The contracts' own suite, in Solidity, run by forge on the committed bytecode.

Forge and solcjs come from npm by lockfile; nothing else is fetched. `DEPIN_FORGE_PROFILE=nightly` runs the invariants
for minutes in place of seconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHAIN = HERE.parent.parent / "jupyter_depin" / "chain"
SUITE = HERE / "suite"


def installed(folder: Path, npm: str) -> Path:
    """The packages of a folder's lockfile, kept beside it between runs."""
    modules = folder / "node_modules"
    lock = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    stamp = modules / ".lock-sha256"
    if not stamp.exists() or stamp.read_text() != lock:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        stamp.write_text(lock)
    return modules


@pytest.mark.parametrize("tree", sorted(SUITE.glob("*.tree")), ids=lambda tree: tree.stem)
def test_every_branch_of_a_tree_has_its_test_and_the_other_way_round(tree):
    planned = re.findall(r"── (it .*)", tree.read_text())
    written = re.findall(r"^ +// (it .*)$", tree.with_suffix(".t.sol").read_text(), re.MULTILINE)
    assert planned
    assert sorted(planned) == sorted(written)


@pytest.mark.forge
@pytest.mark.timeout(900)
def test_the_suite_of_the_contracts_passes(tmp_path):
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    forge = next(installed(HERE, npm).glob("@foundry-rs/forge-*/bin/forge*"), None)
    if forge is None:
        pytest.skip("npm has no forge for this machine")
    (tmp_path / "node_modules").symlink_to(installed(CHAIN / "contracts", npm))
    for name in ("foundry.toml", "solc.cjs"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "src").mkdir()
    shutil.copy(CHAIN / "contracts" / "Hourly.sol", tmp_path / "src")
    shutil.copytree(CHAIN / "contracts" / "interfaces", tmp_path / "src" / "interfaces")
    shutil.copytree(SUITE, tmp_path / "suite")
    shutil.copytree(CHAIN / "abi", tmp_path / "abi")
    shutil.copytree(HERE.parent / "vectors", tmp_path / "vectors")
    profile = os.environ.get("DEPIN_FORGE_PROFILE", "default")
    done = subprocess.run(
        [forge, "test", "--offline"],
        cwd=tmp_path,
        env={**os.environ, "FOUNDRY_PROFILE": profile, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " 0 failed" in done.stdout
