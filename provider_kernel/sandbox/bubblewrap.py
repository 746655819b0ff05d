"""Kernels of strangers: each in namespaces of its own, made by bubblewrap without root.

bubblewrap was chosen over containers because it needs no daemon, no image and no setuid program, and adds milliseconds
to a start. The order of a start matters: bubblewrap is held back (`--block-fd`) until the agent has put it into its
control group and set its limits, so that no line of Python runs without them.

Call `start` from the agent's main thread: `--die-with-parent` follows the thread that spawned.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Container, Mapping
from contextlib import ExitStack
from pathlib import Path

import anyio

from jupyter_depin.errors import MachineTrouble
from provider_kernel.sandbox import (
    KernelCommand,
    Limits,
    cgroup,
    diagnosis,
    foreign_user,
    in_time,
    remove,
    seccomp,
    view,
)
from provider_kernel.sandbox.child import Child
from provider_kernel.sandbox.confined import ConfinedKernel
from provider_kernel.sandbox.connection import CHANNELS, connection_file, ipc_sockets, socket_paths
from provider_kernel.sandbox.tail import Tail

PASSED_ENVIRONMENT = re.compile(r"DEPIN_\w+|LANG|LC_\w+|TZ|MPL\w*|PYTHONHASHSEED|OMP_NUM_THREADS", re.ASCII)
"""What a consumer may set in a kernel's environment. Nothing here makes a program load or run something else."""

KERNEL_MAIN = Path(__file__).with_name("kernel_main.py")
SHOWN_KERNEL_MAIN = "/run/depin/kernel_main.py"
SHOWN_CONNECTION_FILE = "/run/depin/connection.json"
NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
OPEN_FILES = (4096, 16384)
BACKLOG = 64
TRIAL_S = 10


