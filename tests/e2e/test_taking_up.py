"""`jupyter_depin.server.taking_up`: a Jupyter server is killed, started again on its folder, and has its rented kernels
as it had them, with one bill for each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from jupyter_client import BlockingKernelClient
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from jupyter_depin.demo import KERNEL_NAME
from tests.e2e.test_crashes import assert_books_agree, has_receipt, until
from tests.e2e.world import World, free_port, hear, kill, tell, world

pytestmark = pytest.mark.timeout(300)

TOKEN = "for-this-test-only"


class Server:
    """A Jupyter server as a process of its own, and what a browser asks of it."""

    def __init__(self, w: World, root: Path, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}",
                f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                "--ServerApp.jpserver_extensions", "jupyter_depin.server=True",
            ],
            env=w.environment(), cwd=root, start_new_session=True,
        )  # fmt: skip
        w._running.append(self.process)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self._base + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request) as reply:
            content = reply.read()
        return json.loads(content) if content else None

    def answers(self) -> bool:
        try:
            self.ask("GET", "/api/status")
        except OSError:
            assert self.process.poll() is None
            return False
        return True

    def kernels(self) -> list[str]:
        return [each["id"] for each in self.ask("GET", "/api/kernels")]

    def execute(self, kernel_id: str, code: str) -> str:
        """Standard output of a cell, over a websocket as a browser has it."""

        async def run() -> str:
            session, said = uuid.uuid4().hex, ""
            socket = await websocket_connect(
                HTTPRequest(
                    f"{self._base.replace('http', 'ws')}/api/kernels/{kernel_id}/channels?session_id={session}",
                    headers={"Authorization": f"token {TOKEN}"},
                )
            )
            header = {
                "msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": session,
                "date": "2026-01-01T00:00:00Z", "version": "5.3",
            }  # fmt: skip
            content = {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
            }
            await socket.write_message(
                json.dumps(
                    {
                        "header": header,
                        "parent_header": {},
                        "metadata": {},
                        "content": content,
                        "channel": "shell",
                    }
                )
            )
            while True:
                text = await socket.read_message()
                assert text is not None
                message = json.loads(text)
                if message["parent_header"].get("msg_id") != header["msg_id"]:
                    continue
                if message["msg_type"] == "stream":
                    said += message["content"]["text"]
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    socket.close()
                    return said

        async def in_time() -> str:
            with anyio.fail_after(120):
                return await run()

        return anyio.run(in_time)


@contextmanager
def renting_server(folder: Path, **agent: int) -> Iterator[tuple[World, Path, int]]:
    root = folder / "work"
    root.mkdir()
    (root / "figures.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    with world(folder) as w:
        w.start_agent(**agent)
        yield w, root, free_port()


def open_notebook(server: Server) -> str:
    body = {
        "path": "figures.ipynb",
        "name": "figures.ipynb",
        "type": "notebook",
        "kernel": {"name": KERNEL_NAME},
    }
    return str(server.ask("POST", "/api/sessions", body)["kernel"]["id"])


def start(w: World, root: Path, port: int) -> Server:
    server = Server(w, root, port)
    until(server.answers)
    return server


def test_a_killed_server_comes_back_with_its_kernel_its_notebook_and_one_bill(tmp_path):
    with renting_server(tmp_path) as (w, root, port):
        first = start(w, root, port)
        kernel_id = open_notebook(first)
        assert first.execute(kernel_id, "x = 6 * 7; print('here')") == "here\n"

        kill(first.process)

        second = start(w, root, port)
        until(lambda: second.kernels() == [kernel_id])
        assert second.execute(kernel_id, "print(x)") == "42\n"
        (session,) = until(lambda: second.ask("GET", "/api/sessions"))
        assert (session["path"], session["type"]) == ("figures.ipynb", "notebook")
        assert session["kernel"]["id"] == kernel_id
        (shown,) = second.ask("GET", "/jupyter-depin/api/rentals")["rentals"]
        assert (shown["kernel_id"], shown["state"]) == (kernel_id, "running")

        second.ask("POST", f"/api/kernels/{kernel_id}/restart")
        assert second.execute(kernel_id, "print('x' in globals())") == "False\n"
        second.ask("DELETE", f"/api/kernels/{kernel_id}")
        assert assert_books_agree(w) > 0
        until(lambda: not w.kernels())


def test_a_lease_that_ended_meanwhile_brings_no_kernel_back(tmp_path):
    with renting_server(tmp_path, grace_s=4) as (w, root, port):
        first = start(w, root, port)
        kernel_id = open_notebook(first)
        first.execute(kernel_id, "x = 1")
        kill(first.process)
        until(lambda: has_receipt(w.provider, w))
        second = start(w, root, port)
        until(lambda: has_receipt(w.consumer, w))
        assert second.kernels() == []
        assert second.ask("GET", "/api/sessions") == []
        assert assert_books_agree(w) >= 0


def test_of_two_servers_of_one_folder_one_has_the_kernel(tmp_path):
    with renting_server(tmp_path) as (w, root, port):
        first = start(w, root, port)
        kernel_id = open_notebook(first)
        first.execute(kernel_id, "x = 'mine'")
        kill(first.process)
        both = [Server(w, root, free_port()) for _ in range(2)]
        for each in both:
            until(each.answers)
        (owner,) = until(lambda: [each for each in both if each.kernels() == [kernel_id]])
        (other,) = [each for each in both if each is not owner]
        assert owner.execute(kernel_id, "print(x)") == "mine\n"
        assert other.kernels() == []
        owner.process.send_signal(signal.SIGTERM)
        owner.process.wait()
        assert assert_books_agree(w) > 0


def attached(w: World, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """`jupyter depin attach`, once it holds the rental, and what it said."""
    (row,) = map(json.loads, w.depin("attach", "--json").stdout.splitlines())
    program = subprocess.Popen(
        [sys.executable, "-m", "jupyter_depin", "attach", row["rental"][:8], "--json", *options],
        env=w.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    w._running.append(program)
    return program, json.loads(program.stdout.readline())


def printed(file: str, code: str) -> str:
    """What a client of a connection file sees of a cell."""
    client = BlockingKernelClient(connection_file=file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        said: list[str] = []
        client.execute_interactive(
            code,
            timeout=60,
            output_hook=lambda m: said.append(m["content"]["text"]) if m["msg_type"] == "stream" else None,
        )
        return "".join(said)
    finally:
        client.stop_channels()


def test_a_terminal_takes_a_rental_up_leaves_it_and_settles_it(tmp_path):
    with world(tmp_path) as w:
        w.start_agent()
        renter = w.start_renter()
        hear(renter, "ready")
        tell(renter, "x = 'kept'")
        hear(renter, "idle")
        (held,) = map(json.loads, w.depin("attach", "--json").stdout.splitlines())
        assert held["held"]
        refused = w.depin("attach", held["rental"][:8])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "is held by another running program of yours" in refused.stderr
        kill(renter)

        first, said = attached(w, "--leave", "--existing-file", str(tmp_path / "joined.json"))
        assert said["file"] == str(tmp_path / "joined.json")
        assert printed(said["file"], "print(x)") == "kept\n"
        first.send_signal(signal.SIGINT)
        assert (first.communicate()[0], first.returncode) == ("", 0)
        assert not (tmp_path / "joined.json").exists()

        second, said = attached(w)
        assert printed(said["file"], "print(x)") == "kept\n"
        second.send_signal(signal.SIGINT)
        receipt = json.loads(second.communicate()[0])
        assert second.returncode == 0
        assert receipt["chain_agrees"]
        assert assert_books_agree(w) > 0
        until(lambda: not w.kernels())
        assert w.depin("attach").stdout == "There is nothing to take up.\n"
