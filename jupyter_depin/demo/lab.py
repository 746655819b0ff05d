"""The demo with JupyterLab, or with any other Jupyter program: it runs as a child that shuts its kernels down at the end.

Run as a program, this is that child: JupyterLab until its standard input ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jupyter_depin.demo.parts import KERNEL_NAME, Demo, progress, started, stop
from jupyter_depin.errors import ConfigError, PortInUse
from jupyter_depin.receipts import describe


def run_lab(*, port: int | None, browser: bool) -> int:
    """Start JupyterLab on the demo until Ctrl-C; then settle and print the receipts. Called by the command line.

    Without a `port` Lab looks for one itself. Returns Lab's exit status. Raises `PortInUse`.
    """
    if port:
        _check_free(port)
    with started() as demo:
        notebooks = demo.folder / "notebooks"
        notebooks.mkdir()
        (notebooks / "Welcome.ipynb").write_text(json.dumps(_welcome()), "utf-8")
        command = [
            sys.executable, "-m", "jupyter_depin.demo.lab", f"--ServerApp.root_dir={notebooks}",
            *([] if port is None else [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]),
            f"--ServerApp.open_browser={browser}", "--LabApp.default_url=/lab/tree/Welcome.ipynb",
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")
        progress("Starting JupyterLab: choose the kernel “Rented kernel (depin)”. Ctrl-C ends everything.")
        return _until_it_ends(demo, command)


def run_program(command: Sequence[str]) -> int:
    """Start another Jupyter program that sees the rented kernel, such as a hub's own server. As `run_lab` else."""
    with started() as demo:
        return _until_it_ends(demo, command)


def _until_it_ends(demo: Demo, command: Sequence[str]) -> int:
    try:
        program = subprocess.Popen(
            command, env=demo.environment(), stdin=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ConfigError(detail=f"{command[0]} cannot be started ({error.strerror})") from error
    try:
        with _stops_on_signal(program) as asked:
            program.wait()
    finally:
        stop(program, signal.SIGTERM)
    for receipt in demo.receipts():
        print(describe(receipt), flush=True)
    # A program that was asked to end may die of the very signal.
    return int(program.returncode not in ((0, -signal.SIGTERM) if asked else (0,)))


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise ConfigError(
                detail=f"port {port} is reserved for the system; choose one from 1024 on"
            ) from error
        except OSError as error:
            raise PortInUse(port=port) from error


@contextmanager
def _stops_on_signal(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM ask Lab to end, which shuts its kernels down, which settles them.

    What it yields fills with the signals that came.
    """
    asked: list[int] = []

    def ask(signum: int, _: object) -> None:
        asked.append(signum)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    before: list[tuple[int, Callable[..., Any] | int | None]] = [
        (signum, signal.signal(signum, ask)) for signum in (signal.SIGINT, signal.SIGTERM)
    ]
    try:
        yield asked
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)


def _lab_until_input_ends() -> None:
    """JupyterLab as a child of the demo: it shuts its kernels down, and so settles, however the demo ends."""
    from jupyterlab.labapp import main

    def watch() -> None:
        # Not through `sys.stdin`, whose lock the interpreter wants at its end.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    main()


def _welcome() -> dict[str, Any]:
    import nbformat.v4 as v4

    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell(
                "# A kernel on somebody else's machine\n\nThe kernel of this notebook runs, and is paid, from "
                "the moment at which it was opened. The status bar below shows what it costs; a click on it shows more, "
                "and *Stop and settle*. Running a cell after that rents again."
            ),
            v4.new_code_cell(
                "import platform, sys\nprint('Hello from', platform.node(), sys.version.split()[0])"
            ),
            v4.new_code_cell("sum(i * i for i in range(1_000_000))"),
        ],
        metadata={
            "kernelspec": {"name": KERNEL_NAME, "display_name": "Rented kernel (depin)", "language": "python"}
        },
    )
    return dict(notebook)


if __name__ == "__main__":
    _lab_until_input_ends()
