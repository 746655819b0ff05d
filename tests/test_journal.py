"""The journal: books that survive whatever kills the process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jupyter_depin.errors import (
    DamagedJournal,
    JournalInUse,
    JournalUnavailable,
    LocalProtocolError,
    NewerJournal,
    RentalNotFound,
)
from jupyter_depin.journal import Journal, LeaseRecord, forms, store
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import Address, NodeAddress, NodeId
from jupyter_depin.protocol.market import Asset, Offer, Terms
from jupyter_depin.protocol.money import MAX_AMOUNT, Amount, Rate
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.receipt import Receipt, Transaction
from jupyter_depin.protocol.record import LaunchedKernel, Where
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

KEY = Wallet(b"\x01" * 32)
NODE = NodeId(b"\x02" * 32)
ASSET = Asset(31337, Address(b"\x0a" * 20), Address(b"\x0b" * 20), "DEMO", 18)
TERMS = Terms(
    payer=Address(b"\x03" * 20),
    signer=KEY.address,
    provider=Address(b"\x04" * 20),
    token=ASSET.token,
    open_fee=Amount(0),
    rate=Rate(MAX_AMOUNT),
    max_seconds=3600,
    grant_id=bytes(32),
    lease_hash=bytes(32),
)
OFFER = Offer(
    provider=TERMS.provider,
    node=NODE,
    slot=bytes(32),
    asset=ASSET,
    rate=TERMS.rate,
    open_fee=Amount(0),
    max_seconds=3600,
    tick_s=5,
    arrears_s=15,
    grace_s=60,
    sequence=2**64 - 1,
    expires=2**40 - 1,
    title="A card — 24 GB",
    facts=(("gpu", "one"), ("ram", "64")),
)


def lease_id(n: int) -> bytes:
    return n.to_bytes(32, "big")


def of_payer(n: int = 1) -> LeaseRecord:
    address = NodeAddress(NODE, ("https://relay.example",), ("192.0.2.1:4433",))
    return LeaseRecord.of_payer(
        lease_id(n), TERMS, OFFER, Amount(MAX_AMOUNT), address, KEY, "kernel-7", 1000 + n, 2000 + n
    )


def of_payee(n: int = 1) -> LeaseRecord:
    return LeaseRecord.of_payee(lease_id(n), TERMS, OFFER, Amount(10**9), NODE, 1000 + n, 2000 + n)


def voucher(amount: int, n: int = 1) -> VerifiedVoucher:
    return VerifiedVoucher(Voucher(lease_id(n), Amount(amount)), amount.to_bytes(65, "big"))


def receipt(n: int = 1) -> Receipt:
    return Receipt(
        channel_id=lease_id(n),
        title=OFFER.title,
        provider=TERMS.provider,
        node=NODE,
        started_ns=10**18,
        ended_ns=10**18 + 5,
        served_ns=5,
        rate_per_hour=TERMS.rate,
        asset=ASSET,
        vouchers=3,
        paid=Amount(MAX_AMOUNT),
        refunded=Amount(0),
        collected_on_chain=Amount(MAX_AMOUNT),
        transactions=(Transaction("open", "0x01"), Transaction("settle", "0x02")),
        chain_agrees=True,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "journal.sqlite"


@pytest.fixture
def journal(path: Path):
    with Journal(path) as opened:
        yield opened


# -- what is written is read


@pytest.mark.parametrize("record", [of_payer(), of_payee()], ids=["payer", "payee"])
def test_a_lease_is_read_as_it_was_written(path, record):
    with Journal(path) as journal:
        journal.save_lease(record)
    with Journal(path) as journal:
        assert journal.lease(record.channel_id) == record
        assert journal.open_leases(record.role) == [record]
        assert journal.lease(lease_id(99)) is None


def test_a_rental_from_the_agreement_to_the_receipt(journal):
    lease = of_payer()
    journal.save_lease(lease)
    assert (journal.started(lease.channel_id), lease.started_ns) == (False, 1001)
    journal.start(lease.channel_id, 5000)
    journal.start(lease.channel_id, 9000)
    journal.save_voucher(voucher(100))
    journal.save_voucher(voucher(250))
    journal.save_served(lease.channel_id, 70)
    journal.save_served(lease.channel_id, 60)
    journal.save_transaction(lease.channel_id, "open", "0x01")
    assert journal.started(lease.channel_id)
    assert journal.lease(lease.channel_id) == dataclasses.replace(lease, ready_ns=5000, served_ns=70)
    assert journal.unsettled("payer") == []

    journal.end(lease.channel_id, "arrears", 80)
    journal.end(lease.channel_id, "stopped_by_user", 75)
    [ended] = journal.unsettled("payer")
    assert (ended.reason, ended.served_ns, ended.started_ns, ended.ended) == (
        EndReason.ARREARS,
        80,
        5000,
        True,
    )
    assert journal.open_leases("payer") == []
    assert journal.unsettled("payee") == []

    journal.save_voucher(voucher(300))
    journal.save_transaction(lease.channel_id, "settle", "0x02")
    journal.save_transaction(lease.channel_id, "open", "0x01")
    assert journal.transactions(lease.channel_id) == (
        Transaction("open", "0x01"),
        Transaction("settle", "0x02"),
    )
    assert journal.voucher(lease.channel_id) == voucher(300)
    assert journal.voucher_count(lease.channel_id) == 3
    assert journal.receipts() == []
    journal.save_receipt(receipt())
    assert journal.receipts() == [receipt()]
    assert journal.unsettled("payer") == []


def test_the_last_path_is_kept(journal):
    journal.save_lease(of_payer())
    assert journal.last_path(lease_id(1)) is None
    for path in ("through the relay https://relay.example, 80 ms", "direct to 192.0.2.1:4433, 9 ms"):
        journal.save_path(lease_id(1), path)
        assert journal.last_path(lease_id(1)) == path


def test_receipts_come_newest_first(journal):
    for n in (1, 3, 2):
        journal.save_lease(of_payee(n))
        journal.end(lease_id(n), "lease_over", 1)
        journal.save_receipt(receipt(n))
    assert [each.channel_id for each in journal.receipts()] == [lease_id(3), lease_id(2), lease_id(1)]


def test_a_voucher_never_falls_and_an_equal_one_is_the_same(journal):
    journal.save_lease(of_payer())
    assert journal.voucher(lease_id(1)) is None
    journal.save_voucher(voucher(MAX_AMOUNT))
    journal.save_voucher(voucher(MAX_AMOUNT))
    with pytest.raises(LocalProtocolError):
        journal.save_voucher(voucher(MAX_AMOUNT - 1))
    assert (journal.voucher(lease_id(1)), journal.voucher_count(lease_id(1))) == (voucher(MAX_AMOUNT), 1)


def test_what_is_not_there_cannot_be_changed(journal):
    changes = [
        lambda: journal.save_voucher(voucher(1)),
        lambda: journal.save_transaction(lease_id(1), "open", "0x01"),
        lambda: journal.start(lease_id(1), 1),
        lambda: journal.end(lease_id(1), "arrears", 1),
        lambda: journal.save_receipt(receipt()),
        lambda: journal.claim(lease_id(1)),
    ]
    for change in changes:
        with pytest.raises(RentalNotFound):
            change()


def test_a_lease_is_written_once(journal):
    journal.save_lease(of_payer())
    with pytest.raises(LocalProtocolError):
        journal.save_lease(of_payee())


# -- secrets


def test_files_are_private(journal, path):
    journal.save_lease(of_payer())
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_voucher_key_is_kept_until_the_receipt_and_then_wiped(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
        lease = journal.lease(lease_id(1))
        assert Wallet(lease.voucher_key).address == KEY.address
        assert KEY.secret.hex() not in repr(lease)
        assert repr(KEY.secret) not in repr(lease)
        journal.end(lease_id(1), "lease_over", 1)
        journal.save_receipt(receipt())
        assert journal.lease(lease_id(1)).voucher_key == b""
    assert all(KEY.secret not in file.read_bytes() for file in path.parent.iterdir())


# -- the kernel, for whoever takes it up

KERNEL = LaunchedKernel(
    2, b"an HMAC key, for instance", "hmac-sha256", Where("depin", "/notes", "/notes/a.ipynb")
)


def test_a_running_kernel_is_read_as_it_was_written_and_forgotten(path):
    with Journal(path) as owner, Journal(path) as journal:
        owner.save_lease(of_payer(1))
        owner.save_lease(of_payer(2))
        owner.save_kernel(lease_id(1), replace(KERNEL, epoch=1))
        owner.save_kernel(lease_id(1), KERNEL)
        (running,) = journal.running()
        assert (running.lease, running.kernel, running.held) == (of_payer(1), KERNEL, True)
        assert KERNEL.key.decode() not in repr(running)
        journal.forget_kernel(lease_id(1))
        journal.forget_kernel(lease_id(1))
        assert journal.running() == []
        with pytest.raises(RentalNotFound):
            journal.save_kernel(lease_id(3), KERNEL)


def test_the_kernels_key_is_wiped_with_the_end_of_the_lease(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
        journal.save_kernel(lease_id(1), KERNEL)
        journal.end(lease_id(1), "lease_over", 1)
        assert journal.running() == []
    assert all(KERNEL.key not in file.read_bytes() for file in path.parent.iterdir())


def test_every_process_reads_the_same_moment_at_which_a_kernel_lost_its_owner(journal):
    journal.save_lease(of_payer())
    assert journal.orphaned_ns(lease_id(1), 5) is None, "there is no kernel"
    journal.save_kernel(lease_id(1), KERNEL)
    assert journal.orphaned_ns(lease_id(1), 5) is None, "this process has it"
    journal.release(lease_id(1))
    assert not journal.running()[0].held
    assert [journal.orphaned_ns(lease_id(1), now) for now in (5, 6)] == [5, 5]
    assert journal.claim(lease_id(1))
    journal.release(lease_id(1))
    assert journal.orphaned_ns(lease_id(1), 7) == 7, "whoever took it up begins anew"
    journal.end(lease_id(1), "arrears", 0)
    assert journal.orphaned_ns(lease_id(1), 8) is None


# -- what is no journal


def everything(folder: Path) -> dict[str, bytes]:
    """What the files hold. SQLite may leave an empty -wal and a -shm (locks only) beside what it has looked at."""
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    return {name: content for name, content in contents.items() if content or not name.endswith("-wal")}


def damage_pages(path: Path) -> None:
    with Journal(path) as journal:
        for n in range(40):
            journal.save_lease(of_payer(n))
    content = bytearray(path.read_bytes())
    content[4096 : 3 * 4096] = b"\x5a" * 2 * 4096
    path.write_bytes(content)


def foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE recipe (name TEXT)")


def of_form(path: Path, form: int) -> None:
    Journal(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {form}")


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda path: path.write_bytes(b""), DamagedJournal, "no SQLite"),
        (lambda path: path.write_bytes(b"my notes\n" * 100), DamagedJournal, "no SQLite"),
        (lambda path: path.mkdir(), DamagedJournal, "not a file"),
        (foreign_database, DamagedJournal, "another program"),
        (lambda path: of_form(path, 0), DamagedJournal, "no form that ever was"),
        (lambda path: of_form(path, 7), NewerJournal, "no money is lost"),
        (damage_pages, DamagedJournal, ""),
    ],
    ids=["empty", "text", "folder", "foreign", "formless", "newer", "damaged"],
)
def test_a_wrong_file_is_refused_in_one_sentence_and_left_untouched(tmp_path, make, error, word):
    path = tmp_path / "journal.sqlite"
    make(path)
    before = {} if path.is_dir() else everything(tmp_path)
    with pytest.raises(error) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ({} if path.is_dir() else everything(tmp_path)) == before


def test_a_damaged_journal_keeps_what_was_not_folded_in_yet(tmp_path):
    """A crash leaves the newest vouchers in the -wal file: refusing the journal must not lose them."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        for n in range(40):
            journal.save_lease(of_payer(n))
    with Journal(path) as journal:
        journal.save_voucher(voucher(5))
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", crashed)
    broken = crashed / path.name
    content = bytearray(broken.read_bytes())
    content[4 * 4096 : 6 * 4096] = b"\x5a" * 2 * 4096
    broken.write_bytes(content)
    before = everything(crashed)
    with pytest.raises(DamagedJournal):
        Journal(broken)
    assert everything(crashed) == before


