"""Signals for a kernel and the programs that its cells started, each to the process's main thread.

A signal to a process may be taken by any of its threads, and a process that was stopped has no thread that the system
prefers. Python acts on a signal in its main thread alone, which goes on sleeping where another one took it: an
interrupt of a kernel that had just been paused was lost in every eighth case. Rejected: waiting until the kernel runs
again before it is interrupted (nothing tells when its threads are ready).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

_to_thread: Callable[[int, int, int], int] | None = getattr(
    ctypes.CDLL(None) if sys.platform == "linux" else None, "tgkill", None
)


def signal_group(leader: int, signum: int) -> None:
    """Send a signal to a process group, as `os.killpg` does. No effect once it has ended."""
    with contextlib.suppress(OSError, ValueError):
        if sys.platform == "win32":
            os.kill(leader, signum)
        elif _to_thread is None:
            os.killpg(leader, signum)
        else:
            for pid in _members(leader):
                _signal(pid, signum)


def _members(leader: int) -> list[int]:
    members = [leader]
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid != leader and os.getpgid(pid) == leader:
                members.append(pid)
    return members


def _signal(pid: int, signum: int) -> None:
    # Whoever blocks a signal in the main thread waits for it in another one.
    if _to_thread is None or _blocked(pid, signum):
        with contextlib.suppress(OSError):
            os.kill(pid, signum)
    else:
        _to_thread(pid, pid, signum)


def stands_still(pid: int) -> bool:
    """Whether a process is stopped, is about to stop, or is gone. Asked on Linux, after it was sent SIGSTOP."""
    status = _status(Path(f"/proc/{pid}"))
    if any(_in_set(status.get(name, "0"), signal.SIGSTOP) for name in ("SigPnd", "ShdPnd")):
        return True
    # The main thread may have ended while the others run on.
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if _status(thread).get("State", "X").strip()[:1] not in "TtZX":
                return False
    return True


def _blocked(pid: int, signum: int) -> bool:
    """Whether a process's main thread blocks a signal."""
    return _in_set(_status(Path(f"/proc/{pid}")).get("SigBlk", "0"), signum)


def _in_set(mask: str, signum: int) -> bool:
    return bool(int(mask, 16) >> (signum - 1) & 1)


def _status(entry: Path) -> dict[str, str]:
    """What the system tells of a process or a thread, by its folder in /proc; empty if it is gone."""
    try:
        lines = (entry / "status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(":") for line in lines)}
