"""What must survive a crash: leases, newest vouchers, transactions, receipts. The one door to SQLite.

A call that returned is on the disk (WAL, synchronous FULL): the payer journals a voucher before it sends it, the payee
before it says that it has it, and whatever kills the process, the books are those of the last call that returned.
Several processes of one user may share a journal; a lease belongs to one of them at a time (`claim`).

A new journal is built aside and put in place whole, so that every file of that name is either a journal or not ours: a
foreign or damaged one is refused untouched.

Rejected: a log of events that is replayed. Only the newest voucher has any worth, and one row is its own replay.
Rejected: one file per lease. Two programs could not take a lease over without a second kind of lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil

from jupyter_depin.errors import (
    DamagedJournal,
    DepinError,
    JournalUnavailable,
    LocalProtocolError,
    RentalNotFound,
)
from jupyter_depin.protocol.identity import NodeAddress
from jupyter_depin.protocol.market import Offer, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.receipt import Receipt, Transaction
from jupyter_depin.protocol.record import LeaseRecord, Role
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

__all__ = ["Journal", "LeaseRecord", "Role"]

_APPLICATION = 0x44504A31
"""What SQLite's header calls the program that a file belongs to: "DPJ1"."""
_SCHEMA = 1
_BUSY_S = 10.0
_SAME_START_S = 2.0
"""Two readings of one process's start time may differ by this much, for the system's boot time is itself computed."""

# Amounts have 88 bits, SQLite's integers 64: they are decimal text.
_TABLES = """
CREATE TABLE lease (
    channel_id BLOB PRIMARY KEY, role TEXT NOT NULL, terms TEXT NOT NULL, offer TEXT NOT NULL, deposit TEXT NOT NULL,
    address TEXT NOT NULL, kernel_id TEXT NOT NULL, voucher_key BLOB NOT NULL, opened_ns INTEGER NOT NULL,
    open_by INTEGER NOT NULL,
    ready_ns INTEGER, ended_ns INTEGER, reason TEXT, served_ns INTEGER NOT NULL DEFAULT 0,
    paid TEXT NOT NULL DEFAULT '0', signature BLOB NOT NULL DEFAULT x'', vouchers INTEGER NOT NULL DEFAULT 0,
    receipt TEXT, owner_pid INTEGER, owner_start REAL
);
CREATE TABLE chain_transaction (
    channel_id BLOB NOT NULL REFERENCES lease, kind TEXT NOT NULL, id TEXT NOT NULL, UNIQUE (channel_id, kind, id)
);
"""


_RECORD = (
    "channel_id, role, terms, offer, deposit, address, kernel_id, voucher_key, opened_ns, open_by, ready_ns, ended_ns,"
    " reason, served_ns"
)


