"""`python -m jupyter_depin.kernel -f CONNECTION_FILE`: a rented kernel for clients that ignore provisioners.

VS Code and others write a connection file and run the kernel spec's `argv`. This is that `argv`: it rents, binds the
ports that the file names, and stays in the foreground like a kernel does: SIGINT interrupts, SIGTERM settles and ends,
and the program ends when the kernel does. When the client that started it dies, it settles too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import DamagedConfig, DepinError, KernelStartFailed
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.provisioner import local_info

_PARENT_S = 1.0
"""How often it is looked whether the client still lives."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until the kernel ends; its exit status, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="jupyter_depin.kernel", description=__doc__)
    parser.add_argument("-f", "--connection-file", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="folder with keys, journal and config.toml")
    parser.add_argument(
        "--ticket", action="append", help="a provider to ask, instead of those in config.toml"
    )
    parser.add_argument(
        "--loopback", action="store_true", help="rent from an agent on this machine, without money"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        return asyncio.run(_serve(options))
    except DepinError as error:
        print(f"jupyter-depin: {error}", file=sys.stderr)
        return 1


async def _serve(options: argparse.Namespace) -> int:
    config = ConsumerConfig.load(options.home, loopback=options.loopback or None, tickets=options.ticket)
    info = _read(options.connection_file)
    runtime = Runtime.get()
    rental = await runtime.call(runtime.rent, config, uuid.uuid4().hex)
    stopped = anyio.Event()
    try:
        await runtime.call(_launch, rental, info, config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey_signals, runtime, rental, stopped)
            tasks.start_soon(_watch_parent, stopped)
            tasks.start_soon(_watch_kernel, runtime, rental, stopped)
            await stopped.wait()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await runtime.call(rental.settle, EndReason.KERNEL_SHUTDOWN)
    return rental.poll() or 0


def _read(path: Path) -> LocalInfo:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        info = local_info(found)  # type: ignore[arg-type]
    except OSError as error:
        raise DamagedConfig(path=path, reason=error.strerror or error) from error
    except KeyError as error:
        raise DamagedConfig(path=path, reason=f"it lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise DamagedConfig(path=path, reason=f"it is no connection file ({error})") from error
    if not all(info.ports.values()):
        raise KernelStartFailed(
            reason=f"{path} names no ports; the client that starts a kernel must choose them"
        )
    return info


async def _launch(rental: Rental, info: LocalInfo, config: ConsumerConfig) -> None:
    await rental.launch(info, env=config.filtered(os.environ), argv=None, cwd=None)


async def _obey_signals(runtime: Runtime, rental: Rental, stopped: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for signum in signals:
            if signum == signal.SIGTERM:
                stopped.set()
            else:
                runtime.soon(rental.signal, signum)


async def _watch_parent(stopped: anyio.Event) -> None:
    parent = psutil.Process().parent()
    while parent is None or parent.is_running():
        await anyio.sleep(_PARENT_S)
    stopped.set()


async def _watch_kernel(runtime: Runtime, rental: Rental, stopped: anyio.Event) -> None:
    await runtime.call(rental.wait_exit)
    stopped.set()


if __name__ == "__main__":
    raise SystemExit(main())
