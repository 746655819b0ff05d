"""The one loop thread per process on which every rental lives, and the door to it.

A blocking kernel manager runs its loop only during calls; a meter on that loop would stand still in between. So links
and meters have a thread of their own, and callers cross over in `Runtime.call`. At the process's end every rental is
settled before the thread goes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import Any, ClassVar, TypeVar

import anyio
from anyio.abc import TaskGroup

from jupyter_depin.consumer.backend import Backend, connect
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.opening import open_lease
from jupyter_depin.consumer.recovery import recover
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.taking_up import of_kernel, over, settled_in, take_up, with_its_key
from jupyter_depin.drivers.loop import new_event_loop
from jupyter_depin.errors import DepinError, LeaseEnded, RentalHeld, RentalNotFound
from jupyter_depin.journal import LeaseRecord
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.reason import SENTENCES
from jupyter_depin.protocol.record import RunningKernel
from jupyter_depin.protocol.status import RentalStatus

log = logging.getLogger(__name__)

T = TypeVar("T")
Listener = Callable[[RentalStatus], None]

_EXIT_S = 50
"""More than twice what a rental waits for its provider and its ledger."""
_RETRY_S = (5, 15, 60, 300, 900)
_ANSWER_S = 15
"""How long the provider of a rental that is taken up may take to say how its kernel stands."""
_KEPT = 50
"""Ended rentals whose last status is still shown."""


class Runtime:
    """The process's rentals. `get()` is the only way to one."""

    _instance: Runtime | None = None
    _guard = threading.Lock()
    _inherited: ClassVar[list[Runtime]] = []

    @classmethod
    def get(cls) -> Runtime:
        """This process's runtime, started if need be (anew in a forked child, which has no threads)."""
        with cls._guard:
            if cls._instance is None or not cls._instance._thread.is_alive():
                cls._instance = cls()
            return cls._instance

    @classmethod
    def forked(cls) -> None:
        """Begin anew in a forked process: the parent's threads and links are not there. Called by the interpreter."""
        cls._guard = threading.Lock()
        inherited, cls._instance = cls._instance, None
        if inherited is not None:
            # Kept untouched: to finalize what it holds would disturb the parent, or wait for threads that are not here.
            cls._inherited.append(inherited)
            for backend in inherited._backends.values():
                backend.disown()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = new_event_loop()
        self._ready = threading.Event()
        self._tasks: TaskGroup
        self._stop: anyio.Event
        self._backends: dict[ConsumerConfig, Backend] = {}
        self._connecting: defaultdict[ConsumerConfig, anyio.Lock]
        self._pending: dict[ConsumerConfig, anyio.Event] = {}
        self._rentals: dict[str, Rental] = {}
        self._opening: list[str] = []
        self._statuses: dict[str, RentalStatus] = {}
        self._listeners: list[Listener] = []
        self._thread = threading.Thread(target=self._run, name="jupyter-depin", daemon=True)
        self._thread.start()
        self._ready.wait()
        # The interpreter ends its thread pools before it calls `atexit`, and name lookups need those; of what is
        # registered here, the last is called first, and the pools register themselves when they are imported.
        importlib.import_module("concurrent.futures.thread")
        getattr(threading, "_register_atexit", atexit.register)(self._at_exit)
        if parent_process() is not None:
            # A worker of multiprocessing ends without the interpreter's own farewell.
            Finalize(None, self._at_exit, exitpriority=0)

    # -- from any thread

    def submit(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> Future[T]:
        """Run an async function on the loop thread. The result is `LeaseEnded` once this program is ending."""
        if not self._thread.is_alive():
            over: Future[T] = Future()
            over.set_exception(LeaseEnded(reason="this program is ending"))
            return over

        async def run() -> T:
            return await function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    async def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """The same, awaited from a loop of one's own. Called by the provisioner and the server's handlers."""
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call something on the loop thread and don't wait."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(function, *arguments)

    def snapshot(self) -> list[RentalStatus]:
        """Every rental of this process, newest last."""
        return list(self._statuses.values())

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Be told of every change, on the loop thread. Returns the way to stop it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def settle(self, rental_id: str) -> RentalStatus:
        """Stop a rental for its user and return how it stands then. Raises `RentalNotFound`."""
        rental = self._rentals.get(rental_id)
        if rental is not None:
            await self.call(rental.settle, EndReason.STOPPED_BY_USER)
        if rental_id not in self._statuses:
            raise RentalNotFound(rental=rental_id)
        return self._statuses[rental_id]

    # -- on the loop thread

    async def rent(self, config: ConsumerConfig, kernel_id: str) -> Rental:
        """Open a lease and take it into keeping. Called through `call`. Raises why it could not be had."""
        backend = await self._backend(config)
        self._opening.append(kernel_id)
        try:
            opened = await open_lease(
                backend.config,
                endpoint=backend.endpoint,
                ledger=backend.ledger,
                wallet=backend.wallet,
                journal=backend.journal,
                purse=backend.purse,
                kernel_id=kernel_id,
            )
        finally:
            self._opening.remove(kernel_id)
            # Whoever was asked before, or failed just now, may have locked a deposit all the same.
            self._look_again(config)
        rental = Rental(
            opened=opened,
            config=backend.config,
            endpoint=backend.endpoint,
            ledger=backend.ledger,
            journal=backend.journal,
            kernel_id=kernel_id,
            on_change=self._changed,
        )
        self._hold(rental, config, backend)
        return rental

    async def prepare(self, config: ConsumerConfig) -> None:
        """Have ready what rentals stand on. Called where one is about to be taken up. Raises what `connect` does."""
        await self._backend(config)

    async def ended(self, config: ConsumerConfig, channel_id: bytes) -> bool:
        """Whether the ledger has closed a lease, which is settled then. Asked before a kernel is put back."""
        over_by_now = await over(channel_id, await self._backend(config))
        if over_by_now:
            self._look_again(config)
        return over_by_now

    async def take_up(
        self, config: ConsumerConfig, kernel_id: str, local: LocalInfo
    ) -> tuple[Rental, LocalInfo] | None:
        """Take up what an earlier process left running under a kernel id. Called through `call`, before renting.

        Returns the rental, and `local` with the key that is the kernel's; None if there is nothing. Raises
        `RentalHeld`, `PortInUse`, `LeaseEnded`, `NotTakenUp`.
        """
        if config.loopback:
            # Its agent has died with the process that started it.
            return None
        backend = await self._backend(config)
        running = of_kernel(backend.journal, kernel_id)
        if running is None or running.lease.channel_id.hex() in self._rentals:
            return None
        return await self._take_up(running, local, config, backend)

    async def _take_up(
        self, running: RunningKernel, local: LocalInfo, config: ConsumerConfig, backend: Backend
    ) -> tuple[Rental, LocalInfo]:
        channel_id = running.lease.channel_id
        if await over(channel_id, backend):
            self._look_again(config)
            raise LeaseEnded(reason=SENTENCES[EndReason.PROVIDER_STOPPED])
        # From here to the claim nothing else of this process has its turn.
        if self._alive(running.lease) or any(channel_id in each.ending for each in self._backends.values()):
            raise RentalHeld(rental=channel_id.hex()[:16])
        local = with_its_key(local, running.kernel)
        rental = take_up(running, local, backend, self._changed)
        self._hold(rental, config, backend)
        await settled_in(rental, _ANSWER_S)
        return rental, local

    def _look_again(self, config: ConsumerConfig) -> None:
        """There is something to be settled."""
        if config in self._pending:
            self._pending[config].set()

    def _hold(self, rental: Rental, config: ConsumerConfig, backend: Backend) -> None:
        self._rentals[rental.channel_id.hex()] = rental
        self._changed(rental)
        self._tasks.start_soon(self._keep, rental, config, backend)

    async def recover(self, config: ConsumerConfig) -> int:
        """Settle what earlier processes left behind; returns how many rentals are still pending."""
        backend = await self._backend(config, recovering=False)
        return await recover(backend, self._changed, self._alive)

    async def _backend(self, config: ConsumerConfig, *, recovering: bool = True) -> Backend:
        async with self._connecting[config]:
            backend = self._backends.get(config)
            if backend is not None and not backend.alive():
                await backend.close()
                backend = None
            if backend is None:
                backend = self._backends[config] = await connect(config)
                if recovering and not config.loopback:
                    self._tasks.start_soon(self._settle_what_is_left, config, backend)
            return backend

    def _alive(self, record: LeaseRecord) -> bool:
        return record.kernel_id in self._opening or record.channel_id.hex() in self._rentals

    async def _settle_what_is_left(self, config: ConsumerConfig, backend: Backend) -> None:
        """Settle what earlier processes left behind, and what this one could not settle at once; never gives up."""
        attempt = 0
        while True:
            pending = self._pending[config] = anyio.Event()
            try:
                left = await recover(backend, self._changed, self._alive, keeping=True)
            except Exception:
                # The journal may be locked or the disk full; living rentals must not suffer for dead ones.
                log.exception("unsettled rentals could not be looked at")
                left = 1
            attempt = attempt + 1 if left else 0
            with anyio.move_on_after(_RETRY_S[min(attempt, len(_RETRY_S)) - 1] if left else None):
                await pending.wait()

    async def _keep(self, rental: Rental, config: ConsumerConfig, backend: Backend) -> None:
        try:
            await rental.run()
        except Exception:
            log.exception("rental=%s failed", rental.channel_id.hex())
        finally:
            self._rentals.pop(rental.channel_id.hex(), None)
            if rental.left:
                self._statuses.pop(rental.channel_id.hex(), None)
            if rental.receipt is None and config in self._pending:
                with contextlib.suppress(DepinError):
                    backend.journal.release(rental.channel_id)
                self._pending[config].set()
            for old in [i for i in self._statuses if i not in self._rentals][:-_KEPT]:
                del self._statuses[old]

    def _changed(self, rental: Rental) -> None:
        status = rental.status()
        self._statuses[status.id] = status
        for listener in tuple(self._listeners):
            listener(status)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._stop, self._connecting = anyio.Event(), defaultdict(anyio.Lock)
        async with anyio.create_task_group() as self._tasks:
            self._ready.set()
            await self._stop.wait()
            async with anyio.create_task_group() as settling:
                for rental in list(self._rentals.values()):
                    settling.start_soon(rental.settle, EndReason.STOPPED_BY_USER)
            self._tasks.cancel_scope.cancel()
        for backend in self._backends.values():
            await backend.close()

    def _at_exit(self) -> None:
        if self._pid == os.getpid() and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_EXIT_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Runtime.forked)


def rentals() -> Runtime:
    """The process's rentals, as the server extension wants them."""
    return Runtime.get()
