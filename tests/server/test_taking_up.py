"""What a starting server looks for, and that it comes up whatever it finds. With real kernels: tests/e2e."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time

import pytest

from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import ChainUnreachable, ConnectionLost, LeaseEnded
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.record import LaunchedKernel, Where
from jupyter_depin.server import taking_up
from jupyter_depin.server.taking_up import put_back
from tests.test_journal import lease_id, of_payer


@pytest.fixture
def kernel_spec(tmp_path, monkeypatch):
    """Writes a kernel spec whose metadata says who provides its kernels."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_DEPIN_HOME", str(tmp_path / "nobody's"))

    def write(provisioner, name="rented"):
        folder = tmp_path / "data" / "kernels" / name
        folder.mkdir(parents=True)
        metadata = {"kernel_provisioner": provisioner}
        spec = {"argv": ["x"], "display_name": "x", "language": "python", "metadata": metadata}
        (folder / "kernel.json").write_text(json.dumps(spec))

    return write


@pytest.fixture
def home(tmp_path, kernel_spec):
    """A renter's home, named by a kernel spec of its own."""
    home = tmp_path / "depin"
    kernel_spec({"provisioner_name": "depin-provisioner", "config": {"home": str(home)}})
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
    assert "was not taken up: No payment network is set up" in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    with Journal(home / "journal.sqlite") as journal:
        assert not journal.running()[0].held


async def test_a_damaged_journal_does_not_keep_the_server_from_starting(home, jp_serverapp, caplog):
    home.mkdir()
    (home / "journal.sqlite").write_text("notes")
    assert "it is no SQLite file" in await found(jp_serverapp, caplog)


@pytest.fixture
def network(monkeypatch):
    """What the payment network and the provider say, in turn; taking up ends with the last word."""
    words = []

    async def ended(self, settings, channel_id):
        word = words.pop(0) if len(words) > 1 else words[0]
        if isinstance(word, Exception):
            raise word
        return word

    monkeypatch.setattr(Runtime, "ended", ended)
    monkeypatch.setattr(taking_up, "_RETRY_S", (0,))
    return words


@pytest.fixture
def started(jp_serverapp, monkeypatch):
    """The ids of the kernels that the server was told to start, none of which it has."""
    ids = []

    async def start_kernel(*, kernel_id=None, **_):
        ids.append(kernel_id)
        raise LeaseEnded(reason="this test has no kernels")

    monkeypatch.setattr(jp_serverapp.kernel_manager, "start_kernel", start_kernel)
    return ids


async def test_what_is_gone_by_then_is_not_rented_anew(
    home, network, jp_serverapp, jp_root_dir, caplog, monkeypatch
):
    """Recovery may have ended it since it was found; a server's start must not cost anybody a new deposit."""
    leave_behind(home, jp_root_dir)
    network.append(False)
    rented = []

    async def nothing_left(*_):
        return None

    async def rent(*arguments):
        rented.append(arguments)
        raise LeaseEnded(reason="this must not happen")

    monkeypatch.setattr(Runtime, "take_up", nothing_left)
    monkeypatch.setattr(Runtime, "rent", rent)
    said = await found(jp_serverapp, caplog)
    assert "was not taken up: There is no rental" in said
    assert rented == []


async def test_what_the_ledger_has_closed_brings_no_kernel_back(
    home, network, started, jp_serverapp, jp_root_dir, caplog
):
    leave_behind(home, jp_root_dir)
    network.append(True)
    assert await found(jp_serverapp, caplog) == ""
    assert started == []


# -- a network that is late


async def test_a_network_that_is_late_is_waited_for(
    home, network, started, jp_serverapp, jp_root_dir, caplog
):
    leave_behind(home, jp_root_dir)
    late = ChainUnreachable(url="http://localhost", reason="no route")
    network += [late, ConnectionLost(detail="nobody answers"), late, False]
    await found(jp_serverapp, caplog)
    assert started == ["kernel-7"]


async def test_what_is_kept_no_longer_is_tried_no_longer(
    home, network, started, jp_serverapp, jp_root_dir, caplog, monkeypatch
):
    leave_behind(home, jp_root_dir)
    network.append(ConnectionLost(detail="nobody answers"))
    times = iter(range(0, 1000, 25))
    monkeypatch.setattr(taking_up, "unix_ns", lambda: time.time_ns() + next(times) * 10**9)
    said = await found(jp_serverapp, caplog)
    assert said.count("is tried again") == 3, "of a grace of 60 s, in steps of 25"
    assert "was not taken up: The link to the other side was lost (nobody answers)" in said
    assert started == []


