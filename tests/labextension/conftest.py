"""Runs the front end's pure modules in Node.js, where it is at hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "labextension"


@pytest.fixture(scope="session")
def front_end() -> Callable[[str, Any], Any]:
    """Run one check of `run.cjs` on a JSON value."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not on PATH")
    if not (ROOT / "node_modules" / "typescript").is_dir():
        pytest.skip("labextension/node_modules is missing: build the front end once (pip install -e .)")

    def run(check: str, value: Any) -> Any:
        script = Path(__file__).with_name("run.cjs")
        done = subprocess.run(
            [node, str(script), str(ROOT), check], input=json.dumps(value), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def wire() -> Callable[..., dict[str, Any]]:
    """A rental as the server sends it."""

    def make(**changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "id": "ab" * 32,
            "kernel_id": "kernel-1",
            "state": "running",
            "state_age_s": None,
            "reason": None,
            "provider": "0xE57bFE9F44b819898F47BF37E5AF72a0783e1141",
            "node": "cd" * 32,
            "title": "CPU demo",
            "rate_per_hour": "360000",
            "symbol": "DEMO",
            "decimals": 6,
            "served_ns": str(83 * 10**9),
            "spent": "8300",
            "cap": "180000",
            "bytes_up": 0,
            "bytes_down": 0,
            "spared": 0,
            "saving": False,
            "rtt_ms": None,
            "relayed": None,
            "via": None,
            "receipt": None,
        }
        return given | changes

    return make
