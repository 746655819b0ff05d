"""What a starting server looks for, and that it comes up whatever it finds. With real kernels: tests/e2e."""

from __future__ import annotations

import json
import logging

import pytest

from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import LeaseEnded
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.record import LaunchedKernel, Where
from jupyter_depin.server import taking_up
from jupyter_depin.server.taking_up import put_back
from tests.test_journal import lease_id, of_payer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A renter's home, named by a kernel spec of its own."""
    home = tmp_path / "depin"
    folder = tmp_path / "data" / "kernels" / "rented"
    folder.mkdir(parents=True)
    provisioner = {"provisioner_name": "depin-provisioner", "config": {"home": str(home)}}
    spec = {
        "argv": ["x"],
        "display_name": "x",
        "language": "python",
        "metadata": {"kernel_provisioner": provisioner},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    return home


def write_down(journal, root, kernel_name="rented"):
    journal.save_lease(of_payer())
    where = Where(kernel_name, str(root), f"{root}/a.ipynb")
    journal.save_kernel(lease_id(1), LaunchedKernel(1, b"key", "hmac-sha256", where))


def leave_behind(home, root, *, kernel_name="rented"):
    with Journal(home / "journal.sqlite") as journal:
        write_down(journal, root, kernel_name)


async def found(serverapp, caplog) -> str:
    """What the log says of taking up, if anything was tried."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "jupyter_depin.server.taking_up"):
        await put_back(serverapp)
    assert len(serverapp.kernel_manager) == 0
    return caplog.text


async def test_without_a_journal_nothing_is_looked_for(home, jp_serverapp, caplog):
    assert await found(jp_serverapp, caplog) == ""
    assert not home.exists()


@pytest.mark.parametrize(
    ("folder", "options"),
    [("elsewhere", {}), ("", {"kernel_name": "removed"})],
    ids=["another folder's", "of a kernel spec that is gone"],
)
async def test_what_is_not_this_servers_is_left_alone(
    home, jp_serverapp, jp_root_dir, caplog, folder, options
):
    leave_behind(home, jp_root_dir / folder, **options)
    assert await found(jp_serverapp, caplog) == ""


async def test_what_a_running_program_holds_is_left_alone(home, jp_serverapp, jp_root_dir, caplog):
    with Journal(home / "journal.sqlite") as journal:
        write_down(journal, jp_root_dir)
        assert await found(jp_serverapp, caplog) == ""


async def test_what_cannot_be_taken_up_is_said_in_one_line(home, jp_serverapp, jp_root_dir, caplog):
    leave_behind(home, jp_root_dir)
    said = await found(jp_serverapp, caplog)
    assert f"rented kernels in {home} cannot be taken up: No payment network is set up" in said
    assert "Traceback" not in said
    with Journal(home / "journal.sqlite") as journal:
        assert not journal.running()[0].held


async def test_a_damaged_journal_does_not_keep_the_server_from_starting(home, jp_serverapp, caplog):
    home.mkdir()
    (home / "journal.sqlite").write_text("notes")
    assert "it is no SQLite file" in await found(jp_serverapp, caplog)


async def test_what_is_gone_by_then_is_not_rented_anew(home, jp_serverapp, jp_root_dir, caplog, monkeypatch):
    """Recovery may have ended it since it was found; a server's start must not cost anybody a new deposit."""
    leave_behind(home, jp_root_dir)
    rented = []

    async def nothing_left(*_):
        return None

    async def rent(*arguments):
        rented.append(arguments)
        raise LeaseEnded(reason="this must not happen")

    monkeypatch.setattr(taking_up, "_prepared", lambda found, settings: found)
    monkeypatch.setattr(Runtime, "take_up", nothing_left)
    monkeypatch.setattr(Runtime, "rent", rent)
    said = await found(jp_serverapp, caplog)
    assert "was not taken up: There is no rental" in said
    assert rented == []