def test_damage_that_shows_later_is_named_too(journal):
    journal.save_lease(of_payer())
    with contextlib.closing(sqlite3.connect(journal.path)) as other:
        other.execute("UPDATE lease SET terms = '{'")
        other.commit()
    with pytest.raises(DamagedJournal):
        journal.lease(lease_id(1))


def test_a_journal_that_another_program_holds_is_unavailable_for_now(path, monkeypatch):
    monkeypatch.setattr(store, "_BUSY_S", 0.01)
    with Journal(path) as journal, contextlib.closing(sqlite3.connect(path)) as other:
        journal.save_lease(of_payer())
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable) as caught:
            journal.save_voucher(voucher(1))
        assert caught.value.retryable
        other.rollback()
        journal.save_voucher(voucher(1))
        assert journal.voucher(lease_id(1)) == voucher(1)


def test_where_no_journal_can_be_made_it_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnavailable):
        Journal(tmp_path / "file" / "journal.sqlite")


# -- journals of earlier versions

FORM_1 = """
CREATE TABLE lease (
    channel_id BLOB PRIMARY KEY, role TEXT NOT NULL, terms TEXT NOT NULL, offer TEXT NOT NULL, deposit TEXT NOT NULL,
    address TEXT NOT NULL, kernel_id TEXT NOT NULL, voucher_key BLOB NOT NULL, opened_ns INTEGER NOT NULL,
    {open_by}
    ready_ns INTEGER, ended_ns INTEGER, reason TEXT, served_ns INTEGER NOT NULL DEFAULT 0,
    paid TEXT NOT NULL DEFAULT '0', signature BLOB NOT NULL DEFAULT x'', vouchers INTEGER NOT NULL DEFAULT 0,
    receipt TEXT, owner_pid INTEGER, owner_start REAL{path}
);
CREATE TABLE chain_transaction (
    channel_id BLOB NOT NULL REFERENCES lease, kind TEXT NOT NULL, id TEXT NOT NULL, UNIQUE (channel_id, kind, id)
);
PRAGMA application_id = 0x44504A31; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;
"""
"""The first form, of which there were three, by the columns of `lease`."""


