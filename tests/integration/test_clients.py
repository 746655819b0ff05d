"""What people do with a kernel through Jupyter's own clients, done with a rented one."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import LocalPortCache
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import start_new_kernel
from traitlets.config import Config
from zmq.utils.monitor import parse_monitor_message

from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.provisioner import DepinProvisioner
from tests.integration.talk import PATIENCE_S, launched

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such signals and sockets there")

RENTED = "import psutil; print(any('provider_kernel' in p.cmdline() for p in psutil.Process().parents()))"
"""Prints True in a kernel that an agent started."""

PID = "import os; print(os.getpid())"
SLEEP = "import time\nprint('began', flush=True)\ntime.sleep(3600)"


def rentals_open() -> set[str]:
    return {status.id for status in Runtime.get().snapshot() if status.state != "ended"}


async def until(happened: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await happened.wait()


# -- one kernel, several clients


async def test_a_kernel_is_rented_and_runs_cells(start: Any) -> None:
    async with start() as talk:
        assert (await talk.run(RENTED)).text == "True\n"
        assert (await talk.run("1/0")).error == "ZeroDivisionError"


async def test_input_is_asked_of_the_client_that_ran_the_cell(start: Any) -> None:
    async with start() as talk, talk.another_client() as other:
        assert (await talk.run("print(input('name? '))", answer="Ada")).text == "Ada\n"
        assert (await talk.run("print(input('name? '))", client=other, answer="Grace")).text == "Grace\n"


async def test_two_clients_see_each_others_output_and_only_their_own_replies(start: Any) -> None:
    async with start() as talk, talk.another_client() as other:
        await talk.run("x = 42")
        said = await talk.run("print(x)", client=other)
        assert said.text == "42\n"
        texts = []
        while "42\n" not in texts:
            message = await talk.client.get_iopub_msg(timeout=PATIENCE_S)
            texts.append(message["content"].get("text"))
        assert not await talk.client.shell_channel.msg_ready()


@posix
async def test_no_output_is_lost_while_nobody_reads(tmp_path: Path) -> None:
    """A local kernel drops two thirds of these for a client that does not read: its queues hold a thousand messages at each end.

    Here one client does not read, and the provider's machine stands still as long as the cell runs.
    """

    async def stand_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agent.suspend()
        writer.write(b"go")
        await reader.read()
        agent.resume()
        writer.close()

    listener = await asyncio.start_server(stand_still, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    code = f"""
import socket
line = socket.create_connection(("127.0.0.1", {port}))
line.recv(2)
for i in range(20_000):
    display(i)
line.close()
"""
    async with listener, launched(tmp_path / "kernel-1.json") as (process, talk):
        (agent,) = psutil.Process(process.pid).children()
        async with talk.another_client() as prompt:
            assert (await talk.run(code, client=prompt)).status == "ok"
        seen: list[str] = []
        while len(seen) < 20_000:
            message = await talk.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["msg_type"] == "display_data":
                seen.append(message["content"]["data"]["text/plain"])
        assert seen == [str(i) for i in range(20_000)]


async def test_an_interrupt_does_not_wait_behind_a_hundred_megabytes(start: Any) -> None:
    under_way = asyncio.Event()
    listener = await asyncio.start_server(lambda _, writer: (under_way.set(), writer.close()), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    code = f"""
