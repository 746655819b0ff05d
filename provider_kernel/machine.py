"""What an agent needs of its machine before it lends it: a home of its own, out of the kernels' sight, and room for files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jupyter_depin.errors import ConfigError, UnsupportedSystem

LOCK = "agent.lock"
_FILES = 1 << 16


def check_system() -> None:
    """Called by the program before anything else. Raises `UnsupportedSystem`, where signals and pipes are others'."""
    if sys.platform == "win32":
        raise UnsupportedSystem(system="Windows")


@contextmanager
def occupied(home: Path) -> Iterator[None]:
    """Make an agent's home, and keep other agents out of it. Raises `ConfigError`.

    Two agents in one home would end each other's leases. The lock goes with the process, however that ends.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(detail=f"the folder {home} cannot be used ({error.strerror})") from error
    try:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    detail=f"another agent runs in {home}; stop it, or name another folder with --home"
                ) from error
        yield
    finally:
        os.close(lock)


def check_unseen(folders: Sequence[Path], shown: Sequence[str]) -> None:
    """Refuse a home that lies in what every kernel sees: the keys would lie there too. Raises `ConfigError`."""
    for folder in folders:
        for root in shown:
            if folder.resolve().is_relative_to(Path(root).resolve()):
                raise ConfigError(
                    detail=f"{folder} lies in {root}, which kernels can read; name another folder with --home"
                )


def allow_many_files() -> None:
    """Lift the soft limit of open files: each client of each kernel has sockets, and 1024 is soon too few."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # Where the system allows fewer than it says, the old limit has to do.
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