def of_an_earlier_version(path: Path, *, open_by: str = "", path_column: str = "") -> None:
    """A journal as its first versions wrote it, with a lease that is paid, and one that is settled."""
    now = path.with_suffix(".now")
    with Journal(now) as journal:
        for n in (1, 2):
            journal.save_lease(of_payer(n))
            journal.save_voucher(voucher(250 + n, n))
            journal.save_transaction(lease_id(n), "open", f"0x0{n}")
        journal.end(lease_id(2), "arrears", 5)
        journal.save_receipt(receipt(2))
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(FORM_1.format(open_by=open_by, path=path_column))
        columns = ", ".join(row[1] for row in old.execute("PRAGMA table_info(lease)"))
        old.execute("ATTACH ? AS now", (str(now),))
        old.execute(
            f"INSERT INTO lease ({columns}) SELECT {columns.replace('owner_pid, owner_start', 'NULL, NULL')}"
            " FROM now.lease"
        )
        old.execute("INSERT INTO chain_transaction SELECT * FROM now.chain_transaction")
        old.execute(
            "UPDATE lease SET address = json_set(json_remove(address, '$.relays'), '$.relay_url', json_extract(address, '$.relays[0]'))"
        )
        old.commit()
    now.unlink()


@pytest.mark.parametrize(
    ("columns", "open_by"),
    [
        ({}, 86_400),
        ({"open_by": "open_by INTEGER NOT NULL,"}, 2001),
        ({"open_by": "open_by INTEGER NOT NULL,", "path_column": ", path TEXT"}, 2001),
    ],
    ids=["before the order's end was written down", "before paths", "the last of form 1"],
)
def test_a_journal_of_an_earlier_version_is_taken_on_with_its_money(tmp_path, columns, open_by):
    path = tmp_path / "journal.sqlite"
    of_an_earlier_version(path, **columns)
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.open_leases("payer") == [replace(of_payer(1), open_by=open_by)]
            assert journal.voucher(lease_id(1)) == voucher(251)
            assert journal.transactions(lease_id(1)) == (Transaction("open", "0x01"),)
            assert journal.receipts() == [receipt(2)]
    with Journal(path) as journal:
        assert journal.claim(lease_id(1))
        journal.save_kernel(lease_id(1), KERNEL)
        journal.save_path(lease_id(1), "direct")
        journal.save_lease(of_payer(3))
        assert (journal.running()[0].kernel, journal.last_path(lease_id(1))) == (KERNEL, "direct")