import socket, time
kernel = get_ipython().kernel
content = {{"data": {{}}, "metadata": {{}}}}
kernel.session.send(
    kernel.iopub_socket, "display_data", content, kernel.get_parent(), buffers=[bytes(100_000_000)]
)
socket.create_connection(("127.0.0.1", {port})).close()
time.sleep(3600)
"""
    async with listener, start() as talk, asyncio.TaskGroup() as tasks:
        cell = tasks.create_task(talk.run(code))
        await until(under_way)
        await talk.manager.interrupt_kernel()
        ran = await cell
        assert ran.error == "KeyboardInterrupt"
        assert [len(buffer) for message in ran.messages for buffer in message["buffers"]] == [100_000_000]


# -- its life


async def test_a_cell_is_interrupted_by_a_signal_and_by_a_message(start: Any) -> None:
    for mode in ("signal", "message"):
        manager = AsyncKernelManager(kernel_name="python3")
        manager.kernel_spec.interrupt_mode = mode
        async with start(manager) as talk:
            began = asyncio.Event()

            async with asyncio.TaskGroup() as tasks:
                cell = tasks.create_task(talk.run(SLEEP, on_text=lambda _, began=began: began.set()))
                await until(began)
                await talk.manager.interrupt_kernel()
            assert cell.result().error == "KeyboardInterrupt"


@pytest.mark.parametrize("now", [True, False])
async def test_a_restart_keeps_the_rental_and_forgets_the_variables(start: Any, now: bool) -> None:
    async with start() as talk:
        before = rentals_open()
        first = await talk.run("x = 1\n" + PID)
        await talk.manager.restart_kernel(now=now)
        await talk.client.wait_for_ready(timeout=PATIENCE_S)
        second = await talk.run(PID)
        assert second.text != first.text
        assert (await talk.run("x")).error == "NameError"
        assert rentals_open() == before


@pytest.mark.parametrize("end", ["quit()", "import os; os._exit(1)", "import os; os.kill(os.getpid(), 9)"])
async def test_a_kernel_that_ends_by_itself_is_started_again_in_the_same_rental(start: Any, end: str) -> None:
    config = Config({"KernelRestarter": {"random_ports_until_alive": False, "time_to_dead": 0.5}})
    manager = AsyncIOLoopKernelManager(kernel_name="python3", config=config)
    restarting = asyncio.Event()
    async with start(manager) as talk:
        manager.add_restart_callback(restarting.set, "restart")
        before = rentals_open()
        first = await talk.run("x = 1\n" + PID)
        talk.client.execute(end)
        await until(restarting)
        # It waits for the kernel that is to come, as with a local one.
        await talk.client.kernel_info(reply=True, timeout=PATIENCE_S)
        second = await talk.run(PID)
        assert second.text not in ("", first.text)
        assert rentals_open() == before
        manager.stop_restarter()


async def test_shutdown_ends_the_rental_with_a_receipt(start: Any) -> None:
    before = rentals_open()
    async with start() as talk:
        (rental,) = rentals_open() - before
        await talk.manager.shutdown_kernel()
    (status,) = [s for s in Runtime.get().snapshot() if s.id == rental]
    assert status.state == "ended"
    assert status.receipt is not None


# -- its sockets


@posix
async def test_a_client_that_ignores_provisioners_chooses_the_ports(tmp_path: Path) -> None:
    path = tmp_path / "kernel-1.json"
    async with launched(path) as (process, talk):
        before = path.read_text()
        assert (await talk.run(RENTED)).text == "True\n"
        began = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            cell = tasks.create_task(talk.run(SLEEP, on_text=lambda _: began.set()))
            await until(began)
            process.send_signal(signal.SIGINT)
        assert cell.result().error == "KeyboardInterrupt"
        assert path.read_text() == before


async def test_a_port_that_was_taken_meanwhile_is_replaced(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        taken = rival.getsockname()[1]
        find = LocalPortCache.find_available_port
        chosen = iter([taken])
        monkeypatch.setattr(
            LocalPortCache, "find_available_port", lambda self, ip: next(chosen, None) or find(self, ip)
        )
        async with start() as talk:
            assert (await talk.run(RENTED)).text == "True\n"
            assert taken not in talk.manager.ports
            async with talk.another_client() as other:
                assert (await talk.run("print(1)", client=other)).text == "1\n"


@posix
async def test_clients_may_use_ipc(start: Any) -> None:
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc")
    async with start(manager) as talk:
        sockets = [Path(f"{manager.ip}-{port}") for port in manager.ports]
        assert all(stat.S_ISSOCK(path.stat().st_mode) for path in sockets)
        assert (await talk.run(RENTED)).text == "True\n"
        assert (await talk.run("print(input())", answer="through ipc")).text == "through ipc\n"
        await talk.manager.restart_kernel()
        await talk.client.wait_for_ready(timeout=PATIENCE_S)
        assert (await talk.run("print(1)")).text == "1\n"


REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_DISCONNECTED,
)


async def handshake(url: str) -> str:
    """What becomes of a socket that speaks in plain."""
    context = zmq.asyncio.Context()
    try:
        socket = context.socket(zmq.DEALER)
        events = socket.get_monitor_socket()
        socket.connect(url)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = parse_monitor_message(await events.recv_multipart())["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return "taken"
                if event in REFUSALS:
                    return "refused"
    finally:
        context.destroy(0)


async def test_clients_may_require_encryption(start: Any) -> None:
    manager = AsyncKernelManager(kernel_name="python3", transport_encryption="required")
    async with start(manager) as talk:
        assert (await talk.run(RENTED)).text == "True\n"
        async with talk.another_client() as other:
            assert (await talk.run("print(2)", client=other)).text == "2\n"
        # A client of Jupyter's would wait for ever: once it is refused, its sockets have nobody to send to.
        info = talk.manager.get_connection_info()
        for channel in ("shell", "control", "stdin", "iopub", "hb"):
            assert await handshake(f"tcp://{info['ip']}:{info[channel + '_port']}") == "refused"
        await talk.manager.restart_kernel()
        await talk.client.wait_for_ready(timeout=PATIENCE_S)
        assert (await talk.run("print(3)")).text == "3\n"


# -- what it knows of this machine


async def test_a_loopback_kernel_has_the_environment_and_folder_that_it_was_given(
    start: Any, tmp_path: Path
) -> None:
    async with start(env={**os.environ, "AWS_SECRET": "s3cret"}, cwd=str(tmp_path)) as talk:
        said = await talk.run("import os; print(os.environ['AWS_SECRET'], os.getcwd())")
        assert said.text == f"s3cret {tmp_path}\n"


@posix
async def test_a_providers_kernel_knows_only_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET", "s3cret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    async with launched(tmp_path / "kernel-1.json") as (_, talk):
        said = await talk.run("import os; print(os.environ.get('AWS_SECRET'), os.environ.get('TZ'))")
        assert said.text == "None Asia/Tokyo\n"


async def test_the_provisioner_sends_neither_environment_nor_folder_nor_command(tmp_path: Path) -> None:
    sent: dict[str, Any] = {}

    class Rental:
        async def launch(self, local: LocalInfo, **order: Any) -> None:
            sent.update(order)

    manager = AsyncKernelManager(kernel_name="python3")
    manager.write_connection_file()
    provisioner = DepinProvisioner(home=str(tmp_path), kernel_id="1", parent=manager)
    provisioner.connection_info = manager.get_connection_info()
    environment = {"AWS_SECRET": "s3cret", "JPY_SESSION_NAME": "/home/ada/x.ipynb", "LANG": "C.UTF-8"}
    await provisioner._launch(Rental(), ["python"], {"env": environment, "cwd": "/home/ada"})  # type: ignore[arg-type]
    # Where the notebook lies goes into this machine's journal.
    del sent["where"]
    assert sent == {"env": {"LANG": "C.UTF-8"}, "argv": None, "cwd": None}
    manager.cleanup_connection_file()


# -- programs


async def ran(*command: str, stdin: str = "", cwd: Path) -> str:
    """What a program prints; on standard error it may say what it likes, but for tracebacks."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode == 0, err.decode()
    assert b"Traceback" not in err, err.decode()
    return out.decode()


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[..., Path]:
    def write(*cells: str, name: str = "in.ipynb", first_tags: tuple[str, ...] = ()) -> Path:
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook

        made = new_notebook(
            cells=[new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        )
        made.cells[0].metadata["tags"] = list(first_tags)
        nbformat.write(made, tmp_path / name)
        return tmp_path / name

    return write


def texts(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(out.get("text", [])) for cell in cells for out in cell.get("outputs", [])]


async def test_papermill(notebook: Callable[..., Path], tmp_path: Path) -> None:
    path = notebook("who = 'nobody'", "print(who)", RENTED, first_tags=("parameters",))
    await ran("-m", "papermill", str(path), "out.ipynb", "-p", "who", "Ada", cwd=tmp_path)
    assert texts(tmp_path / "out.ipynb") == ["Ada\n", "True\n"]


async def test_nbconvert_execute(notebook: Callable[..., Path], tmp_path: Path) -> None:
    path = notebook("print(6 * 7)", RENTED)
    await ran("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(path), cwd=tmp_path)
    assert texts(path) == ["42\n", "True\n"]


async def test_jupyter_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"print(6 * 7)\n{RENTED}\n")
    program = "from jupyter_client.runapp import RunApp; RunApp.launch_instance()"
    assert await ran("-c", program, "script.py", cwd=tmp_path) == "42\nTrue\n"


async def test_jupyter_console(tmp_path: Path) -> None:
    typed = f"print(6 * 7)\n{RENTED}\nprint(input('who? '))\nAda\nexit\n"
    said = await ran("-m", "jupyter_console", "--simple-prompt", stdin=typed, cwd=tmp_path)
    assert "42" in said
    assert "True" in said
    assert "Ada" in said


async def test_a_console_joins_an_existing_kernel(start: Any, tmp_path: Path) -> None:
    async with start() as talk:
        await talk.run("x = 41")
        said = await ran(
            "-m",
            "jupyter_console",
            "--simple-prompt",
            "--existing",
            talk.manager.connection_file,
            stdin="x += 1\nprint('x is', x)\nexit(keep_kernel=True)\n",
            cwd=tmp_path,
        )
        assert "x is 42" in said
        assert (await talk.run("print(x)")).text == "42\n"


def work(number: int) -> str:
    manager, client = start_new_kernel(kernel_name="python3")
    said: list[str] = []
    client.execute_interactive(
        f"{RENTED}; print({number})",
        output_hook=lambda message: said.append(message["content"].get("text", "")),
        timeout=PATIENCE_S,
    )
    client.stop_channels()
    manager.shutdown_kernel()
    return "".join(said)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_rent_kernels_of_their_own() -> None:
    assert work(0) == "True\n0\n"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(work, [1, 2]).get(PATIENCE_S) == ["True\n1\n", "True\n2\n"]
    assert work(3) == "True\n3\n"