class BubblewrapSandbox:
    """Starts kernels in sandboxes. Made by `choice.choose`, one for the agent's life."""

    name = "bubblewrap"

    def __init__(self, program: str = "bwrap") -> None:
        self._program = program
        self._home: cgroup.CgroupHome | None = None
        self._looked_for_home = False
        self._users: int | None = None

    def check(self) -> None:
        """Start a Python in a sandbox and let it end. Raises `SandboxMissing` with the reason and the fix."""
        if sys.platform != "linux":
            raise diagnosis.not_linux(platform.system())
        program = self._find()
        found = self._version()
        if found < diagnosis.OLDEST:
            raise diagnosis.too_old(found)
        if not seccomp.supported():
            raise diagnosis.no_filter(platform.machine())
        if foreign_user.needed() and (programs := foreign_user.missing_programs()):
            raise diagnosis.no_util_linux(programs)
        try:
            with ExitStack() as stack:
                theirs = Inherited(stack)
                words = theirs.arguments(Limits(), {}, {}, self._foreign_users())
                inside = [sys.executable, "-I", "-S", "-c", ""]
                trial = subprocess.run(
                    [program, "--args", str(theirs.content(words)), "--", *_as_renter(inside)],
                    pass_fds=theirs.descriptors,
                    capture_output=True,
                    text=True,
                    timeout=TRIAL_S,
                    check=False,
                )
        except view.PrivateEnvironment as problem:
            raise diagnosis.private_environment(str(problem)) from problem
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise diagnosis.failed_trial(str(problem), program, diagnosis.read_sysctls()) from problem
        if trial.returncode:
            raise diagnosis.failed_trial(trial.stderr, program, diagnosis.read_sysctls())

    def facts(self) -> dict[str, str]:
        """What is in force on this machine, for `doctor` and the offer. Call it where `check` passes."""
        home = self._cgroup_home()
        grouped = home.folders if home else {}
        group = f"control group v{home.version}" if home else ""
        return {
            "sandbox": "bubblewrap " + ".".join(map(str, self._version())),
            "memory": group if "memory" in grouped else "private memory per process (RLIMIT_DATA)",
            "processes": group
            if "pids" in grouped
            else "RLIMIT_NPROC"
            if _counts_processes()
            else "no limit",
            "processor": group if "cpu" in grouped else "no limit",
            "pause": f"{group} freezer" if home and home.can_freeze else "SIGSTOP",
            "network": "none",
            "files": "in memory, sized",
            "system calls": f"filter of {len(seccomp.build_filter()) // 8} instructions",
            "runs as": "a user that nobody is" if foreign_user.needed() else "the agent's user",
        }

    def shown(self) -> list[str]:
        """The machine's folders that every kernel can read. Where `check` passes."""
        return view.shown()

    async def start(self, command: KernelCommand, *, folder: Path, limits: Limits) -> ConfinedKernel:
        """Start a kernel; `command.argv` and `command.cwd` are ignored. Raises `KernelStartFailed`, `SandboxMissing`."""
        program = self._find()
        home = self._cgroup_home()
        kernel: ConfinedKernel | None = None
        with ExitStack() as ours:
            try:
                kernel, ready, release = _spawn(program, command, folder, limits, self._foreign_users(), ours)
                with in_time():
                    first = await kernel.first_process()
                    if home is not None:
                        kernel.group = home.make()
                        kernel.group.limit(limits)
                        kernel.group.add(first)
                    _limit_each_process(first, limits, home.folders if home else {})
                    os.write(release, b"1")
                    await kernel.ready(ready)
            except BaseException as problem:
                with anyio.CancelScope(shield=True):
                    if kernel is not None:
                        await kernel.destroy()
                    await remove(folder)
                if isinstance(problem, OSError | ValueError):
                    raise MachineTrouble(reason=str(problem)) from problem
                raise
        return kernel

    def _find(self) -> str:
        """The program's path. Raises `SandboxMissing`."""
        program = shutil.which(self._program)
        if program is None:
            raise diagnosis.not_installed()
        return program

    def _version(self) -> tuple[int, ...]:
        told = subprocess.run(
            [self._find(), "--version"], capture_output=True, text=True, timeout=TRIAL_S, check=False
        )
        return diagnosis.version(told.stdout)

    def _foreign_users(self) -> int | None:
        """The user namespace of a root agent's kernels, made when it is first needed. Raises OSError."""
        if self._users is None and foreign_user.needed():
            self._users = foreign_user.make_namespace(view.USER_ID)
        return self._users

    def _cgroup_home(self) -> cgroup.CgroupHome | None:
        """Looked for when it is first needed, because with version 2 that moves the agent."""
        if not self._looked_for_home:
            self._looked_for_home = True
            self._home = cgroup.find()
            if self._home is not None:
                self._home.sweep()
        return self._home


class Inherited:
    """The descriptors that bubblewrap gets. The stack closes ours when it runs."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.descriptors: list[int] = []

    def own(self, descriptor: int) -> int:
        """Take over a descriptor."""
        self._stack.callback(os.close, descriptor)
        self.descriptors.append(descriptor)
        return descriptor

    def content(self, content: bytes | list[str]) -> int:
        """A file in memory; a list of words becomes what `--args` reads. Raises ValueError for a word with a zero byte."""
        if isinstance(content, list):
            if any("\0" in word for word in content):
                # Whatever follows it would be read as further arguments.
                raise ValueError("a zero byte in an argument")
            content = b"\0".join(os.fsencode(word) for word in content)
        descriptor = self.own(os.memfd_create("depin"))
        view_of_rest = memoryview(content)
        while view_of_rest:
            view_of_rest = view_of_rest[os.write(descriptor, view_of_rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def listener(self, path: Path) -> int:
        """A listening Unix socket."""
        listening = socket.socket(socket.AF_UNIX)
        descriptor = self.own(listening.detach())
        with socket.socket(fileno=os.dup(descriptor)) as same:
            same.bind(str(path))
            same.listen(BACKLOG)
        return descriptor

    def arguments(
        self, limits: Limits, files: dict[str, bytes], environment: dict[str, str], users: int | None
    ) -> list[str]:
        """The arguments for a kernel's namespaces, its view and its filter of system calls.

        `users` is the user namespace that a root agent made; an ordinary agent has bubblewrap make one.
        """
        words = [*NAMESPACES, "--die-with-parent", "--new-session", "--hostname", "kernel", "--clearenv"]
        words += ["--cap-drop", "ALL"]
        if users is None:
            words += [
                "--unshare-user",
                "--disable-userns",
                "--uid",
                str(view.USER_ID),
                "--gid",
                str(view.USER_ID),
            ]
        else:
            words += ["--userns", str(self.own(os.dup(users)))]
            words += [word for right in foreign_user.RIGHTS for word in ("--cap-add", right)]
        words += view.arguments(limits, files=files, environment=environment, hand_over=self.content)
        return [*words, "--seccomp", str(self.content(seccomp.build_filter()))]


def _as_renter(argv: list[str]) -> list[str]:
    """What bubblewrap runs, to run `argv` as the renter: it has changed the user itself, except for a root agent."""
    return [*foreign_user.becoming(view.USER_ID), *argv] if foreign_user.needed() else argv


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a consumer's environment that a sandboxed kernel gets."""
    return {
        name: value
        for name, value in environment.items()
        if PASSED_ENVIRONMENT.fullmatch(name) and "\0" not in value
    }


