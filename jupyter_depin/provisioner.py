"""The hook by which any Jupyter program starts a rented kernel: a kernel provisioner.

It translates Jupyter's calls into calls to the runtime and keeps only what those calls need. Most of what looks odd
here answers a trap of the contract:

- `poll` reads memory: it is called ten times a second during a shutdown, and one "dead" too many would cost a second
  rental.
- The lease is given back in `cleanup(restart=False)` alone, for `kill` and `terminate` say `restart=False` even
  during restarts.
- A kernel id under which an earlier process left a kernel running is that kernel's: it is taken up, never rented anew.
- A restart keeps the lease, the tunnel and the local sockets. `quit()` is such a restart.
- A lease that is over must show a *dead* kernel: raising from a relaunch would leave a zombie that looks alive. So a
  relaunch that fails returns normally, `poll` tells the truth, and the restarter is told not to try again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Enum, List, Unicode

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.rental import Rental
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.consumer.taking_up import only_taking_up
from jupyter_depin.errors import DepinError, LeaseEnded, PortInUse, RentalNotFound
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.record import Where

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

_PORT_CHOICES = 5
"""So often are local ports chosen before a launch is given up."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def local_info(info: KernelConnectionInfo) -> LocalInfo:
    """Connection info, as Jupyter writes it, in our own form. Called before every launch."""
    found: dict[str, Any] = dict(info)
    key = found.get("key", b"")

    def text(name: str) -> bytes | None:
        value = found.get(name)
        return value.encode() if isinstance(value, str) else value

    return LocalInfo(
        transport=found["transport"],
        ip=found["ip"],
        ports={channel: found[f"{channel}_port"] for channel in CHANNELS},
        key=key.encode() if isinstance(key, str) else key,
        signature_scheme=found.get("signature_scheme") or "hmac-sha256",
        curve_publickey=text("curve_publickey"),
        curve_secretkey=text("curve_secretkey"),
    )


