"""Which process a lease belongs to: known by its id and its start time, since ids come back."""

from __future__ import annotations

import psutil

_SAME_START_S = 2.0
"""Two readings of one process's start time may differ by this much, for the system's boot time is itself computed."""


def start_of(pid: int) -> float:
    """When a process started, in Unix seconds; 0 if it is gone."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0


def lives(pid: int, start: float) -> bool:
    """Whether the process that started then still runs."""
    now = start_of(pid)
    return now > 0 and abs(now - start) <= _SAME_START_S
