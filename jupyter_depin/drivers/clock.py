"""The two clocks. Machines get `steady_ns()`; only what is shown or signed as a date uses `unix_now()`."""

from __future__ import annotations

import time


def steady_ns() -> int:
    """Nanoseconds that never jump and that go on while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if clock is None else time.clock_gettime_ns(clock)


def unix_now() -> int:
    """Unix time in whole seconds."""
    return int(time.time())


def unix_ns() -> int:
    """Unix time in nanoseconds."""
    return time.time_ns()