def _spawn(
    program: str, command: KernelCommand, folder: Path, limits: Limits, users: int | None, ours: ExitStack
) -> tuple[ConfinedKernel, socket.socket, int]:
    """Spawn a bubblewrap that is held back. Returns also where its first message arrives and where to let it go."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # `kept`: what the kernel owns from the moment when there is one.
    with ExitStack() as stack, ExitStack() as kept:
        theirs = Inherited(stack)
        ready, their_ready = socket.socketpair(socket.AF_UNIX)
        ours.enter_context(ready)
        ready.setblocking(False)
        # The machine's kernel then vouches for the sender's pid.
        ready.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ready_word = f"--ready={theirs.own(their_ready.detach())}"
        held, release = os.pipe()
        theirs.own(held)
        ours.callback(os.close, release)
        status, their_status = os.pipe()
        kept.callback(os.close, status)
        theirs.own(their_status)
        said, their_stderr = os.pipe()
        stack.callback(os.close, their_stderr)
        tail = Tail()
        tail.follow(said)
        kept.callback(tail.close)

        listening = [
            f"--{channel}={theirs.listener(path)}"
            for channel, path in zip(CHANNELS, socket_paths(folder), strict=True)
        ]
        files = {
            SHOWN_KERNEL_MAIN: KERNEL_MAIN.read_bytes(),
            SHOWN_CONNECTION_FILE: connection_file(command, transport="ipc", ip="/tmp/.depin"),
        }
        words = theirs.arguments(limits, files, passed_environment(command.env), users)
        words += ["--block-fd", str(held), "--json-status-fd", str(their_status)]
        inside = [sys.executable, "-P", SHOWN_KERNEL_MAIN, ready_word, *listening]
        process = subprocess.Popen(
            [program, "--args", str(theirs.content(words)), "--", *_as_renter(inside)],
            pass_fds=theirs.descriptors,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=their_stderr,
            stderr=their_stderr,
            # The Ctrl-C at the agent's terminal is for the agent.
            start_new_session=True,
        )
        kept.pop_all()
        return ConfinedKernel(Child(process), ipc_sockets(folder), tail, folder, status), ready, release


def _limit_each_process(pid: int, limits: Limits, grouped: Container[str]) -> None:
    """Set the limits of the sandbox's first process, which all others inherit. Raises OSError."""
    wanted = {
        # What the kernel held in memory stays off the disk.
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: OPEN_FILES,
    }
    if limits.memory and "memory" not in grouped:
        wanted[resource.RLIMIT_DATA] = (limits.memory, limits.memory)
    if limits.pids and "pids" not in grouped and _counts_processes():
        wanted[resource.RLIMIT_NPROC] = (limits.pids, limits.pids)
    # Where memory runs out, the owner's own programs are not to die first.
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    for kind, (soft, hard) in wanted.items():
        _, highest = resource.prlimit(pid, kind)
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), min(hard, highest)
        resource.prlimit(pid, kind, (soft, hard))


def _counts_processes() -> bool:
    """Whether RLIMIT_NPROC counts a sandbox's own processes: by user namespace since Linux 5.14, and never for root."""
    return os.geteuid() != 0 and diagnosis.version(platform.release()) >= (5, 14)