class DepinProvisioner(LocalProvisioner):
    """Starts kernels on machines that other people rent out. Named `depin-provisioner` in kernel specs.

    Only the connection file and the local ports are LocalProvisioner's; there is no process on this machine.
    """

    home = Unicode("", config=True, help="Folder with keys, journal and config.toml; empty: the default one.")
    tickets = List(
        Unicode(), config=True, help="Providers that may be asked, instead of those in config.toml."
    )
    max_rate_per_hour = Unicode(
        "", config=True, help="The most that an hour may cost, in units of the asset."
    )
    max_spend = Unicode("", config=True, help="The most that one rental may cost, in units of the asset.")

    thrift = Enum(
        ["", "auto", "on", "off"],
        default_value="",
        config=True,
        help="Whether bytes are spared: on for a metered link, off, or auto: as the link needs it.",
    )

    _runtime: Runtime
    """The runtime that keeps the rental: at the interpreter's exit there must not be another one."""
    _rental: Rental | None = None
    _failed = False
    _told = False

    # -- what is asked about the "process"

    @property
    def has_process(self) -> bool:
        """Asserted by the kernel manager right after a launch."""
        return self._rental is not None

    async def poll(self) -> int | None:
        """None while the kernel runs as far as is known. Called all the time; reads memory only."""
        if self._rental is None:
            return 0
        status = self._rental.poll()
        if status is not None and (self._failed or self._rental.over):
            self._let_die()
        return status

    async def wait(self) -> int | None:
        """Wait for the kernel's end. Called by the manager while it shuts down."""
        if self._rental is None:
            return 0
        await self._ask(self._rental.wait_exit)
        return self._rental.poll() if self._rental is not None else 0

    async def send_signal(self, signum: int) -> None:
        """Pass a signal on; 0 asks nothing. Called for interrupts, and before each shutdown."""
        if self._rental is not None and signum:
            self._runtime.soon(self._rental.signal, signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel, not the lease."""
        await self._signal_and_wait(getattr(signal, "SIGKILL", 9))

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel to end, not the lease."""
        await self.send_signal(signal.SIGTERM)

    async def _signal_and_wait(self, signum: int) -> None:
        if self._rental is not None:
            rental = self._rental

            async def deliver() -> None:
                rental.signal(signum)

            await self._ask(deliver)

    async def cleanup(self, restart: bool = False) -> None:
        """Give the lease back, unless this is a restart. Called by the manager after the kernel's end."""
        if not restart and self._rental is not None:
            rental, self._rental = self._rental, None
            await self._ask(rental.settle, EndReason.STOPPED_BY_USER)
            if rental.failure is not None:
                self.log.warning("%s", rental.failure)
        await super().cleanup(restart=restart)

    async def _ask(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        # At the interpreter's exit the runtime has gone, and has ended and settled every rental before.
        with contextlib.suppress(LeaseEnded):
            await self._runtime.call(function, *arguments)

    # -- starting

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Rent, if there is no lease yet, and start a kernel in it. The first failure is raised, for Jupyter shows it."""
        first = self._rental is None
        try:
            if self._rental is None:
                self._runtime = runtime = Runtime.get()
                if await self._taken_up(kwargs):
                    return self.connection_info
                self._rental = await runtime.call(runtime.rent, self.settings(), self.kernel_id)
            await self._launch_on_free_ports(self._rental, cmd, kwargs)
            self._failed = False
        except DepinError as error:
            if first:
                rental, self._rental = self._rental, None
                if rental is not None:
                    await self._runtime.call(rental.settle, EndReason.START_FAILED)
                raise
            self.log.error("%s", error)
            self._failed = True
            self._let_go(EndReason.START_FAILED)
        except BaseException:
            if first and self._rental is not None:
                self._let_go(EndReason.START_FAILED)
                self._rental = None
            raise
        return self.connection_info

    async def post_launch(self, **kwargs: Any) -> None:
        """Ask to be told when Jupyter gives the kernel up: it forgets it then without a `cleanup`."""
        await super().post_launch(**kwargs)
        manager = self.parent
        if not self._told and manager is not None and getattr(manager, "_restarter", None) is not None:
            self._told = True
            manager.add_restart_callback(lambda: self._let_go(EndReason.KERNEL_SHUTDOWN), "dead")

    def _let_go(self, reason: EndReason) -> None:
        """End the lease and don't wait: nobody is there to hear how it went but the journal."""
        if self._rental is not None:
            self._runtime.submit(self._rental.settle, reason)

    async def _taken_up(self, kwargs: dict[str, Any]) -> bool:
        """Whether an earlier process left a kernel running under this id. It goes on with the key that it has."""

        async def take_up() -> tuple[Rental, LocalInfo] | None:
            local = local_info(self.connection_info)
            return await self._runtime.call(self._runtime.take_up, self.settings(), self.kernel_id, local)

        found = await self._on_free_ports(take_up, kwargs)
        if found is None and only_taking_up.get():
            raise RentalNotFound(rental=f"kernel {self.kernel_id}")
        if found is None:
            return False
        self._rental, local = found
        # Jupyter's own type says that a key is text, and its manager hands out bytes.
        info: dict[str, Any] = dict(self.connection_info)
        info |= {"key": local.key, "signature_scheme": local.signature_scheme}
        self.connection_info = cast(KernelConnectionInfo, info)
        return True

    async def _launch_on_free_ports(self, rental: Rental, cmd: list[str], kwargs: dict[str, Any]) -> None:
        async def launch() -> None:
            await self._runtime.call(self._launch, rental, cmd, kwargs)

        await self._on_free_ports(launch, kwargs)

    async def _on_free_ports(self, serve: Callable[[], Awaitable[T]], kwargs: dict[str, Any]) -> T:
        """Serve a kernel, on other ports if somebody took one since they were chosen: a rental takes its time."""
        for _ in range(_PORT_CHOICES - 1):
            try:
                return await serve()
            except PortInUse:
                if not self.ports_cached or self.parent is None:
                    raise
                self._choose_ports(kwargs.get("env") or {})
        return await serve()

    def _choose_ports(self, environment: Mapping[str, str]) -> None:
        manager: Any = self.parent
        cache = LocalPortCache.instance()
        for name in (f"{channel}_port" for channel in CHANNELS):
            before = getattr(manager, name)
            setattr(manager, name, cache.find_available_port(manager.ip))
            cache.return_port(before)
        manager.cleanup_connection_file()
        manager.write_connection_file(jupyter_session=environment.get("JPY_SESSION_NAME", ""))
        self.connection_info = manager.get_connection_info()

    async def _launch(self, rental: Rental, cmd: list[str], kwargs: dict[str, Any]) -> None:
        environment = dict(kwargs.get("env") or os.environ)
        await rental.launch(
            local_info(self.connection_info),
            env=self.settings().filtered(environment),
            argv=None,
            cwd=None,
            where=self._where(environment),
        )

    def _where(self, environment: Mapping[str, str]) -> Where:
        # A server's kernels have its kernels' manager for a parent, and that one knows the server's folder.
        manager: Any = self.parent
        return Where(
            kernel_name=getattr(manager, "kernel_name", ""),
            root=getattr(getattr(manager, "parent", None), "root_dir", ""),
            document=environment.get("JPY_SESSION_NAME", ""),
        )

    def settings(self) -> ConsumerConfig:
        """The renter's configuration with this kernel spec's wishes on top. Raises `DamagedConfig`."""
        return ConsumerConfig.load(
            Path(self.home) if self.home else None,
            tickets=tuple(self.tickets) or None,
            max_rate_per_hour=self.max_rate_per_hour or None,
            max_spend=self.max_spend or None,
            thrift=self.thrift or None,
        )

    def _let_die(self) -> None:
        restarter = getattr(self.parent, "_restarter", None)
        if restarter is not None:
            restarter.restart_limit = 0

    # -- what does not apply to a kernel that is elsewhere

    def resolve_path(self, path_str: str) -> str | None:
        """The kernel's files are not on this machine."""
        return None

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Half of it is for the polite way; a far kernel needs its round trips."""
        return max(recommended, 10.0)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What a manager may store about the kernel: the rental's name, and the connection info as text."""
        info: dict[str, Any] = await super().get_provisioner_info()
        info.pop("pid", None)
        info.pop("pgid", None)
        info.pop("ip", None)
        if self._rental is not None:
            info["rental"] = self._rental.channel_id.hex()
        return info


class LoopbackProvisioner(DepinProvisioner):
    """Makes every kernel a rented one from an agent on this machine: real transport, in-memory ledger, nothing to set up.

    `JUPYTER_DEFAULT_PROVISIONER_NAME=depin-loopback` points any Jupyter program here. The agent trusts this process and
    so runs the kernel spec's own command.
    """

    def settings(self) -> ConsumerConfig:
        """One fixed configuration: the process's own agent."""
        return ConsumerConfig(home=Path(), loopback=True, max_spend="100000")

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """The same, but a command that is not there is told as a local kernel tells it: programs rely on that."""
        environment = kwargs.get("env") or os.environ
        if shutil.which(cmd[0], path=environment.get("PATH", os.defpath)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), cmd[0])
        return await super().launch_kernel(cmd, **kwargs)

    async def _launch(self, rental: Rental, cmd: list[str], kwargs: dict[str, Any]) -> None:
        environment = dict(kwargs.get("env") or os.environ)
        environment.pop("JPY_PARENT_PID", None)
        argv = tuple(arg.replace(self._connection_file(), "{connection_file}") for arg in cmd)
        self.cwd = kwargs.get("cwd") or os.getcwd()
        await rental.launch(local_info(self.connection_info), env=environment, argv=argv, cwd=str(self.cwd))

    def _connection_file(self) -> str:
        return os.path.realpath(getattr(self.parent, "connection_file", "") or "\0")

    def resolve_path(self, path_str: str) -> str | None:
        """The kernel shares this machine's files."""
        found: str | None = LocalProvisioner.resolve_path(self, path_str)
        return found

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """The kernel is near."""
        return recommended
