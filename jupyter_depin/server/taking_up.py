"""A Jupyter server that was killed comes back with its rented kernels: same ids, same notebooks, same bill.

Each kernel goes in by the front door, `start_kernel` with its old id: the provisioner takes up what runs under that id
instead of renting. Then its session is made anew, so that a browser finds both. The server answers meanwhile, however
late its network is; only a notebook whose kernel is on its way waits for it.

Rejected: a persistent session store (`SessionManager.database_filepath`). It is off by default, drops the rows of
kernels that are not there yet, and knows nothing of keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.utils import ensure_async
from jupyter_server.serverapp import ServerApp

from jupyter_depin.drivers.clock import unix_ns
from jupyter_depin.errors import ConnectionLost, DepinError
from jupyter_depin.protocol.money import NS_PER_SECOND

if TYPE_CHECKING:
    from jupyter_depin.consumer.config import ConsumerConfig
    from jupyter_depin.protocol.record import RunningKernel

log = logging.getLogger(__name__)

_PROVISIONER = "depin-provisioner"
_CONNECT_S = 15
_RETRY_S = (5, 10, 20, 40, 60)
"""Pauses between attempts; the last is repeated while the rental is kept."""
_DOOR_S = 40
"""The longest that a browser waits for the kernel of its notebook: to connect, to ask the ledger and the provider."""


async def put_back(serverapp: ServerApp) -> None:
    """Take up every rental that an earlier server of this folder left running. Called when the server starts.

    Returns when each is put back, over, or no longer kept.
    """
    manager: Any = serverapp.kernel_manager
    if serverapp.gateway_config.gateway_enabled:
        # Its kernels are not started here.
        return
    spec_manager: Any = serverapp.kernel_spec_manager
    with _Door.before(serverapp.session_manager) as door:
        found: list[tuple[ConsumerConfig, RunningKernel]] = []
        for name, spec in (await ensure_async(spec_manager.get_all_specs())).items():
            try:
                if _is_ours(spec["spec"], manager):
                    settings = _settings(serverapp, name)
                    found += [(settings, each) for each in _left_behind(settings, manager.root_dir, name)]
            except Exception as error:
                _report("rented kernels of the kernel spec %s cannot be taken up: %s", name, error)
        door.expect(_api_path(each.kernel.where.document, manager.root_dir) for _, each in found)
        await asyncio.gather(*(_keep_trying(serverapp, door, *each) for each in found))


class _Door:
    """Holds a browser's wish for a kernel back while the one of its notebook is put back: else it would rent another.

    A server asks `session_exists` before it starts a kernel for a notebook; nothing else waits.
    """

    def __init__(self, sessions: Any) -> None:
        self._ask = sessions.session_exists
        self._known = asyncio.Event()
        self._awaited: dict[str, asyncio.Event] = {}

    @classmethod
    @contextlib.contextmanager
    def before(cls, sessions: Any) -> Iterator[_Door]:
        """A door in front of a server's sessions, which is gone afterwards."""
        door = cls(sessions)
        sessions.session_exists = door._session_exists
        try:
            yield door
        finally:
            del sessions.session_exists
            door.expect(())
            for path in door._awaited:
                door.open(path)

    def expect(self, paths: Iterable[str]) -> None:
        """It is known whose kernels are put back. Until then every notebook might be one."""
        for path in paths:
            self._awaited.setdefault(path, asyncio.Event())
        self._known.set()

    def open(self, path: str) -> None:
        """A notebook's kernel is there, or not to be had soon."""
        self._awaited[path].set()

    async def _session_exists(self, path: str) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DOOR_S):
                await self._known.wait()
                if path in self._awaited:
                    await self._awaited[path].wait()
        exists: bool = await ensure_async(self._ask(path))
        return exists


def _is_ours(spec: dict[str, Any], kernels: Any) -> bool:
    """Whether a kernel spec's kernels are rented ones."""
    named = (spec.get("metadata") or {}).get("kernel_provisioner") or {}
    default = KernelProvisionerFactory.instance(parent=kernels).default_provisioner_name
    return bool(named.get("provisioner_name", default) == _PROVISIONER)


def _settings(serverapp: ServerApp, kernel_name: str) -> ConsumerConfig:
    """What a kernel spec's own provisioner would rent with: what is connected now must be what it finds.

    The server's configuration and the kernel spec have their say in it, as in every start of a kernel.
    """
    specs: Any = serverapp.kernel_spec_manager
    kernels: Any = serverapp.kernel_manager
    factory: Any = KernelProvisionerFactory.instance(parent=kernels)
    spec = specs.get_kernel_spec(kernel_name)
    settings: ConsumerConfig = factory.create_provisioner_instance("", spec, parent=kernels).settings()
    return settings


