"""The demo without Lab: one notebook through a rented kernel, and its receipt."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.demo.parts import KERNEL_NAME, Demo, progress, started
from jupyter_depin.errors import BadNotebook, DemoBroken
from jupyter_depin.protocol.status import RentalStatus
from jupyter_depin.receipts import describe

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_LOOK_S = 1.0
"""How often it is looked whether the demo's parts still run."""


def run_notebook(path: Path, *, output: Path | None, as_json: bool) -> int:
    """Execute a notebook through a rented kernel, write the executed copy, settle, print the receipt.

    Called by the command line. Returns 0, or 1 if a cell failed, something could not be written or the chain disagrees.
    Raises `BadNotebook`, `DemoBroken`.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = _read(path)
    target = output or path.with_name(f"{path.stem}.executed.ipynb")
    if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise BadNotebook(path=target, reason="it cannot be written there")
    failed = False
    with started() as demo:
        os.environ.update(demo.environment())
        folder = str(path.resolve().parent)
        client = NotebookClient(
            notebook, kernel_name=KERNEL_NAME, resources={"metadata": {"path": folder}}, timeout=None
        )
        # A kernel that cannot be had is told below; jupyter_client would log its traceback before.
        logging.getLogger("traitlets").setLevel(logging.CRITICAL)
        progress(f"Running {path.name} on the rented kernel …")
        try:
            with _told():
                _watched(client.execute, demo)
        except KeyboardInterrupt:
            failed = True
            progress("Stopped.")
        except (CellExecutionError, DeadKernelError, RuntimeError) as error:
            # A kernel that dies while it starts is jupyter_client's RuntimeError.
            failed = True
            progress(f"jupyter-depin: a cell of {path.name} failed: {_last_line(error)}")
        finally:
            written = _wrote(notebook, target)
        receipts = demo.receipts()
        if not receipts:
            raise DemoBroken(part=demo.lost() or "rental")
        receipt = receipts[0]
        print(json.dumps(receipt.to_json()) if as_json else describe(receipt), flush=True)
    return 1 if failed or not written or not receipt.chain_agrees else 0


def _read(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (TypeError, AttributeError) as error:
        raise BadNotebook(path=path, reason="it is no notebook") from error
    except (OSError, ValueError, nbformat.ValidationError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise BadNotebook(path=path, reason=told) from error


def _wrote(notebook: Any, target: Path) -> bool:
    """Write the executed copy; whatever comes of it, the receipt is still due."""
    import nbformat

    try:
        nbformat.write(notebook, target)
    except OSError as error:
        progress(f"jupyter-depin: {BadNotebook(path=target, reason=error.strerror or error)}")
        return False
    progress(f"Wrote {target}.")
    return True


@contextmanager
def _told() -> Iterator[None]:
    """Say it when the link to the provider goes and comes."""
    states: dict[str, str] = {}

    def changed(status: RentalStatus) -> None:
        before, states[status.id] = states.get(status.id), status.state
        if status.state == "reconnecting" and before != "reconnecting":
            progress("The link to the provider is down; the kernel goes on, and its output is kept.")
        elif before == "reconnecting" and status.state == "running":
            progress("The link is back.")

    stop = Runtime.get().subscribe(changed)
    try:
        yield
    finally:
        stop()


def _watched(execute: Callable[[], object], demo: Demo) -> None:
    """Execute on a thread of its own, where Ctrl-C does not tear nbclient apart; it ends the rentals instead.

    So does the end of one of the demo's parts. Once the rentals are settled and the execution has noticed, raises
    `KeyboardInterrupt` or `DemoBroken`; else, what the execution raises.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(execute)
        try:
            while not running.done() and not demo.lost():
                wait([running], _LOOK_S)
        except KeyboardInterrupt:
            _settle()
            running.exception()
            raise
        if not running.done():
            _settle()
            running.exception()
            raise DemoBroken(part=demo.lost())
        running.result()


def _settle() -> None:
    runtime = Runtime.get()
    for status in runtime.snapshot():
        asyncio.run(runtime.settle(status.id))


def _last_line(error: Exception) -> str:
    lines = [line for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
