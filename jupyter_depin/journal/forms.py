"""The journal's form: its tables, and how those of an earlier version become today's.

A journal outlives the version that wrote it, for money may still be locked in what it names. So a form is never given
up: each has a step to the next one, and a journal that is opened takes all that it lacks in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

import psutil

from jupyter_depin.errors import JournalInUse

Run = Callable[..., sqlite3.Cursor]

FORM = 3

# Amounts have 88 bits, SQLite's integers 64: they are decimal text.
TABLES = """
CREATE TABLE lease (
    channel_id BLOB PRIMARY KEY, role TEXT NOT NULL, terms TEXT NOT NULL, offer TEXT NOT NULL, deposit TEXT NOT NULL,
    address TEXT NOT NULL, kernel_id TEXT NOT NULL, voucher_key BLOB NOT NULL, opened_ns INTEGER NOT NULL,
    open_by INTEGER NOT NULL,
    ready_ns INTEGER, ended_ns INTEGER, reason TEXT, served_ns INTEGER NOT NULL DEFAULT 0,
    paid TEXT NOT NULL DEFAULT '0', signature BLOB NOT NULL DEFAULT x'', vouchers INTEGER NOT NULL DEFAULT 0,
    receipt TEXT, owner TEXT, path TEXT
);
CREATE TABLE chain_transaction (
    channel_id BLOB NOT NULL REFERENCES lease, kind TEXT NOT NULL, id TEXT NOT NULL, UNIQUE (channel_id, kind, id)
);
CREATE TABLE kernel (
    channel_id BLOB PRIMARY KEY REFERENCES lease, epoch INTEGER NOT NULL, key BLOB NOT NULL,
    signature_scheme TEXT NOT NULL, kernel_name TEXT NOT NULL, root TEXT NOT NULL, document TEXT NOT NULL,
    orphaned_ns INTEGER
);
"""

_OPEN_BY_S = 86_400
"""How long the order to open a lease may count where the journal does not say: far longer than any was signed for."""
_SAME_START_S = 2.0
"""Two readings of one process's start time may differ by this much, for the system's boot time is itself computed."""


def step_up(run: Run) -> None:
    """Bring a journal of an earlier form to today's. Called in a transaction; who comes second finds it done."""
    form = run("PRAGMA user_version").fetchone()[0]
    for step in _STEPS[form - 1 :]:
        step(run)
    run(f"PRAGMA user_version = {FORM}")


def _with_kernels(run: Run) -> None:
    """Form 1: kernels could not be taken up, a node had one relay, and its first versions lacked two columns."""
    columns = {row[1] for row in run("PRAGMA table_info(lease)")}
    if "open_by" not in columns:
        run("ALTER TABLE lease ADD COLUMN open_by INTEGER NOT NULL DEFAULT 0")
        run("UPDATE lease SET open_by = opened_ns / 1000000000 + ?", _OPEN_BY_S)
    if "path" not in columns:
        run("ALTER TABLE lease ADD COLUMN path TEXT")
    for channel_id, text in run("SELECT channel_id, address FROM lease").fetchall():
        address = json.loads(text)
        relay = address.pop("relay_url", None)
        address.setdefault("relays", [relay] if relay else [])
        run("UPDATE lease SET address = ? WHERE channel_id = ?", json.dumps(address), channel_id)
    run(
        "CREATE TABLE kernel (channel_id BLOB PRIMARY KEY REFERENCES lease, epoch INTEGER NOT NULL, key BLOB NOT NULL,"
        " signature_scheme TEXT NOT NULL, kernel_name TEXT NOT NULL, root TEXT NOT NULL, document TEXT NOT NULL,"
        " orphaned_ns INTEGER)"
    )


def _with_marks(run: Run) -> None:
    """Form 2: a lease belonged to a process id and its start time. Raises `JournalInUse`."""
    for pid, start in run("SELECT owner_pid, owner_start FROM lease WHERE owner_pid IS NOT NULL").fetchall():
        if _runs(pid, start):
            # It goes on reading and writing what it knows, and marks nothing that would be seen here.
            raise JournalInUse(pid=pid)
    run("ALTER TABLE lease ADD COLUMN owner TEXT")


def _runs(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        began = float(process.create_time())
        return bool(process.status() != psutil.STATUS_ZOMBIE) and abs(began - start) <= _SAME_START_S
    except psutil.NoSuchProcess:
        return False


_STEPS = (_with_kernels, _with_marks)
"""From each form to the next."""
