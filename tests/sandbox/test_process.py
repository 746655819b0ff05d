"""Kernels with an argv of the consumer's: what other people's suites count on. The rest is in `test_sandbox.py`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import anyio
import pytest

from jupyter_depin.errors import KernelStartFailed
from provider_kernel.sandbox import KernelCommand, Limits
from provider_kernel.sandbox.process import ProcessSandbox

REPORT = """
import json, os, sys
json.dump({"env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv[1:], "parent": os.getppid(),
           "connection": json.load(open(sys.argv[1]))}, open("report.json", "w"))
sys.exit(7)
"""


async def report(tmp_path: Path, **command) -> dict:
    """Run a program that says how it was started and ends with status 7."""
    (tmp_path / "cwd").mkdir()
    argv = (sys.executable, "-c", REPORT, "{connection_file}", "--x={connection_file}")
    kernel = await ProcessSandbox().start(
        KernelCommand(key=b"abc", argv=argv, cwd=str(tmp_path / "cwd"), **command),
        folder=tmp_path / "kernel",
        limits=Limits(),
    )
    with anyio.fail_after(60):
        assert await kernel.wait() == 7
    await kernel.destroy()
    return json.loads((tmp_path / "cwd" / "report.json").read_text())


async def test_its_connection_file_is_filled_in(tmp_path):
    told = await report(tmp_path, env=dict(os.environ))
    file = str(tmp_path / "kernel" / "connection.json")
    assert told["argv"] == [file, f"--x={file}"]
    assert told["connection"] == {
        "shell_port": 1,
        "iopub_port": 2,
        "stdin_port": 3,
        "control_port": 4,
        "hb_port": 5,
        "transport": "ipc",
        "ip": str(tmp_path / "kernel" / "k"),
        "key": "abc",
        "signature_scheme": "hmac-sha256",
    }


async def test_its_environment_is_the_consumers_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_AGENT", "1")
    told = await report(
        tmp_path, env={"ODD": "a=b", "PATH": "/bin", "LC_CTYPE": "C.UTF-8", "JPY_PARENT_PID": "1"}
    )
    # ipykernel ends itself when its parent is another than the one named here.
    assert told["env"] == {
        "ODD": "a=b",
        "PATH": "/bin",
        "LC_CTYPE": "C.UTF-8",
        "JPY_PARENT_PID": str(os.getpid()),
    }
    assert told["parent"] == os.getpid()


async def test_it_runs_in_the_consumers_folder(tmp_path):
    assert (await report(tmp_path))["cwd"] == str(tmp_path / "cwd")


async def test_it_need_not_open_its_sockets(tmp_path):
    command = KernelCommand(key=b"k", argv=("sleep", "3600"), env=dict(os.environ))
    with anyio.fail_after(60):
        kernel = await ProcessSandbox().start(command, folder=tmp_path / "kernel", limits=Limits())
        await kernel.destroy()
        assert await kernel.wait() == -9


@pytest.mark.parametrize(
    "command", [{"argv": ("no-such-program",)}, {"argv": ("true",), "cwd": "/no/such/folder"}]
)
async def test_a_program_that_is_not_there_is_named(tmp_path, command):
    with pytest.raises(KernelStartFailed, match=r"no.such"):
        await ProcessSandbox().start(
            KernelCommand(key=b"k", env=dict(os.environ), **command),
            folder=tmp_path / "kernel",
            limits=Limits(),
        )
    assert not (tmp_path / "kernel").exists()


async def test_the_providers_own_kernel_does_not_get_the_agents_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WALLET_PASSWORD", "secret")
    kernel = await ProcessSandbox().start(
        KernelCommand(key=b"k"), folder=tmp_path / "kernel", limits=Limits()
    )
    given = Path(f"/proc/{kernel.pid}/environ").read_bytes()
    await kernel.destroy()
    assert b"PATH=" in given
    assert b"WALLET_PASSWORD" not in given
