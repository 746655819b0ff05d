"""The journal's file: how it is made, checked, read and written, and what SQLite's errors mean.

A new journal is built aside and put in place whole, so that every file of that name is either a journal or not ours: a
foreign or damaged one is refused untouched.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from jupyter_depin.errors import (
    DamagedJournal,
    DepinError,
    JournalUnavailable,
    LocalProtocolError,
    NewerJournal,
)
from jupyter_depin.journal.forms import FORM, TABLES, step_up

_APPLICATION = 0x44504A31
"""What SQLite's header calls the program that a file belongs to: "DPJ1"."""
_BUSY_S = 10.0


class Store:
    """The file, open: transactions for the journal that is made of it. Any thread may call."""

    def __init__(self, path: Path) -> None:
        """Open the file, made now (private to its owner) if there is none."""
        self.path = path
        self._lock = threading.RLock()
        with self._translated():
            if not os.path.lexists(path):
                _create(path)
            _inspect(path)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            self._connection.execute("PRAGMA synchronous = FULL")
            # A wiped key is overwritten, not just forgotten.
            self._connection.execute("PRAGMA secure_delete = ON")
            try:
                if self._read("PRAGMA user_version") != [(FORM,)]:
                    with self._writing() as run:
                        step_up(run)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """One transaction: all of the block, durable when it ends, or nothing."""

        def run(statement: str, *values: object) -> sqlite3.Cursor:
            return self._connection.execute(statement, values)

        with self._lock, self._translated():
            run("BEGIN IMMEDIATE")
            try:
                yield run
                run("COMMIT")
            except BaseException:
                # A failed COMMIT (disk full) may have rolled back by itself.
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DepinError:
            raise
        except OSError as error:
            raise JournalUnavailable(path=self.path, reason=error.strerror or error) from error
        except sqlite3.OperationalError as error:
            raise JournalUnavailable(path=self.path, reason=error) from error
        except sqlite3.ProgrammingError as error:
            raise LocalProtocolError(detail=f"the journal was misused: {error}") from error
        except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
            raise DamagedJournal(path=self.path, reason=error) from error


def _create(path: Path) -> None:
    """Build an empty journal aside and put it in place, unless another process was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes files that only their owner can read; SQLite gives -wal and -shm the same mode.
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(
                f"BEGIN; {TABLES} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {FORM}; COMMIT;"
            )
            connection.execute("PRAGMA journal_mode = WAL")
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.close(handle)
        os.unlink(draft)


def _inspect(path: Path) -> None:
    """Refuse what is not a sound journal of a form that is known here, without writing one byte to it.

    Raises `DamagedJournal`, `NewerJournal`.
    """
    if not path.is_file():
        raise DamagedJournal(path=path, reason="it is not a file")
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise DamagedJournal(path=path, reason="it is no SQLite file")
    if int.from_bytes(header[68:72], "big") != _APPLICATION:
        raise DamagedJournal(path=path, reason="it belongs to another program")
    # Read only: a connection that can write would fold the -wal file into a damaged journal when it closes.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        # The header may be older than the -wal file beside it.
        form = connection.execute("PRAGMA user_version").fetchone()[0]
    if verdict != "ok":
        raise DamagedJournal(path=path, reason=" ".join(verdict.split()))
    if form < 1:
        raise DamagedJournal(path=path, reason=f"it is of no form that ever was ({form})")
    if form > FORM:
        raise NewerJournal(path=path, form=form)
