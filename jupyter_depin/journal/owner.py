"""Which process a lease belongs to: its mark in the journal names a file beside it that the process keeps locked.

The system lets go of the lock with its process, however that dies. Every process that can write in the folder sees the
lock, those of other containers and (by NFS) of other machines too; where a file system knows no locks, SQLite does not
work either.

Rejected: process id and start time. Elsewhere they mean another process or none, so that two containers with one home
took each other's rentals. `flock`: a child that foreign code has forked would go on holding its parent's leases.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import ClassVar

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""How the systems say that somebody else has a lock."""


class Owner:
    """This process, as an owner of leases in one journal: one object for all who have that journal open. Any thread."""

    _guard: ClassVar[threading.Lock] = threading.Lock()
    _all: ClassVar[dict[Path, Owner]] = {}

    @classmethod
    def of(cls, journal: Path) -> Owner:
        """Called when a journal is opened; `let_go` when it is closed."""
        with cls._guard:
            owner = cls._all.setdefault(journal.resolve(), cls(journal))
            owner._users += 1
            return owner

    @classmethod
    def forked(cls) -> None:
        """A forked process has its parent's memory, and none of its locks. Called by the interpreter."""
        cls._guard = threading.Lock()
        for each in cls._all.values():
            if each._file is not None:
                os.close(each._file)
            each._mark, each._file = "", None

    def __init__(self, journal: Path) -> None:
        self._journal, self._users = journal, 0
        self._mark = ""
        self._file: int | None = None

    def mark(self) -> str:
        """What says in the journal that a lease is this process's. Raises `OSError`."""
        with self._guard:
            if self._file is None:
                self._sweep()
                self._make()
            return self._mark

    def lives(self, mark: str) -> bool:
        """Whether the process with this mark has the journal open. Raises `OSError` where nobody can tell."""
        with self._guard:
            # To look at one's own file is to unlock it: POSIX drops a process's locks with any descriptor it closes.
            return self._is_own(mark) or _locked(self._path(mark))

    def let_go(self) -> None:
        """A journal is closed; with the last one, what still has this process's mark is nobody's."""
        with self._guard:
            self._users -= 1
            if self._users == 0:
                self._all.pop(self._journal.resolve(), None)
                if self._file is not None:
                    os.close(self._file)
                    with contextlib.suppress(OSError):
                        self._path(self._mark).unlink()
                self._mark, self._file = "", None

    def _is_own(self, mark: str) -> bool:
        return any(mark == each._mark for each in self._all.values())

    def _path(self, mark: str) -> Path:
        return self._journal.with_name(f"{self._journal.name}-owner-{mark}")

    def _make(self) -> None:
        while True:
            mark = secrets.token_hex(8)
            file = os.open(self._path(mark), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            # Another process may have found it before it was locked, and swept it.
            if _taken(file, shared=False) and self._path(mark).exists():
                self._mark, self._file = mark, file
                return
            os.close(file)

    def _sweep(self) -> None:
        """Remove what dead processes left."""
        prefix = self._path("").name
        for each in self._journal.parent.glob(f"{prefix}*"):
            # Windows does not remove what somebody has just opened: it stays for the next one.
            with contextlib.suppress(OSError):
                if not self._is_own(each.name.removeprefix(prefix)) and not _locked(each):
                    each.unlink(missing_ok=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Owner.forked)


def _locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for the owner.
        return not _taken(file, shared=True)
    finally:
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _taken(file: int, *, shared: bool) -> bool:
        """Lock a file until it is closed; False if somebody else has it. All of these locks are exclusive."""
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise
        return True
else:
    import fcntl

    def _taken(file: int, *, shared: bool) -> bool:
        """Lock a file until it is closed; False if somebody else has it."""
        try:
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise
        return True
