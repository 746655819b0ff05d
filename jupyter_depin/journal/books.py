"""The books: one row for each lease, and what is asked of them and written into them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from jupyter_depin.errors import LocalProtocolError, RentalNotFound
from jupyter_depin.journal.owner import Owner
from jupyter_depin.journal.store import Store
from jupyter_depin.protocol.identity import NodeAddress
from jupyter_depin.protocol.market import Offer, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.receipt import Receipt, Transaction
from jupyter_depin.protocol.record import LaunchedKernel, LeaseRecord, Role, RunningKernel, Where
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

_RECORD = (
    "channel_id, role, terms, offer, deposit, address, kernel_id, voucher_key, opened_ns, open_by, ready_ns, ended_ns,"
    " reason, served_ns"
)


class Journal(Store):
    """A journal, open. Calls are short and synchronous; drivers make them directly, any thread may.

    Every call raises `DamagedJournal` or `JournalUnavailable` (disk full, locked for 10 s), and `RentalNotFound` where
    it changes a lease that is not there.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._owner = Owner.of(path)
        self._closed = False

    def close(self) -> None:
        """Let go of the file, and of the leases that nobody else in this process holds. May be called twice."""
        super().close()
        if not self._closed:
            self._closed = True
            self._owner.let_go()

    # -- leases

    def save_lease(self, record: LeaseRecord) -> None:
        """Write a new lease down; it belongs to this process. Raises `LocalProtocolError` if it is there already."""
        terms, offer, address = map(_text, (record.terms, record.offer, record.address))
        reason = None if record.reason is None else record.reason.value
        with self._writing() as run:
            if run("SELECT 1 FROM lease WHERE channel_id = ?", record.channel_id).fetchone():
                raise LocalProtocolError(detail=f"lease {record.channel_id.hex()} is in the journal already")
            run(
                f"INSERT INTO lease ({_RECORD}, owner) VALUES ({'?, ' * 14}?)",
                record.channel_id, record.role, terms, offer, str(record.deposit), address, record.kernel_id,
                record.voucher_key, record.opened_ns, record.open_by, record.ready_ns, record.ended_ns, reason,
                record.served_ns, self._owner.mark(),
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
        """The lease is over, as of now or `ended_ns` (Unix ns). The first end stays. `reason` is an `EndReason`'s value.

        Nobody can take its kernel up any more, so what is known of that is wiped.
        """
        self._update(
            channel_id,
            "reason = COALESCE(reason, ?), ended_ns = COALESCE(ended_ns, ?), served_ns = MAX(served_ns, ?)",
            EndReason(reason).value, ended_ns or time.time_ns(), served_ns,
        )  # fmt: skip
        self.forget_kernel(channel_id)

    # -- its kernel

    def save_kernel(self, channel_id: bytes, kernel: LaunchedKernel) -> None:
        """The lease's kernel runs: write down what another process needs to take it up."""
        where = kernel.where
        with self._writing() as run:
            if not run("SELECT 1 FROM lease WHERE channel_id = ?", channel_id).fetchone():
                raise RentalNotFound(rental=channel_id.hex())
            run(
                "INSERT OR REPLACE INTO kernel VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                channel_id, kernel.epoch, kernel.key, kernel.signature_scheme, where.kernel_name, where.root,
                where.document,
            )  # fmt: skip

    def forget_kernel(self, channel_id: bytes) -> None:
        """No kernel runs in the lease, or another one is about to: nothing is there to be taken up."""
        with self._writing() as run:
            run("DELETE FROM kernel WHERE channel_id = ?", channel_id)

    def running(self) -> list[RunningKernel]:
        """The payer's open leases whose kernels run, as far as is known, oldest first."""
        found = []
        for record in self.open_leases("payer"):
            rows = self._read(
                "SELECT epoch, key, signature_scheme, kernel_name, root, document, owner"
                " FROM kernel JOIN lease USING (channel_id) WHERE channel_id = ?",
                record.channel_id,
            )
            for epoch, key, scheme, name, root, document, owner in rows:
                kernel = LaunchedKernel(epoch, key, scheme, Where(name, root, document))
                found.append(RunningKernel(record, kernel, self._held(owner)))
        return found

    def orphaned_ns(self, channel_id: bytes, now_ns: int) -> int | None:
        """When it was first seen that a running kernel's process is gone (Unix ns): now, if never before.

        None if a process holds it, or if there is no kernel. Every process reads the same moment.
        """
        with self._writing() as run:
            row = run(
                "SELECT orphaned_ns, owner FROM kernel JOIN lease USING (channel_id)"
                " WHERE channel_id = ? AND reason IS NULL",
                channel_id,
            ).fetchone()
            if row is None or self._held(row[1]):
                return None
            run(
                "UPDATE kernel SET orphaned_ns = COALESCE(orphaned_ns, ?) WHERE channel_id = ?",
                now_ns,
                channel_id,
            )
            return now_ns if row[0] is None else int(row[0])

    def save_path(self, channel_id: bytes, path: str) -> None:
        """How the lease's node is reached now, in words, for the user's other programs."""
        self._update(channel_id, "path = ?", path)

    def last_path(self, channel_id: bytes) -> str | None:
        """How the lease's node was last reached, or None if it never was."""
        found = self._read("SELECT path FROM lease WHERE channel_id = ?", channel_id)
        return found[0][0] if found else None

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
            "receipt = ?, voucher_key = x'', owner = NULL",
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

    def claim(self, channel_id: bytes) -> bool:
        """Take a lease for this process. Called before a lease is recovered.

        False if another living process has it: two may not recover one lease.
        """
        with self._writing() as run:
            found = run("SELECT owner FROM lease WHERE channel_id = ?", channel_id).fetchone()
            if found is None:
                raise RentalNotFound(rental=channel_id.hex())
            own = self._owner.mark()
            if found[0] != own and self._held(found[0]):
                return False
            run("UPDATE lease SET owner = ? WHERE channel_id = ?", own, channel_id)
            run("UPDATE kernel SET orphaned_ns = NULL WHERE channel_id = ?", channel_id)
            return True

    def release(self, channel_id: bytes) -> None:
        """Let another process of this user take the lease over."""
        self._update(channel_id, "owner = NULL")

    # -- inside

    def _held(self, owner: str | None) -> bool:
        with self._translated():
            return owner is not None and self._owner.lives(owner)

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

    def _update(self, channel_id: bytes, assignments: str, *values: object) -> None:
        with self._writing() as run:
            done = run(f"UPDATE lease SET {assignments} WHERE channel_id = ?", *values, channel_id)
            if done.rowcount != 1:
                raise RentalNotFound(rental=channel_id.hex())


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
