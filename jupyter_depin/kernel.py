"""`python -m jupyter_depin.kernel -f CONNECTION_FILE`: a rented kernel for clients that ignore provisioners.

VS Code and others write a connection file and run the kernel spec's `argv`. This is that `argv`: it rents, binds the
ports that the file names, and stays in the foreground like a kernel does: SIGINT interrupts, SIGTERM settles and ends,
and the program ends when the kernel does. When the client that started it dies, it settles too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from anyio.abc import TaskStatus

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import DamagedConfig, DepinError, KernelStartFailed
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.provisioner import local_info

_CLIENT_S = 1.0
"""How often it is looked whether the client still lives."""
_SETTLE_S = 20
"""How long a start that was given up may take to find out whether there is something to settle."""


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
        return asyncio.run(_serve(options, psutil.Process().parent()))
    except DepinError as error:
        print(f"jupyter-depin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _serve(options: argparse.Namespace, client: psutil.Process | None) -> int:
    config = ConsumerConfig.load(options.home, loopback=options.loopback or None, tickets=options.ticket)
    kernel = _Kernel(config, _read(options.connection_file))
    failure: DepinError | None = None
    async with anyio.create_task_group() as tasks:
        # Before anything is rented: a start takes its time, and whoever gives it up must not pay for it.
        await tasks.start(_obey_signals, kernel, tasks.cancel_scope)
        tasks.start_soon(_watch_client, client, tasks.cancel_scope)
        try:
            await kernel.run()
        except DepinError as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return kernel.status


class _Kernel:
    """The one kernel of this program, from the offer to the receipt."""

    def __init__(self, config: ConsumerConfig, info: LocalInfo) -> None:
        self._config, self._info = config, info
        self._runtime = Runtime.get()
        self._rental: Rental | None = None
        self._started = False
        self.status = 0

    async def run(self) -> None:
        """Rent, start and wait for its end. Settles, however it ends."""
        try:
            self._rental = await self._runtime.call(self._runtime.rent, self._config, uuid.uuid4().hex)
        except asyncio.CancelledError:
            # A deposit may have been locked just now.
            with anyio.move_on_after(_SETTLE_S, shield=True), contextlib.suppress(DepinError):
                await self._runtime.call(self._runtime.recover, self._config)
            raise
        try:
            await self._runtime.call(self._launch, self._rental)
            self._started = True
            self.status = await self._runtime.call(self._rental.wait_exit)
        finally:
            with anyio.CancelScope(shield=True):
                await self._runtime.call(self._rental.settle, EndReason.KERNEL_SHUTDOWN)

    def interrupt(self, signum: int) -> bool:
        """Pass a signal on; False if there is no kernel yet."""
        if self._started and self._rental is not None:
            self._runtime.soon(self._rental.signal, signum)
        return self._started

    async def _launch(self, rental: Rental) -> None:
        await rental.launch(self._info, env=self._config.filtered(os.environ), argv=None, cwd=None)


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


async def _obey_signals(kernel: _Kernel, scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for signum in signals:
            # A kernel that has not started dies of an interrupt, a local one too.
            if signum == signal.SIGTERM or not kernel.interrupt(signum):
                scope.cancel()


async def _watch_client(client: psutil.Process | None, scope: anyio.CancelScope) -> None:
    while client is None or client.is_running():
        await anyio.sleep(_CLIENT_S)
    scope.cancel()


if __name__ == "__main__":
    raise SystemExit(main())
