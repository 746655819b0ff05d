"""What a build of the front end relies on, checked without Node.js."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONT_END = ROOT / "labextension"


def lockfile() -> dict:
    return json.loads((FRONT_END / "package-lock.json").read_text())


def test_the_lockfile_names_no_registry():
    assert "resolved" not in (FRONT_END / "package-lock.json").read_text()


@pytest.mark.parametrize(
    "platform", ["darwin-arm64", "darwin-x64", "linux-x64-gnu", "linux-arm64-gnu", "win32-x64-msvc"]
)
def test_the_bundler_can_be_installed_on(platform):
    """npm leaves out silently what its registry lacked when the lockfile was written."""
    package = lockfile()["packages"][f"node_modules/@rspack/binding-{platform}"]
    assert package["optional"]
    assert package["version"] == lockfile()["packages"]["node_modules/@rspack/core"]["version"]


def test_the_lockfile_belongs_to_the_package():
    package = json.loads((FRONT_END / "package.json").read_text())
    locked = lockfile()["packages"][""]
    assert locked["dependencies"] == package["dependencies"]
    assert locked["devDependencies"] == package["devDependencies"]


def test_the_schema_that_the_browser_listens_to_is_the_one_that_the_server_emits():
    from jupyter_depin.server.extension import RENTAL_SCHEMA

    assert f"'{RENTAL_SCHEMA}'" in (FRONT_END / "src" / "rentals.ts").read_text()


def test_every_wire_field_is_known_to_the_front_end():
    from jupyter_depin.protocol.status import RentalStatus
    from jupyter_depin.server.wire import status_to_json

    status = RentalStatus(
        "ab" * 32, "k", "running", None, "", "", "", 1, "DEMO", 6, 0, 0, 1, 0, 0, None, None, None
    )
    tokens = (FRONT_END / "src" / "tokens.ts").read_text()
    declared = tokens[tokens.index("interface IWireRental") : tokens.index("/** What settlement brought")]
    names = [
        line.split("readonly ")[1].split(":")[0] for line in declared.splitlines() if "readonly " in line
    ]
    assert sorted(names) == sorted(status_to_json(status))