def _left_behind(settings: ConsumerConfig, root: str, kernel_name: str) -> list[RunningKernel]:
    if not settings.journal.exists():
        return []
    from jupyter_depin.journal import Journal

    with Journal(settings.journal) as journal:
        running = journal.running()
    return [
        each
        for each in running
        if not each.held
        and each.kernel.where.kernel_name == kernel_name
        and _same_folder(each.kernel.where.root, root)
    ]


def _same_folder(one: str, other: str) -> bool:
    return bool(one) and os.path.realpath(one) == os.path.realpath(other)


def _kept_until_ns(settings: ConsumerConfig, running: RunningKernel) -> int:
    """Until when a rental that nobody holds is kept (Unix ns); 0 if somebody does, or if it is over."""
    from jupyter_depin.consumer.taking_up import kept_until_ns
    from jupyter_depin.journal import Journal

    with Journal(settings.journal) as journal:
        return kept_until_ns(running.lease, journal, settings.keep_s) or 0


async def _keep_trying(
    serverapp: ServerApp, door: _Door, settings: ConsumerConfig, running: RunningKernel
) -> None:
    """Put a kernel back, and again while it is kept: a server may be up before its network is."""
    rental, kernels = running.lease.channel_id.hex(), serverapp.kernel_manager
    path = _api_path(running.kernel.where.document, kernels.root_dir)
    try:
        # Each attempt begins the time anew for whoever comes next, but not for this one.
        until_ns = _kept_until_ns(settings, running)
        for pause in itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1])):
            try:
                await _put_back(serverapp, settings, running, path)
                return
            except DepinError as error:
                door.open(path)
                if not error.retryable or unix_ns() + pause * NS_PER_SECOND > until_ns:
                    raise
                log.info("rental=%s is tried again in %d s: %s", rental, pause, error)
            await asyncio.sleep(pause)
            if not _kept_until_ns(settings, running):
                return
    except Exception as error:
        _report("rental=%s was not taken up: %s", rental, error)
    finally:
        door.open(path)


async def _put_back(
    serverapp: ServerApp, settings: ConsumerConfig, running: RunningKernel, path: str
) -> None:
    kernel_id, where = running.lease.kernel_id, running.kernel.where
    rental = running.lease.channel_id.hex()
    kernels: Any = serverapp.kernel_manager
    sessions: Any = serverapp.session_manager
    contents: Any = serverapp.contents_manager
    name = path.rpartition("/")[2]
    from jupyter_depin.consumer.taking_up import only_taking_up

    if await _is_over(settings, running.lease.channel_id):
        return
    present = [each for each in await ensure_async(sessions.list_sessions()) if path and each["path"] == path]
    if any(each["kernel"]["id"] != kernel_id for each in present):
        log.warning("rental=%s is left to `jupyter depin attach`: %s has another kernel", rental, path)
        return
    # Of this task and those that it starts.
    only_taking_up.set(True)
    if kernel_id not in kernels:
        await ensure_async(
            kernels.start_kernel(
                kernel_id=kernel_id,
                kernel_name=where.kernel_name,
                path=await ensure_async(contents.get_kernel_path(path=path)),
                env=sessions.get_kernel_env(path, name),
            )
        )
    if path and not present:
        await ensure_async(
            sessions.create_session(
                path=path,
                name=name,
                type="notebook" if path.endswith(".ipynb") else "console",
                kernel_name=where.kernel_name,
                kernel_id=kernel_id,
            )
        )
    log.info("rental=%s goes on as kernel %s", rental, kernel_id)


async def _is_over(settings: ConsumerConfig, channel_id: bytes) -> bool:
    """Connect, and ask whether the ledger has closed a lease. Raises `ConnectionLost` and what `connect` does."""
    from jupyter_depin.consumer.runtime import Runtime

    runtime = Runtime.get()
    asked: Future[bool] = runtime.submit(runtime.ended, settings, channel_id)
    # What is slow goes on connecting, and the next attempt finds it connected.
    answer = asyncio.wrap_future(asked)
    await asyncio.wait((answer,), timeout=_CONNECT_S)
    if answer.done():
        return await answer
    answer.add_done_callback(lambda late: late.cancelled() or late.exception())
    raise ConnectionLost(detail=f"the payment network did not answer for {_CONNECT_S} s")


def _api_path(document: str, root: str) -> str:
    """A document's path as the server's interface names it: below its folder, with slashes."""
    if not os.path.isabs(document):
        return document
    try:
        return Path(os.path.realpath(document)).relative_to(os.path.realpath(root)).as_posix()
    except ValueError:
        return ""


def _report(text: str, what: object, error: Exception) -> None:
    """The server must come up whatever becomes of a rental. Only an error that nobody foresaw has a traceback."""
    log.warning(text, what, error, exc_info=None if isinstance(error, DepinError) else error)
