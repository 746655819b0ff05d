"""A kernel as a plain process: no sandbox at all.

For tests, for a renter's own second machine, and for machines without bubblewrap, where the owner lends only to people
they named. Nothing is hidden from such a kernel: it is as able as the user who runs the agent. What is kept is order:
it dies with the agent, it can be paused with its children, and nothing of it runs on after `destroy`, except daemons
that left both its process tree and its session on purpose.

The parent-death signal is set by `setpriv`: a `preexec_fn` would run Python between fork and exec of a threaded process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import anyio
import psutil

from jupyter_depin.errors import KernelStartFailed, MachineTrouble
from provider_kernel.sandbox import KernelCommand, KernelSockets, Limits, in_time, remove
from provider_kernel.sandbox.child import Child
from provider_kernel.sandbox.connection import accepts, write_connection_file
from provider_kernel.sandbox.signals import signal_group
from provider_kernel.sandbox.tail import Tail

INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
)
INHERITED_WINDOWS = (
    "SYSTEMROOT",
    "SYSTEMDRIVE",
    "COMSPEC",
    "PATHEXT",
    "TEMP",
    "TMP",
    "USERPROFILE",
    "APPDATA",
)
"""What the provider's own kernel gets of the agent's environment; also every `LC_…`."""

KERNEL_MAIN = Path(__file__).with_name("kernel_main.py")

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.05


class ProcessSandbox:
    """Starts kernels as plain processes. Made by `choice.choose`."""

    name = "none"

    def check(self) -> None:
        """It always works."""

    def facts(self) -> dict[str, str]:
        """What confines a kernel here, for `doctor` and the offer: nothing."""
        return {"sandbox": "none", "memory": "no limit", "processes": "no limit", "network": "open"}

    def shown(self) -> list[str]:
        """Everything that the agent can read itself; there is no folder that could be kept from a kernel."""
        return []

    async def start(self, command: KernelCommand, *, folder: Path, limits: Limits) -> ProcessKernel:
        """Start a kernel; `limits` cannot be kept here. Raises `KernelStartFailed`.

        With an `argv` it returns once the process runs: foreign kernels may do anything with their connection file, and
        their clients wait themselves. Standard output and error of those stay the agent's own.
        """
        kernel = _spawn(command, folder)
        if command.argv is None:
            try:
                with in_time():
                    await kernel.ready()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await kernel.destroy()
                raise
        return kernel


class ProcessKernel:
    """A kernel that `ProcessSandbox` started."""

    def __init__(self, child: Child, sockets: KernelSockets, tail: Tail, folder: Path) -> None:
        self._child = child
        self._sockets = sockets
        self._tail = tail
        self._folder = folder

    @property
    def sockets(self) -> KernelSockets:
        """The five channels."""
        return self._sockets

    @property
    def pid(self) -> int:
        """The kernel process, which leads its session and process group."""
        return self._child.pid

    async def ready(self) -> None:
        """Return when all five sockets accept connections. Raises `KernelStartFailed` if the process ends first."""
        pause = FIRST_PAUSE_S
        missing = [getattr(self._sockets, name) for name in ("shell", "iopub", "stdin", "control", "hb")]
        while True:
            status = self._child.status()
            if status is not None:
                raise KernelStartFailed(reason=self._tail.last_line() or f"it ended with status {status}")
            missing = [endpoint for endpoint in missing if not accepts(endpoint)]
            if not missing:
                return
            with anyio.move_on_after(pause):
                await self._child.wait()
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    async def wait(self) -> int:
        """Wait for its end and return the exit status (negative: a signal)."""
        return await self._child.wait()

    def interrupt(self, signum: int) -> None:
        """Send a signal to the kernel and the programs that its cells started."""
        if self._child.status() is None:
            signal_group(self._child.pid, signum)

    def pause(self) -> None:
        """SIGSTOP to every process that belongs to it."""
        if sys.platform != "win32":
            self._stop_or_continue_group(signal.SIGSTOP)
            self._signal_strays(signal.SIGSTOP)

    def unpause(self) -> None:
        """SIGCONT to every process that belongs to it; children first, so that none of them misses its parent."""
        if sys.platform != "win32":
            self._signal_strays(signal.SIGCONT)
            self._stop_or_continue_group(signal.SIGCONT)

    def stderr_tail(self) -> str:
        """What it last wrote; empty for a kernel with an `argv` of its own, whose output is the agent's."""
        return self._tail.text()

    async def destroy(self) -> None:
        """Kill it with every process that it left in its tree or session, and remove its folder."""
        with anyio.CancelScope(shield=True):
            # Again until none is found: a process may fork between the look and the blow.
            for _ in range(20):
                strays = self._strays()
                self._child.kill()
                for stray in strays:
                    with contextlib.suppress(psutil.Error):
                        stray.kill()
                await self._child.wait()
                if not strays:
                    break
                await anyio.sleep(FIRST_PAUSE_S)
        self._tail.close()
        self._child.close()
        with anyio.CancelScope(shield=True):
            await remove(self._folder)

    def _stop_or_continue_group(self, signum: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._child.pid, signum)

    def _signal_strays(self, signum: int) -> None:
        for stray in self._strays():
            with contextlib.suppress(psutil.Error):
                stray.send_signal(signum)

    def _strays(self) -> list[psutil.Process]:
        """Its living descendants, and orphans of its session that init has adopted."""
        leader = self._child.pid
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            found = {process.pid: process for process in psutil.Process(leader).children(recursive=True)}
        if sys.platform != "win32":
            for pid in psutil.pids():
                with contextlib.suppress(OSError, psutil.Error):
                    if pid not in found and pid != leader and os.getsid(pid) == leader:
                        found[pid] = psutil.Process(pid)
        return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _spawn(command: KernelCommand, folder: Path) -> ProcessKernel:
    """Start the process. Raises `KernelStartFailed`, and then leaves no folder."""
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, sockets = write_connection_file(command, folder)
        tail = Tail()
        output: int | None = None
        if command.argv is None:
            said, output = os.pipe()
            tail.follow(said)
            stack.callback(tail.close)
        try:
            env = _environment(command)
            process = subprocess.Popen(
                _dying_with_us(_argv(command, path), env),
                env=env,
                cwd=_working_directory(command, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except (OSError, ValueError) as problem:
            raise MachineTrouble(reason=str(problem)) from problem
        finally:
            if output is not None:
                os.close(output)
        stack.pop_all()
    return ProcessKernel(Child(process), sockets, tail, folder)


def _argv(command: KernelCommand, connection_file: Path) -> list[str]:
    if command.argv is None:
        return [sys.executable, str(KERNEL_MAIN), "-f", str(connection_file)]
    return [part.replace("{connection_file}", str(connection_file)) for part in command.argv]


def _dying_with_us(argv: list[str], env: dict[str, str]) -> list[str]:
    """Have the kernel killed when the thread that started it ends, where that can be had. Raises OSError."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return argv
    # Looked up here, for setpriv would only say so on a standard error that nobody reads.
    if shutil.which(argv[0], path=env.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(f"there is no program {argv[0]}")
    return [setpriv, "--pdeathsig", "KILL", "--", *argv]


def _environment(command: KernelCommand) -> dict[str, str]:
    base: dict[str, str] = {}
    if command.argv is None:
        names = INHERITED + INHERITED_WINDOWS if sys.platform == "win32" else INHERITED
        base = {name: value for name, value in os.environ.items() if name in names or name.startswith("LC_")}
    # ipykernel ends itself when its parent is another than this, so it is never the consumer's.
    return base | dict(command.env) | {"JPY_PARENT_PID": str(os.getpid())}


def _working_directory(command: KernelCommand, folder: Path) -> str | None:
    if command.argv is not None:
        return command.cwd
    if command.cwd is not None and Path(command.cwd).is_dir():
        return command.cwd
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return str(home)
