"""`jupyter depin attach`: what can be taken up, and a rental held on a terminal until Ctrl-C.

It writes an ordinary connection file, so that every client which can join a running kernel joins this one too.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
from anyio.abc import TaskStatus
from jupyter_client.connect import write_connection_file
from jupyter_core.paths import jupyter_runtime_dir

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.consumer.taking_up import named
from jupyter_depin.errors import ConfigError, DepinError, RentalHeld, RentalNotFound
from jupyter_depin.journal import Journal
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.money import format_amount
from jupyter_depin.protocol.record import RunningKernel
from jupyter_depin.protocol.status import RentalStatus
from jupyter_depin.provisioner import local_info
from jupyter_depin.receipts import describe

Say = Callable[[str], None]


def show(config: ConsumerConfig, *, as_json: bool, say: Say) -> None:
    """Name the rentals whose kernels run, and who holds them. Raises `DamagedJournal`, `JournalUnavailable`."""
    found: list[RunningKernel] = []
    if config.journal.exists():
        with Journal(config.journal) as journal:
            found = journal.running()
            for each in found:
                voucher = journal.voucher(each.lease.channel_id)
                paid = voucher.voucher.amount if voucher else 0
                say(json.dumps(_facts(each, paid)) if as_json else _line(each, paid))
    if as_json:
        return
    if any(not each.held for each in found):
        say("`jupyter depin attach RENTAL` takes one up.")
    elif not found:
        say("There is nothing to take up.")


def _facts(running: RunningKernel, paid: int) -> dict[str, Any]:
    lease, where = running.lease, running.kernel.where
    return {
        "rental": lease.channel_id.hex(),
        "kernel_id": lease.kernel_id,
        "title": lease.title,
        "paid": str(paid),
        "symbol": lease.asset.symbol,
        "decimals": lease.asset.decimals,
        "kernel_name": where.kernel_name,
        "document": where.document,
        "held": running.held,
    }


def _line(running: RunningKernel, paid: int) -> str:
    lease, where = running.lease, running.kernel.where
    state = "held by a running program of yours" if running.held else "can be taken up"
    money = f"{format_amount(paid, lease.asset.decimals)} {lease.asset.symbol}"
    words = (lease.channel_id.hex()[:16], lease.title, money, where.document or where.kernel_name, state)
    return "  ".join(word for word in words if word)


async def hold(
    config: ConsumerConfig, name: str, *, file: Path | None, leave: bool, as_json: bool, say: Say
) -> None:
    """Take a rental up and hold it until Ctrl-C or the kernel's end; then settle it, or leave it to the next program.

    `file`: where the connection file goes; it is removed at the end. Raises `RentalNotFound`, `RentalHeld`,
    `NotTakenUp`, `LeaseEnded`, and the `SettlementPending` of a rental that could not be settled at once.
    """
    if not config.journal.exists():
        raise RentalNotFound(rental=name)
    with Journal(config.journal) as journal:
        running = named(journal, name)
    if running.held:
        raise RentalHeld(rental=running.lease.channel_id.hex()[:16])
    held = _Held(config, running, _connection_file(running, file))
    failure: DepinError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_until_told, tasks.cancel_scope)
            try:
                status = await held.take_up()
                told = _facts(running, status.spent) | {"file": str(held.path)}
                say(json.dumps(told) if as_json else _hello(status, held.path, leave))
                await held.kernel_exit()
            except DepinError as error:
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await held.let_go(leave)
    if held.rental is not None:
        failure = failure or held.rental.failure
    if failure is not None:
        raise failure
    if held.rental is not None and held.rental.receipt is not None:
        receipt = held.rental.receipt
        say(json.dumps(receipt.to_json()) if as_json else describe(receipt))


def _connection_file(running: RunningKernel, file: Path | None) -> Path:
    if file is None:
        # A server's own file for this kernel has its id alone.
        return Path(jupyter_runtime_dir()) / f"kernel-{running.lease.kernel_id}-attached.json"
    if file.exists():
        raise ConfigError(detail=f"{file} is there already, and is not overwritten")
    return file


class _Held:
    """The rental in this program's hands, from the taking up to the letting go."""

    def __init__(self, config: ConsumerConfig, running: RunningKernel, path: Path) -> None:
        self._config, self._running, self.path = config, running, path
        self._runtime = Runtime.get()
        self.rental: Rental | None = None

    async def take_up(self) -> RentalStatus:
        await self._runtime.call(self._runtime.prepare, self._config)
        kernel = self._running.kernel
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _, info = write_connection_file(
            str(self.path),
            key=kernel.key,
            signature_scheme=kernel.signature_scheme,
            kernel_name=kernel.where.kernel_name,
        )
        local = local_info(cast(Any, info))
        found = await self._runtime.call(
            self._runtime.take_up, self._config, self._running.lease.kernel_id, local
        )
        if found is None:
            raise RentalNotFound(rental=self._running.lease.channel_id.hex()[:16])
        self.rental = found[0]
        return self.rental.status()

    async def kernel_exit(self) -> None:
        assert self.rental is not None
        await self._runtime.call(self.rental.wait_exit)

    async def let_go(self, leave: bool) -> None:
        self.path.unlink(missing_ok=True)
        if self.rental is not None:
            if leave and self.rental.poll() is None:
                await self._runtime.call(self.rental.leave)
            else:
                await self._runtime.call(self.rental.settle, EndReason.STOPPED_BY_USER)


def _hello(status: RentalStatus, path: Path, leave: bool) -> str:
    end = "lets it go without ending it" if leave else "ends and settles it"
    return f"{status.title} is taken up; Ctrl-C {end}.\nJoin it: jupyter console --existing {path}"


async def _until_told(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
