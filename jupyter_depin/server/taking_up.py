"""A Jupyter server that was killed comes back with its rented kernels: same ids, same notebooks, same bill.

Each kernel goes in by the front door, `start_kernel` with its old id: the provisioner takes up what runs under that id
instead of renting. Then its session is made anew, so that a browser finds both.

Rejected: a persistent session store (`SessionManager.database_filepath`). It is off by default, drops the rows of
kernels that are not there yet, and knows nothing of keys.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.utils import ensure_async
from jupyter_server.serverapp import ServerApp

from jupyter_depin.errors import ConnectionLost, DepinError

if TYPE_CHECKING:
    from jupyter_depin.consumer.config import ConsumerConfig
    from jupyter_depin.protocol.record import RunningKernel

log = logging.getLogger(__name__)

_PROVISIONER = "depin-provisioner"
_CONNECT_S = 15


async def put_back(serverapp: ServerApp) -> None:
    """Take up every rental that an earlier server of this folder left running. Called when the server starts."""
    manager: Any = serverapp.kernel_manager
    if serverapp.gateway_config.gateway_enabled:
        # Its kernels are not started here.
        return
    spec_manager: Any = serverapp.kernel_spec_manager
    specs = await ensure_async(spec_manager.get_all_specs())
    for home in _homes(specs):
        try:
            found = [
                each
                for each in _left_behind(home, manager.root_dir)
                if each.kernel.where.kernel_name in specs
            ]
            found = _prepared(found, lambda each: _settings(serverapp, each.kernel.where.kernel_name))
        except Exception as error:
            _report("rented kernels in %s cannot be taken up: %s", home, error)
            continue
        await asyncio.gather(*(_put_back(serverapp, each) for each in found))


def _homes(specs: dict[str, Any]) -> list[Path]:
    """The folders in which this server's rented kernels have their journals."""
    from jupyter_depin.consumer.config import default_home

    homes: dict[Path, None] = {}
    for each in specs.values():
        provisioner = each["spec"].get("metadata", {}).get("kernel_provisioner", {})
        if provisioner.get("provisioner_name") == _PROVISIONER:
            homes[Path(provisioner.get("config", {}).get("home") or default_home())] = None
    return list(homes)


def _left_behind(home: Path, root: str) -> list[RunningKernel]:
    path = home / "journal.sqlite"
    if not path.exists():
        return []
    from jupyter_depin.journal import Journal

    with Journal(path) as journal:
        running = journal.running()
    return [each for each in running if not each.held and _same_folder(each.kernel.where.root, root)]


def _same_folder(one: str, other: str) -> bool:
    return bool(one) and os.path.realpath(one) == os.path.realpath(other)


def _settings(serverapp: ServerApp, kernel_name: str) -> ConsumerConfig:
    """What a kernel spec's own provisioner would rent with: what is connected now must be what it finds."""
    specs: Any = serverapp.kernel_spec_manager
    kernels: Any = serverapp.kernel_manager
    factory: Any = KernelProvisionerFactory.instance(parent=kernels)
    spec = specs.get_kernel_spec(kernel_name)
    settings: ConsumerConfig = factory.create_provisioner_instance("", spec, parent=kernels).settings()
    return settings


def _prepared(
    found: list[RunningKernel], settings: Callable[[RunningKernel], ConsumerConfig]
) -> list[RunningKernel]:
    """Connect, and leave out what is over by now.

    No request is answered meanwhile: a browser that found no kernel now would rent another.
    """
    standing = []
    for each in found:
        from jupyter_depin.consumer.runtime import Runtime

        runtime = Runtime.get()
        try:
            ended = runtime.submit(runtime.ended, settings(each), each.lease.channel_id).result(_CONNECT_S)
        except TimeoutError as error:
            raise ConnectionLost(detail=f"the payment network did not answer for {_CONNECT_S} s") from error
        if not ended:
            standing.append(each)
    return standing


async def _put_back(serverapp: ServerApp, running: RunningKernel) -> None:
    kernel_id, where = running.lease.kernel_id, running.kernel.where
    kernels: Any = serverapp.kernel_manager
    sessions: Any = serverapp.session_manager
    contents: Any = serverapp.contents_manager
    path = _api_path(where.document, kernels.root_dir)
    name = path.rpartition("/")[2]
    from jupyter_depin.consumer.taking_up import only_taking_up

    # Of this task and those that it starts.
    only_taking_up.set(True)
    try:
        if kernel_id not in kernels:
            await ensure_async(
                kernels.start_kernel(
                    kernel_id=kernel_id,
                    kernel_name=where.kernel_name,
                    path=await ensure_async(contents.get_kernel_path(path=path)),
                    env=sessions.get_kernel_env(path, name),
                )
            )
        present = await ensure_async(sessions.list_sessions())
        if path and all(each["kernel"]["id"] != kernel_id for each in present):
            await ensure_async(
                sessions.create_session(
                    path=path,
                    name=name,
                    type="notebook" if path.endswith(".ipynb") else "console",
                    kernel_name=where.kernel_name,
                    kernel_id=kernel_id,
                )
            )
        log.info("rental=%s goes on as kernel %s", running.lease.channel_id.hex(), kernel_id)
    except Exception as error:
        _report("rental=%s was not taken up: %s", running.lease.channel_id.hex(), error)


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