class Journal:
    """A journal, open. Calls are short and synchronous; drivers make them directly, any thread may.

    Every call raises `DamagedJournal` or `JournalUnavailable` (disk full, locked for 10 s), and `RentalNotFound` where
    it changes a lease that is not there.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal, made now (private to its owner) if there is none."""
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

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- leases

    def save_lease(self, record: LeaseRecord) -> None:
        """Write a new lease down; it belongs to this process. Raises `LocalProtocolError` if it is there already."""
        terms, offer, address = map(_text, (record.terms, record.offer, record.address))
        reason = None if record.reason is None else record.reason.value
        with self._writing() as run:
            if run("SELECT 1 FROM lease WHERE channel_id = ?", record.channel_id).fetchone():
                raise LocalProtocolError(detail=f"lease {record.channel_id.hex()} is in the journal already")
            run(
                f"INSERT INTO lease ({_RECORD}, owner_pid, owner_start) VALUES ({'?, ' * 15}?)",
                record.channel_id, record.role, terms, offer, str(record.deposit), address, record.kernel_id,
                record.voucher_key, record.opened_ns, record.open_by, record.ready_ns, record.ended_ns, reason,
                record.served_ns, os.getpid(), _start_of(os.getpid()),
            )  # fmt: skip

    def lease(self, channel_id: bytes) -> LeaseRecord | None:
        """The lease, or None if the journal does not know it."""
        found = self._read(f"SELECT {_RECORD} FROM lease WHERE channel_id = ?", channel_id)
        return self._record(found[0]) if found else None

    def open_leases(self, role: Role) -> list[LeaseRecord]:
        """Leases that have not ended, oldest first: after a restart, those to take up again or to end."""
        return self._records("role = ? AND reason IS NULL", role)

    def unsettled(self, role: Role) -> list[LeaseRecord]:
        """Leases that have ended and have no receipt yet, oldest first."""
        return self._records("role = ? AND reason IS NOT NULL AND receipt IS NULL", role)

    def start(self, channel_id: bytes, ready_ns: int) -> None:
        """The kernel is ready, at `ready_ns` (Unix ns). The first time stays."""
        self._update(channel_id, "ready_ns = COALESCE(ready_ns, ?)", ready_ns)

    def started(self, channel_id: bytes) -> bool:
        """Whether the lease's kernel ever became ready."""
        return bool(
            self._read("SELECT 1 FROM lease WHERE channel_id = ? AND ready_ns IS NOT NULL", channel_id)
        )

    def save_served(self, channel_id: bytes, served_ns: int) -> None:
        """The time served so far, as this side knows it. Never falls."""
        self._update(channel_id, "served_ns = MAX(served_ns, ?)", served_ns)

    def end(self, channel_id: bytes, reason: str, served_ns: int, ended_ns: int | None = None) -> None:
        """The lease is over, as of now or `ended_ns` (Unix ns). The first end stays. `reason` is an `EndReason`'s value."""
        self._update(
            channel_id,
            "reason = COALESCE(reason, ?), ended_ns = COALESCE(ended_ns, ?), served_ns = MAX(served_ns, ?)",
            EndReason(reason).value, ended_ns or time.time_ns(), served_ns,
        )  # fmt: skip

    # -- vouchers

    def save_voucher(self, voucher: VerifiedVoucher, served_ns: int = 0) -> None:
        """Make this the lease's newest voucher, for the time served so far. Durable when it returns.

        An equal one changes nothing (it is the same promise); a lower one raises `LocalProtocolError`.
        """
        channel_id, value = voucher.voucher.channel_id, voucher.voucher.amount
        with self._writing() as run:
            held = run("SELECT paid FROM lease WHERE channel_id = ?", channel_id).fetchone()
            if held is None:
                raise RentalNotFound(rental=channel_id.hex())
            if value < int(held[0]):
                raise LocalProtocolError(detail=f"a voucher fell from {held[0]} to {value}")
            if value > int(held[0]):
                run(
                    "UPDATE lease SET paid = ?, signature = ?, vouchers = vouchers + 1,"
                    " served_ns = MAX(served_ns, ?) WHERE channel_id = ?",
                    str(value), voucher.signature, served_ns, channel_id,
                )  # fmt: skip

    def voucher(self, channel_id: bytes) -> VerifiedVoucher | None:
        """The newest voucher, checked before it was written down; None before the first."""
        found = self._read(
            "SELECT paid, signature FROM lease WHERE channel_id = ? AND vouchers > 0", channel_id
        )
        if not found:
            return None
        paid, signature = found[0]
        return VerifiedVoucher(Voucher(channel_id, Amount(int(paid))), signature)

    def voucher_count(self, channel_id: bytes) -> int:
        """How many vouchers, each higher than the last, were written down."""
        found = self._read("SELECT vouchers FROM lease WHERE channel_id = ?", channel_id)
        return int(found[0][0]) if found else 0

    # -- the chain

    def save_transaction(self, channel_id: bytes, kind: str, transaction: str) -> None:
        """Something happened on the chain for this lease. Writing it twice is once."""
        with self._writing() as run:
            if not run("SELECT 1 FROM lease WHERE channel_id = ?", channel_id).fetchone():
                raise RentalNotFound(rental=channel_id.hex())
            run("INSERT OR IGNORE INTO chain_transaction VALUES (?, ?, ?)", channel_id, kind, transaction)

    def transactions(self, channel_id: bytes) -> tuple[Transaction, ...]:
        """What happened on the chain for this lease, in the order of writing."""
        found = self._read(
            "SELECT kind, id FROM chain_transaction WHERE channel_id = ? ORDER BY rowid", channel_id
        )
        return tuple(Transaction(kind, ident) for kind, ident in found)

    def save_receipt(self, receipt: Receipt) -> None:
        """The lease is settled: keep the receipt, wipe the voucher key, belong to nobody."""
        self._update(
            receipt.channel_id,
            "receipt = ?, voucher_key = x'', owner_pid = NULL, owner_start = NULL",
            _text(receipt),
        )

    def receipts(self) -> list[Receipt]:
        """All receipts, newest lease first."""
        found = self._read(
            "SELECT receipt FROM lease WHERE receipt IS NOT NULL ORDER BY opened_ns DESC, rowid DESC"
        )
        with self._translated():
            return [msgspec.json.decode(text, type=Receipt) for (text,) in found]

    # -- whose lease it is

    def claim(self, channel_id: bytes, owner_pid: int | None = None) -> bool:
        """Take a lease for a process (this one by default). Called before a lease is recovered.

        False if another living process has it: two may not recover one lease. A process is known by its id and its
        start time, since ids come back.
        """
        pid = os.getpid() if owner_pid is None else owner_pid
        with self._writing() as run:
            found = run(
                "SELECT owner_pid, owner_start FROM lease WHERE channel_id = ?", channel_id
            ).fetchone()
            if found is None:
                raise RentalNotFound(rental=channel_id.hex())
            if found[0] not in (None, pid) and _lives(*found):
                return False
            run(
                "UPDATE lease SET owner_pid = ?, owner_start = ? WHERE channel_id = ?",
                pid,
                _start_of(pid),
                channel_id,
            )
            return True

    def release(self, channel_id: bytes) -> None:
        """Let another process of this user take the lease over."""
        self._update(channel_id, "owner_pid = NULL, owner_start = NULL")

    # -- inside

    def _record(self, row: tuple[Any, ...]) -> LeaseRecord:
        (
            channel_id,
            role,
            terms,
            offer,
            deposit,
            address,
            kernel_id,
            key,
            opened,
            open_by,
            ready,
            ended,
            reason,
            served,
        ) = row
        with self._translated():
            return LeaseRecord(
                channel_id=channel_id,
                role=role,
                terms=msgspec.json.decode(terms, type=Terms),
                offer=msgspec.json.decode(offer, type=Offer),
                deposit=Amount(int(deposit)),
                address=msgspec.json.decode(address, type=NodeAddress),
                kernel_id=kernel_id,
                voucher_key=key,
                opened_ns=opened,
                open_by=open_by,
                ready_ns=ready,
                ended_ns=ended,
                reason=None if reason is None else EndReason(reason),
                served_ns=served,
            )

    def _records(self, condition: str, *values: object) -> list[LeaseRecord]:
        found = self._read(
            f"SELECT {_RECORD} FROM lease WHERE {condition} ORDER BY opened_ns, rowid", *values
        )
        return [self._record(row) for row in found]

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._connection.execute(statement, values).fetchall()

    def _update(self, channel_id: bytes, assignments: str, *values: object) -> None:
        with self._writing() as run:
            done = run(f"UPDATE lease SET {assignments} WHERE channel_id = ?", *values, channel_id)
            if done.rowcount != 1:
                raise RentalNotFound(rental=channel_id.hex())

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


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _create(path: Path) -> None:
    """Build an empty journal aside and put it in place, unless another process was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes files that only their owner can read; SQLite gives -wal and -shm the same mode.
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(
                f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_SCHEMA}; COMMIT;"
            )
            connection.execute("PRAGMA journal_mode = WAL")
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.close(handle)
        os.unlink(draft)


def _inspect(path: Path) -> None:
    """Refuse what is not a sound journal, without writing one byte to it. Raises `DamagedJournal`."""
    if not path.is_file():
        raise DamagedJournal(path=path, reason="it is not a file")
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise DamagedJournal(path=path, reason="it is no SQLite file")
    if int.from_bytes(header[68:72], "big") != _APPLICATION:
        raise DamagedJournal(path=path, reason="it belongs to another program")
    schema = int.from_bytes(header[60:64], "big")
    if schema != _SCHEMA:
        raise DamagedJournal(path=path, reason=f"jupyter-depin of another version wrote it, in form {schema}")
    # Read only: a connection that can write would fold the -wal file into a damaged journal when it closes.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise DamagedJournal(path=path, reason=" ".join(verdict.split()))


def _start_of(pid: int) -> float:
    """When a process started, in Unix seconds; 0 if it is gone."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _lives(pid: int, start: float) -> bool:
    now = _start_of(pid)
    return now > 0 and abs(now - start) <= _SAME_START_S
