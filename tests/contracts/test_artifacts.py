"""The committed contracts are those of the committed sources."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHAIN = Path(__file__).parent.parent.parent / "jupyter_depin" / "chain"
CONTRACTS, ABI = CHAIN / "contracts", CHAIN / "abi"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ABI / "manifest.json").read_text())
    return found


def test_the_manifest_names_every_source_as_it_is(manifest):
    sources = sorted(p for p in CONTRACTS.rglob("*.sol") if "node_modules" not in p.parts)
    assert manifest["sources"] == {
        p.relative_to(CONTRACTS).as_posix(): sha256(p.read_bytes()) for p in sources
    }


def test_the_manifest_names_every_artifact_as_it_is(manifest):
    artifacts = sorted(p for p in ABI.glob("*.json") if p.name != "manifest.json")
    assert manifest["artifacts"] == {p.name: sha256(p.read_bytes()) for p in artifacts}


def test_the_manifest_names_the_compiler_of_the_lockfile(manifest):
    packages = json.loads((CONTRACTS / "package-lock.json").read_text())["packages"]
    assert manifest["compiler"]["solc"].startswith(packages["node_modules/solc"]["version"] + "+")
    written = json.dumps(manifest["compiler"], separators=(",", ":"))
    assert manifest["compilerSha256"] == sha256(written.encode())


def test_the_lockfile_names_no_registry():
    assert '"resolved"' not in (CONTRACTS / "package-lock.json").read_text()


@pytest.mark.forge
@pytest.mark.timeout(600)
def test_compiling_again_gives_the_same_bytes(tmp_path):
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("needs Node.js and npm")
    copy = tmp_path / "contracts"
    shutil.copytree(CONTRACTS, copy, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund"], cwd=copy, check=True, capture_output=True, timeout=300
    )
    subprocess.run([node, "compile.mjs", "abi"], cwd=copy, check=True, capture_output=True, timeout=300)
    for committed in ABI.glob("*.json"):
        assert (copy / "abi" / committed.name).read_bytes() == committed.read_bytes(), committed.name
