"""The output journal's files: what is written is read, nobody else sees it, and what fails is missing and no more."""

from __future__ import annotations

import os
import resource
import signal
import stat
import struct

import pytest

from provider_kernel.spool import Spool


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output" / "lease"


def files(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_messages_come_back_in_order_and_whole(folder):
    spool = Spool(folder)
    messages = [[b"a", b"", bytes(range(256)) * 1000], [memoryview(b"view")], [b"x"] * 3000]
    for message in messages:
        assert spool.append(1, message)
    assert spool.append(2, [b"next"])
    assert [spool.read(1) for _ in messages] == [[bytes(part) for part in m] for m in messages]
    assert spool.read(1) is None
    assert spool.read(2) == [b"next"]


def test_a_piece_is_read_while_it_is_written(folder):
    spool = Spool(folder)
    for i in range(100):
        assert spool.append(7, [b"%d" % i, bytes(i)])
        assert spool.read(7) == [b"%d" % i, bytes(i)]


def test_the_folder_is_made_with_the_first_message_for_the_owner_alone_and_goes_at_the_end(folder):
    spool = Spool(folder)
    assert not folder.exists()
    spool.append(1, [b"private"])
    spool.append(2, [b"private"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(folder)} == {0o600}
    spool.remove(1)
    assert len(files(folder)) == 1
    spool.remove(2)
    spool.remove(3)
    assert files(folder) == []
    spool.append(4, [b"more"])
    spool.close()
    spool.close()
    assert not folder.exists()


def test_a_torn_record_is_missing_with_what_follows(folder):
    spool = Spool(folder)
    spool.append(1, [b"whole"])
    spool.append(1, [b"torn", bytes(1000)])
    spool.append(2, [b"next"])
    file = files(folder)[0]
    os.truncate(file, file.stat().st_size - 1)
    assert spool.read(1) == [b"whole"]
    assert spool.read(1) is None
    assert spool.read(2) == [b"next"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0\0",
        struct.pack(">I", 0),
        struct.pack(">I", 1 << 31),
        struct.pack(">II", 2, 1),
        struct.pack(">II", 1, (1 << 32) - 1),
        struct.pack(">II", 1, 100) + b"short",
    ],
)
def test_garbage_is_no_message(folder, garbage):
    spool = Spool(folder)
    spool.append(1, [b"x"])
    spool.append(2, [b"x"])
    files(folder)[0].write_bytes(garbage)
    assert spool.read(1) is None
    spool.remove(1)
    assert spool.read(2) == [b"x"]


def test_a_file_that_is_gone_is_missing(folder, caplog):
    spool = Spool(folder)
    spool.append(1, [b"x"])
    spool.append(2, [b"x"])
    files(folder)[0].unlink()
    assert spool.read(1) is None
    assert "cannot be read" in caplog.text


def test_a_disk_that_takes_no_more_is_no_error(folder, caplog):
    """The system's own limit of a file's size stands for a full disk: both fail in the write."""
    spool = Spool(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        assert spool.append(1, [b"fits"])
        assert not spool.append(1, [bytes(1 << 20)])
        assert spool.append(2, [b"small"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "output is not kept" in caplog.text
    assert spool.read(1) == [b"fits"]
    assert spool.read(2) == [b"small"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, caplog):
    (tmp_path / "output").write_text("a file is in its place")
    spool = Spool(tmp_path / "output" / "lease")
    assert not spool.append(1, [b"x"])
    assert spool.read(1) is None
    spool.remove(1)
    spool.close()
