"""What `jupyter depin demo` says to wrong words, files and ports, before it has started anything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import ExitStack

import nbformat
import pytest

from jupyter_depin.cli import main
from jupyter_depin.demo import parts
from jupyter_depin.errors import KernelStartFailed
from tests.e2e.market import running, sentence

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    yield
    assert running(tmp_path) == []
    assert not list(tmp_path.glob("depin-demo-*"))


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of these cells."""

    def write(*cells: str):
        path = tmp_path / "n.ipynb"
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path
        )
        return path

    return write


@pytest.fixture
def refused(capsys):
    """`jupyter depin demo …` in this very process: nothing may be started. The sentence that it ends with."""

    def run(*words: object) -> str:
        status = main(["demo", *map(str, words)])
        said = capsys.readouterr()
        assert said.out == ""
        return sentence(subprocess.CompletedProcess(words, status, "", said.err))

    return run


def test_a_port_that_is_taken(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--no-browser", "--port", port) == (
            f"Port {port} is already in use on this machine. Stop the program that uses it, or choose another port."
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "many"], "argument --port: 'many' is not a port: 0 to 65535"),
        (["--port", "99999"], "argument --port: '99999' is not a port: 0 to 65535"),
        (["--notebook", "x"], "unrecognized arguments: --notebook x"),
        (["--run"], "argument --run: expected one argument"),
    ],
)
def test_words_that_are_not_understood(capsys, words, said):
    with pytest.raises(SystemExit) as left:
        main(["demo", *words])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)


def test_output_without_a_notebook(refused):
    assert refused("--json") == "The configuration is wrong: --output and --json go with --run."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("", "Notebook does not appear to be JSON: ''..."),
        ("{}", "Notebook could not be converted"),
        ("[]", "it is no notebook"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 1}', ""),
        ("\xff\xfe", ""),
    ],
)
def test_what_is_no_notebook(refused, tmp_path, content, reason):
    path = tmp_path / "n.ipynb"
    if content is not None:
        path.write_text(content, "latin-1")
    said = refused("--run", path)
    assert said.startswith(f"The notebook {path} cannot be used: {reason.partition(':')[0]}"), said
    assert said.endswith(". Name another file.")


def test_an_output_that_cannot_be_written(refused, notebook, tmp_path):
    target = tmp_path / "nowhere" / "out.ipynb"
    assert refused("--run", notebook("1"), "--output", target) == (
        f"The notebook {target} cannot be used: it cannot be written there. Name another file."
    )


def test_a_part_that_does_not_come_up(tmp_path, monkeypatch):
    (tmp_path / "stuck_part.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(parts, "_COME_UP_S", 1)
    with (
        ExitStack() as stack,
        pytest.raises(KernelStartFailed, match="stuck_part did not come up within 1 s"),
    ):
        parts._child(stack, {}, "part", "stuck_part", str(tmp_path))


def test_a_dying_kernel(run_demo, notebook):
    done = run_demo("--run", notebook("import os; os._exit(3)"), "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("jupyter-depin: ")]
    assert said == "jupyter-depin: a cell of n.ipynb failed: Kernel died"
    assert json.loads(done.stdout.splitlines()[-1])["chain_agrees"] is True


def test_no_bubblewrap(run_demo, notebook, demo_environment, tmp_path):
    (tmp_path / "bin").mkdir()
    demo_environment["PATH"] = os.fspath(tmp_path / "bin")
    done = run_demo("--run", notebook("print(6 * 7)"), "--json")
    assert done.returncode == 0, done.stderr
    assert "No bubblewrap here: the kernel runs without a sandbox" in done.stderr
    executed = nbformat.read(tmp_path / "n.executed.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "42\n"
