"""A cell's round trip through Jupyter Server: with rented kernels, and with kernels of a kernel gateway.

Both are what a person gets in Lab: one small client speaks to either server's kernel websocket, in turns. Jupyter Server
leaves Nagle's algorithm on, so a client that acknowledges late adds some 40 ms to each cell of either server, which hides
all else; therefore two figures: of a client that acknowledges at once, and of one that leaves it to its system. The
connection between server and gateway is theirs, and is left as they ship it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

from tests.bench.report import Benchmark, Line, in_turns, quantile

_PATIENCE_S = 60
_PROMPT, _PLAIN = "gateway_execute_ms", "gateway_execute_late_acks_ms"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port: int = made.getsockname()[1]
    return port


def _asked(url: str, token: str, method: str = "GET") -> Any:
    request = urllib.request.Request(
        url,
        method=method,
        headers={"Authorization": f"token {token}"},
        data=b"{}" if method == "POST" else None,
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        return json.loads(answer.read() or "null")


@contextmanager
def _program(port: int, token: str, folder: Path, *command: str, **environment: str) -> Iterator[str]:
    """A server, from its first answer on; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                _asked(f"{url}/api", token)
                break
            except (urllib.error.URLError, ConnectionError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not answer") from error
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _server(folder: Path, *options: str, **environment: str) -> Iterator[WebSocket]:
    """A Jupyter server; the websocket of a kernel that it started and that has answered."""
    port, token = _free_port(), secrets.token_hex(16)
    command = (
        "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", *options,
    )  # fmt: skip
    with _program(port, token, folder, *command, **environment) as url:
        kernel = _asked(f"{url}/api/kernels", token, "POST")["id"]
        channels = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels"
        connection = create_connection(
            channels, timeout=_PATIENCE_S, header=[f"Authorization: token {token}"]
        )
        try:
            _execute(connection, "1")
            yield connection
        finally:
            connection.close()
            _asked(f"{url}/api/kernels/{kernel}", token, "DELETE")


def _execute(connection: WebSocket, code: str, *, prompt: bool = True) -> None:
    """Return when the cell's reply and its idle are there. `prompt`: acknowledge at once."""
    mine = secrets.token_hex(16)
    connection.send(
        json.dumps(
            {
                "channel": "shell",
                "header": {
                    "msg_id": mine, "msg_type": "execute_request", "session": mine, "username": "", "version": "5.3",
                },
                "parent_header": {},
                "metadata": {},
                "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False},
                "buffers": [],
            }
        )
    )  # fmt: skip
    replied = idle = False
    while not (replied and idle):
        if prompt and sys.platform == "linux":
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        message = json.loads(connection.recv())
        if message["parent_header"].get("msg_id") != mine:
            continue
        if message["msg_type"] == "execute_reply":
            if message["content"]["status"] != "ok":
                raise RuntimeError(f"the cell failed: {message['content']}")
            replied = True
        elif message["msg_type"] == "status":
            idle = idle or message["content"]["execution_state"] == "idle"


def _timed(connection: WebSocket, rounds: int, *, prompt: bool) -> list[float]:
    samples = []
    for _ in range(rounds):
        begun = time.perf_counter()
        _execute(connection, "1", prompt=prompt)
        samples.append(time.perf_counter() - begun)
    return samples


def _measure(quick: bool) -> Iterator[Line]:
    blocks, rounds = (3, 10) if quick else (16, 25)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b-")))
        ours = stack.enter_context(_server(folder, JUPYTER_DEFAULT_PROVISIONER_NAME="depin-loopback"))
        port, token = _free_port(), secrets.token_hex(16)
        gateway = stack.enter_context(
            _program(
                port, token, folder, "kernel_gateway", f"--KernelGatewayApp.port={port}",
                f"--KernelGatewayApp.auth_token={token}",
            )
        )  # fmt: skip
        theirs = stack.enter_context(
            _server(folder, f"--gateway-url={gateway}", f"--GatewayClient.auth_token={token}")
        )
        peers = [
            partial(_timed, each, rounds, prompt=prompt)
            for prompt in (True, False)
            for each in (ours, theirs)
        ]
        in_turns(1, *peers)
        half = [quantile(each, 0.5) * 1e3 for each in in_turns(blocks, *peers)]
    yield Line(_PROMPT, half[0], "ms", "jupyter kernel gateway", half[1])
    yield Line(_PLAIN, half[2], "ms", "jupyter kernel gateway", half[3])


BENCHMARKS = (
    Benchmark(
        (_PROMPT, _PLAIN),
        "lower",
        "a cell through Jupyter Server's websocket, rented or behind a kernel gateway (goal: half of the gateway's)",
        _measure,
    ),
)
