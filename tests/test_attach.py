"""`jupyter depin attach` where there is little to attach to. With real processes: tests/e2e/test_taking_up.py."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jupyter_depin import attach
from jupyter_depin.cli import main
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.record import LaunchedKernel, Where
from tests.test_journal import lease_id, of_payer, voucher

KERNEL = LaunchedKernel(
    1, b"secret of the kernel", "hmac-sha256", Where("rented", "/notes", "/notes/a.ipynb")
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DEPIN_HOME", str(tmp_path / "depin"))
    return ConsumerConfig.load()


@pytest.fixture
def books(config):
    """Two running kernels: the first is held by this process, the second by nobody."""
    with Journal(config.journal) as journal:
        for n in (1, 2):
            record = dataclasses.replace(of_payer(n), channel_id=bytes([n]) * 32)
            journal.save_lease(record)
            journal.save_kernel(record.channel_id, KERNEL)
        journal.release(b"\2" * 32)
        yield journal


def test_where_nothing_runs_there_is_nothing_to_take_up(capsys, config):
    assert main(["attach"]) == main(["attach", "--json"]) == 0
    assert capsys.readouterr().out == "There is nothing to take up.\n"
    assert main(["attach", "abcd"]) == 1
    assert capsys.readouterr().err == (
        "jupyter-depin: There is no rental abcd here. `jupyter depin rentals` lists those that exist.\n"
    )
    assert not config.home.exists()


def test_running_kernels_are_listed_and_who_holds_them(capsys, books):
    assert main(["attach"]) == 0
    first, second, hint = capsys.readouterr().out.splitlines()
    assert first == f"{'01' * 8}  A card — 24 GB  0 DEMO  /notes/a.ipynb  held by a running program of yours"
    assert second.endswith("/notes/a.ipynb  can be taken up")
    assert hint == "`jupyter depin attach RENTAL` takes one up."


def test_a_kernel_that_another_program_holds_is_left_with_its_connection_file(
    capsys, books, monkeypatch, tmp_path
):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    mine = tmp_path / f"kernel-{books.running()[0].lease.kernel_id}.json"
    mine.write_text("the server's")
    assert main(["attach", "0101"]) == 1
    assert "is held by another running program of yours" in capsys.readouterr().err
    assert mine.read_text() == "the server's"


def test_the_list_as_json_has_no_secret(capsys, config):
    with Journal(config.journal) as journal:
        journal.save_lease(of_payer())
        journal.save_kernel(lease_id(1), KERNEL)
        journal.save_voucher(voucher(2**70))
        said: list[str] = []
        attach.show(config, as_json=True, say=said.append)
    (row,) = map(json.loads, said)
    assert row["rental"] == lease_id(1).hex()
    assert (row["paid"], row["held"], row["kernel_id"]) == (str(2**70), True, "kernel-7")
    assert "secret" not in said[0]


@pytest.mark.parametrize("words", [["--leave"], ["--existing-file", "f"]])
def test_some_options_need_a_rental(capsys, config, words):
    assert main(["attach", *words]) == 1
    assert "--existing-file and --leave go with RENTAL" in capsys.readouterr().err


def test_a_file_that_is_there_is_not_overwritten(capsys, books, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("notes")
    assert main(["attach", "0202", "--existing-file", str(mine)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert mine.read_text() == "notes"