def test_a_journal_whose_taking_on_fails_is_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "journal.sqlite"
    of_an_earlier_version(path)
    before = everything(tmp_path)

    def full(run):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(forms, "_STEPS", (*forms._STEPS, full))
        with pytest.raises(JournalUnavailable, match="disk is full"):
            Journal(path)
    assert everything(tmp_path) == before
    with Journal(path) as journal:
        assert journal.voucher(lease_id(1)) == voucher(251)


def test_an_address_that_is_none_is_damage_and_not_guessed_at(tmp_path):
    path = tmp_path / "journal.sqlite"
    of_an_earlier_version(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE lease SET address = '{'")
        other.commit()
    with pytest.raises(DamagedJournal):
        Journal(path)


# -- crashes


class Books(RuleBasedStateMachine):
    """Whatever is written, and wherever the process dies, a copy of the files gives the same books."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "journal.sqlite"
        self.journal = Journal(self.path)
        self.leases: dict[bytes, LeaseRecord] = {}
        self.paid: dict[bytes, int] = {}
        self.count: dict[bytes, int] = {}
        self.settled: set[bytes] = set()

    @rule(n=st.integers(0, 3), payer=st.booleans())
    def agree(self, n, payer):
        if lease_id(n) in self.leases:
            return
        lease = of_payer(n) if payer else of_payee(n)
        self.journal.save_lease(lease)
        self.leases[lease.channel_id] = lease
        self.paid[lease.channel_id] = self.count[lease.channel_id] = 0

    @rule(n=st.integers(0, 3), amount=st.integers(1, MAX_AMOUNT))
    def pay(self, n, amount):
        key = lease_id(n)
        try:
            self.journal.save_voucher(voucher(amount, n))
        except RentalNotFound:
            assert key not in self.leases
        except LocalProtocolError:
            assert amount < self.paid[key]
        else:
            self.count[key] += amount > self.paid[key]
            self.paid[key] = amount

    @rule(n=st.integers(0, 3), served=st.integers(0, 2**62))
    def serve(self, n, served):
        key = lease_id(n)
        if key in self.leases:
            self.journal.save_served(key, served)
            lease = self.leases[key]
            self.leases[key] = dataclasses.replace(lease, served_ns=max(lease.served_ns, served))

    @rule(n=st.integers(0, 3), reason=st.sampled_from(EndReason))
    def end(self, n, reason):
        key = lease_id(n)
        if key in self.leases:
            self.journal.end(key, reason.value, 0)
            lease = self.leases[key]
            self.leases[key] = dataclasses.replace(lease, reason=lease.reason or reason)

    @rule(n=st.integers(0, 3))
    def settle(self, n):
        key = lease_id(n)
        if key in self.leases and self.leases[key].ended:
            self.journal.save_receipt(receipt(n))
            self.settled.add(key)
            self.leases[key] = dataclasses.replace(self.leases[key], voucher_key=b"")

    @rule()
    def reopen(self):
        self.journal.close()
        self.journal = Journal(self.path)

    @invariant()
    def a_crash_loses_nothing(self):
        if not hasattr(self, "journal"):
            return
        crashed = self.folder / "crashed"
        crashed.mkdir(exist_ok=True)
        for suffix in ("", "-wal"):
            (crashed / f"{self.path.name}{suffix}").unlink(missing_ok=True)
            if Path(f"{self.path}{suffix}").exists():
                shutil.copy(f"{self.path}{suffix}", crashed)
        with Journal(crashed / self.path.name) as found:
            for key, lease in self.leases.items():
                record = found.lease(key)
                assert dataclasses.replace(record, ended_ns=None) == lease
                assert (record.ended_ns is not None) == lease.ended
                newest = found.voucher(key)
                assert (newest.voucher.amount if newest else 0) == self.paid[key]
                assert found.voucher_count(key) == self.count[key]
            for role in ("payer", "payee"):
                ours = [lease for lease in self.leases.values() if lease.role == role]
                assert {r.channel_id for r in found.open_leases(role)} == {
                    x.channel_id for x in ours if not x.ended
                }
                assert {r.channel_id for r in found.unsettled(role)} == {
                    x.channel_id for x in ours if x.ended and x.channel_id not in self.settled
                }
            assert {each.channel_id for each in found.receipts()} == self.settled

    def teardown(self):
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.folder)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_write_that_is_cut_at_any_byte_leaves_the_books_before_it(data):
    with tempfile.TemporaryDirectory() as name:
        path, torn = Path(name) / "journal.sqlite", Path(name) / "torn.sqlite"
        with Journal(path) as journal:
            journal.save_lease(of_payer())
            wal = Path(f"{path}-wal")
            sizes = [wal.stat().st_size]
            for amount in range(1, 6):
                journal.save_voucher(voucher(amount))
                sizes.append(wal.stat().st_size)
            cut = data.draw(st.integers(sizes[0], sizes[-1]))
            shutil.copy(path, torn)
            Path(f"{torn}-wal").write_bytes(wal.read_bytes()[:cut])
        whole = max(n for n, size in enumerate(sizes) if size <= cut)
        with Journal(torn) as journal:
            assert journal.voucher(lease_id(1)) == (voucher(whole) if whole else None)
            assert journal.voucher_count(lease_id(1)) == whole


WRITER = """
import sys
from pathlib import Path
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.voucher import VerifiedVoucher, Voucher

journal, lease = Journal(Path(sys.argv[1])), int(sys.argv[2]).to_bytes(32, "big")
last = journal.voucher_count(lease)
while last < int(sys.argv[3]):
    last += 1
    journal.save_voucher(VerifiedVoucher(Voucher(lease, last), last.to_bytes(65, "big")))
    print(last, flush=True)
"""

CLAIMER = """
import sys
from pathlib import Path
from jupyter_depin.journal import Journal

print(Journal(Path(sys.argv[1])).claim(int(sys.argv[2]).to_bytes(32, "big")), flush=True)
sys.stdin.read()
"""


def program(source: str, *arguments: object, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*before, sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_was_acknowledged_survives_kill_9(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
    acknowledged = 0
    for lines in (1, 2, 3, 7, 20, 60, 4, 33):
        with program(WRITER, path, 1, 10**9) as writer:
            for _ in range(lines):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            # Lines that were on their way; the last may be torn.
            for line in writer.stdout.read().splitlines(keepends=True):
                acknowledged = int(line) if line.endswith("\n") else acknowledged
        with Journal(path) as journal:
            held = journal.voucher_count(lease_id(1))
            assert held in (acknowledged, acknowledged + 1)
            assert journal.voucher(lease_id(1)) == voucher(held)


# -- several processes


def test_processes_that_write_at_once_lose_nothing(path):
    with Journal(path) as journal:
        for n in range(3):
            journal.save_lease(of_payer(n))
        writers = [program(WRITER, path, n, 50) for n in range(3)]
        for writer in writers:
            writer.communicate()
            assert writer.returncode == 0
        assert [journal.voucher_count(lease_id(n)) for n in range(3)] == [50, 50, 50]


def test_processes_that_make_the_journal_at_once_share_it(path):
    programs = [program("import sys, pathlib; " + MAKE, path, n) for n in range(4)]
    for each in programs:
        each.communicate()
        assert each.returncode == 0
    with Journal(path) as journal:
        assert len(journal.open_leases("payer")) == 4
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_a_journal_that_another_process_made_a_moment_ago_is_kept(path, monkeypatch):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with Journal(path) as journal:
        assert journal.lease(lease_id(1)) == of_payer()


MAKE = f"""sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_journal as t
t.Journal(pathlib.Path(sys.argv[1])).save_lease(t.of_payer(int(sys.argv[2])))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs waitid")
def test_a_lease_is_recovered_by_one_process(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
        with program(CLAIMER, path, 1) as late:
            assert late.stdout.readline() == "False\n"
        assert journal.claim(lease_id(1))
        journal.release(lease_id(1))
        with program(CLAIMER, path, 1) as owner:
            assert owner.stdout.readline() == "True\n"
            assert not journal.claim(lease_id(1))
            owner.kill()
            # Wait for its death without collecting it: a zombie, as after the crash of a terminal's child.
            os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
            assert journal.claim(lease_id(1))


def mark_files(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if "-owner-" in file.name]


def test_who_reads_a_journal_and_closes_it_keeps_what_the_process_holds(journal, path):
    journal.save_lease(of_payer())
    journal.save_kernel(lease_id(1), KERNEL)
    with Journal(path) as reader:
        assert reader.running()[0].held
    with program(CLAIMER, path, 1) as other:
        assert other.stdout.readline() == "False\n"


def test_with_the_last_journal_that_a_process_closes_its_leases_are_nobodys(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
        journal.save_kernel(lease_id(1), KERNEL)
        assert journal.running()[0].held
    assert mark_files(path) == []
    with Journal(path) as journal:
        assert not journal.running()[0].held


IN_ANOTHER_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def can_be_in_another_container() -> bool:
    try:
        return (
            subprocess.run([*IN_ANOTHER_CONTAINER, "true"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


@pytest.mark.skipif(not can_be_in_another_container(), reason="no process namespaces here")
def test_two_containers_with_one_home_do_not_take_each_others_rentals(path):
    """Either is process 1 in its own, and knows none of the other's."""
    with Journal(path) as journal:
        journal.save_lease(of_payer())
    with program(CLAIMER, path, 1, before=IN_ANOTHER_CONTAINER) as one:
        assert one.stdout.readline() == "True\n"
        with program(CLAIMER, path, 1, before=IN_ANOTHER_CONTAINER) as other:
            assert other.stdout.readline() == "False\n"
        with Journal(path) as outside:
            assert not outside.claim(lease_id(1))


FORKER = """
import os, sys
from pathlib import Path
from jupyter_depin.journal import Journal

journal, lease = Journal(Path(sys.argv[1])), int(sys.argv[2]).to_bytes(32, "big")
journal.claim(lease)
if os.fork() == 0:
    print(journal.claim(lease), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing_of_its_parents(path):
    with Journal(path) as journal:
        journal.save_lease(of_payer())
        journal.release(lease_id(1))
        with program(FORKER, path, 1) as parent:
            assert parent.stdout.readline() == "False\n"
            assert not journal.claim(lease_id(1))
            parent.kill()
            os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
            assert journal.claim(lease_id(1)), "the child lives on and has nothing"


def test_what_dead_processes_left_is_swept_by_the_next(path):
    with Journal(path) as journal:
        for n in (1, 2):
            journal.save_lease(of_payer(n))
            journal.release(lease_id(n))
        left = set(mark_files(path))
        with program(CLAIMER, path, 1) as dead:
            assert dead.stdout.readline() == "True\n"
            dead.kill()
            dead.wait()
        assert len(mark_files(path)) == 2
        with program(CLAIMER, path, 2) as next_one:
            assert next_one.stdout.readline() == "True\n"
            assert len(set(mark_files(path)) - left) == 1, "its own"
            assert not journal.claim(lease_id(2))


def test_a_running_program_of_an_older_version_keeps_its_journal(tmp_path):
    path = tmp_path / "journal.sqlite"
    of_an_earlier_version(path)
    with contextlib.closing(sqlite3.connect(path)) as old:
        me = psutil.Process()
        old.execute("UPDATE lease SET owner_pid = ?, owner_start = ?", (me.pid, me.create_time()))
        old.commit()
        with pytest.raises(JournalInUse, match=str(me.pid)):
            Journal(path)
        old.execute("UPDATE lease SET owner_start = owner_start - 1000")
        old.commit()
    with Journal(path) as journal:
        assert journal.claim(lease_id(1)), "the process id has come back as another's"
