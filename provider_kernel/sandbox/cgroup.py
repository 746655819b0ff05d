"""Control groups: the limits of memory, processes and processor time, and the freezer that pauses a kernel.

Groups are made below the agent's own, so that whatever limits the agent limits its kernels as well. Version 2 is used
where the agent's group was handed to it (`Delegate=yes`, or the agent is root) and holds nobody else, for the agent must
move itself into a leaf first. Version 1 is used where its folders can be written. Rejected: asking systemd for a scope
per kernel (half a second, and a bus), and a group at the top of the tree (it would escape the agent's own limits).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil

from provider_kernel.sandbox import Limits

ROOT = Path("/sys/fs/cgroup")
PREFIX = "depin-"
CPU_PERIOD_US = 100_000
V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")
V2_CONTROLLERS = ("memory", "pids", "cpu")

_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One kernel's group. `folders` by controller; in version 2 all are the same folder."""

    version: int
    folders: dict[str, Path]

    def limit(self, limits: Limits) -> None:
        """Write the limits, as far as the controllers are there. Raises OSError."""
        quota = int(limits.cpu * CPU_PERIOD_US)
        if self.version == 2:
            self._write("memory", "memory.max", limits.memory)
            self._write("pids", "pids.max", limits.pids)
            if quota:
                self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
            if limits.memory:
                # All of the kernel dies, not one child of it; and nothing of it reaches the disk.
                self._write("memory", "memory.oom.group", 1)
                self._write_if_there("memory", "memory.swap.max", "0")
        else:
            self._write("memory", "memory.limit_in_bytes", limits.memory)
            self._write("pids", "pids.max", limits.pids)
            if quota:
                self._write("cpu", "cpu.cfs_period_us", CPU_PERIOD_US)
                self._write("cpu", "cpu.cfs_quota_us", quota)
            if limits.memory:
                self._write_if_there("memory", "memory.memsw.limit_in_bytes", str(limits.memory))

    def add(self, pid: int) -> None:
        """Move a process in; what it starts from then on is born inside. Raises OSError."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    @property
    def can_freeze(self) -> bool:
        """Whether `freeze` works."""
        return self.version == 2 or "freezer" in self.folders

    def freeze(self, frozen: bool) -> None:
        """Stop every process in the group, or let them run on."""
        with contextlib.suppress(OSError, KeyError):
            if self.version == 2:
                (self._any / "cgroup.freeze").write_text(str(int(frozen)))
            else:
                (self.folders["freezer"] / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    async def remove(self) -> None:
        """Remove the group, whose processes have been killed, as soon as the last is gone."""
        pause = 0.001
        for _ in range(40):
            for folder in set(self.folders.values()):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if not any(folder.exists() for folder in self.folders.values()):
                return
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    @property
    def _any(self) -> Path:
        return next(iter(self.folders.values()))

    def _write(self, controller: str, name: str, value: int | str) -> None:
        if value and controller in self.folders:
            (self.folders[controller] / name).write_text(str(value))

    def _write_if_there(self, controller: str, name: str, value: str) -> None:
        """Swap accounting is often switched off: then there is no such file, or it refuses."""
        with contextlib.suppress(OSError, KeyError):
            (self.folders[controller] / name).write_text(value)


@dataclass(frozen=True, slots=True)
class CgroupHome:
    """Where the agent may make groups: a folder by controller."""

    version: int
    folders: dict[str, Path]

    def make(self) -> Cgroup:
        """Make a group for one kernel. Raises OSError."""
        name = f"{PREFIX}{os.getpid()}-{next(_serial)}"
        folders = {controller: folder / name for controller, folder in self.folders.items()}
        for folder in set(folders.values()):
            folder.mkdir()
        return Cgroup(self.version, folders)

    @property
    def can_freeze(self) -> bool:
        """Whether its groups can be frozen."""
        return self.version == 2 or "freezer" in self.folders

    def sweep(self) -> None:
        """Remove groups that a killed agent left behind. Called once, when the sandbox is first used."""
        for folder in set(self.folders.values()):
            for group in folder.glob(f"{PREFIX}*-*"):
                owner = group.name.removeprefix(PREFIX).partition("-")[0]
                if owner.isdigit() and not psutil.pid_exists(int(owner)):
                    with contextlib.suppress(OSError):
                        group.rmdir()


def find(root: Path = ROOT, membership: str | None = None) -> CgroupHome | None:
    """The agent's own place for groups, or None. `membership` is the text of `/proc/self/cgroup`.

    In version 2 this moves the agent, and the processes that it started, into the leaf `agent` of its group.
    """
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text()
        except OSError:
            return None
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path.strip("/")
    return _find_v1(root, own) or _find_v2(root, own)


def _find_v1(root: Path, own: dict[str, str]) -> CgroupHome | None:
    folders = {name: root / name / own[name] for name in V1_CONTROLLERS if name in own}
    usable = {name: folder for name, folder in folders.items() if _can_make_groups(folder)}
    return CgroupHome(1, usable) if "memory" in usable else None


def _find_v2(root: Path, own: dict[str, str]) -> CgroupHome | None:
    if "" not in own or not (root / "cgroup.controllers").exists():
        return None
    group = root / own[""]
    for place in (group, group.parent if group.name == "agent" else group):
        if "memory" in _words(place / "cgroup.subtree_control") and _can_make_groups(place):
            return _v2_home(place)
    if "memory" not in _words(group / "cgroup.controllers") or not _ours_alone(group):
        return None
    try:
        leaf = group / "agent"
        leaf.mkdir(exist_ok=True)
        for pid in _words(group / "cgroup.procs"):
            with contextlib.suppress(OSError):
                (leaf / "cgroup.procs").write_text(pid)
        wanted = set(V2_CONTROLLERS) & _words(group / "cgroup.controllers")
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(wanted)))
    except OSError:
        return None
    return _v2_home(group)


def _v2_home(folder: Path) -> CgroupHome:
    return CgroupHome(
        2, {name: folder for name in V2_CONTROLLERS if name in _words(folder / "cgroup.subtree_control")}
    )


def _words(path: Path) -> set[str]:
    """A control file's words without the sign that `subtree_control` is written with; empty if it cannot be read."""
    try:
        return {word.lstrip("+") for word in path.read_text().split()}
    except OSError:
        return set()


def _ours_alone(group: Path) -> bool:
    """Whether the group holds only this process and what it started: nobody else may be moved."""
    me = psutil.Process()
    ours = {str(process.pid) for process in (me, *me.children(recursive=True))}
    return _words(group / "cgroup.procs") <= ours


def _can_make_groups(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