async def test_what_another_program_has_taken_up_meanwhile_is_tried_no_longer(
    home, network, started, jp_serverapp, jp_root_dir, caplog, monkeypatch
):
    leave_behind(home, jp_root_dir)
    with Journal(home / "journal.sqlite") as other:

        async def ended(*_):
            other.claim(lease_id(1))
            raise ConnectionLost(detail="nobody answers")

        monkeypatch.setattr(Runtime, "ended", ended)
        said = await found(jp_serverapp, caplog)
    assert said.count("is tried again") == 1
    assert "was not taken up" not in said


async def test_requests_are_answered_while_the_network_is_waited_for(
    home, network, jp_serverapp, jp_root_dir, jp_fetch, monkeypatch
):
    leave_behind(home, jp_root_dir)
    asked, answered = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def ended(*_):
        loop.call_soon_threadsafe(asked.set)
        await asyncio.to_thread(answered.wait)
        return True

    monkeypatch.setattr(Runtime, "ended", ended)
    putting_back = asyncio.create_task(put_back(jp_serverapp))
    await asked.wait()
    try:
        response = await jp_fetch("api", "status")
        assert response.code == 200
        assert not putting_back.done()
    finally:
        answered.set()
    await putting_back


async def test_a_browser_gets_the_kernel_that_is_put_back_and_no_other(
    home, network, jp_serverapp, jp_root_dir, jp_fetch, monkeypatch
):
    """It asks for one as soon as the server answers, and the network is slow."""
    (jp_root_dir / "a.ipynb").write_text("{}")
    leave_behind(home, jp_root_dir)
    sessions, kernels = jp_serverapp.session_manager, jp_serverapp.kernel_manager
    asked, answered, created = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    async def ended(*_):
        loop.call_soon_threadsafe(asked.set)
        await asyncio.to_thread(answered.wait)
        return False

    async def start_kernel(**_):
        return "kernel-7"

    async def create_session(path, kernel_id=None, **_):
        created.append(kernel_id)
        return {"id": "s", "path": path, "kernel": {"id": kernel_id or "another"}}

    async def session_exists(path):
        return bool(created)

    async def get_session(**_):
        return {"id": "s", "path": "a.ipynb", "kernel": {"id": created[0]}}

    monkeypatch.setattr(Runtime, "ended", ended)
    monkeypatch.setattr(kernels, "start_kernel", start_kernel)
    for each in (create_session, session_exists, get_session):
        monkeypatch.setattr(type(sessions), each.__name__, staticmethod(each))
    putting_back = asyncio.create_task(put_back(jp_serverapp))
    await asked.wait()
    body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "rented"}}
    wish = asyncio.ensure_future(jp_fetch("api", "sessions", method="POST", body=json.dumps(body)))
    try:
        other = await jp_fetch("api", "sessions")
        assert json.loads(other.body) == [], "what starts no kernel is answered"
        assert not wish.done()
    finally:
        answered.set()
    assert json.loads((await wish).body)["kernel"]["id"] == "kernel-7"
    await putting_back
    assert created == ["kernel-7"]
    assert "session_exists" not in vars(sessions)


async def test_a_notebook_that_has_another_kernel_by_now_keeps_it(
    home, network, started, jp_serverapp, jp_root_dir, caplog, monkeypatch
):
    leave_behind(home, jp_root_dir)
    network += [ConnectionLost(detail="nobody answers"), False]

    async def list_sessions():
        return [{"path": "a.ipynb", "kernel": {"id": "another"}}]

    monkeypatch.setattr(jp_serverapp.session_manager, "list_sessions", list_sessions)
    said = await found(jp_serverapp, caplog)
    assert "is left to `jupyter depin attach`: a.ipynb has another kernel" in said
    assert started == []


# -- where it is looked


async def test_a_home_that_only_the_servers_configuration_names_is_looked_at(
    tmp_path, network, started, jp_serverapp, jp_root_dir, caplog, kernel_spec
):
    kernel_spec({"provisioner_name": "depin-provisioner"})
    home = tmp_path / "configured"
    jp_serverapp.kernel_manager.config.DepinProvisioner.home = str(home)
    leave_behind(home, jp_root_dir)
    network.append(False)
    await found(jp_serverapp, caplog)
    assert started == ["kernel-7"]


@pytest.mark.parametrize("stanza", [None, {}, [], {"provisioner_name": "depin-provisioner", "config": None}])
async def test_a_kernel_spec_that_is_odd_does_not_keep_others_from_being_put_back(
    home, network, started, jp_serverapp, jp_root_dir, caplog, kernel_spec, stanza
):
    kernel_spec(stanza, name="odd")
    leave_behind(home, jp_root_dir)
    network.append(False)
    await found(jp_serverapp, caplog)
    assert started == ["kernel-7"]
