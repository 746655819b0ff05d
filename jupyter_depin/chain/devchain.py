"""The embedded chain as a program: `python -m jupyter_depin.chain.devchain --port 8545 [--state FILE] [--fund 0x…]`.

It lets a person try everything without a wallet, an account or a second installation. The chain id is 31337 and every
transaction is mined at once. It listens on 127.0.0.1 only and prints one JSON line with its address when it is ready.
With a state file it is the same chain after a crash: each change is on the disk before it is answered.

Its money is worth nothing; for anything else use a real chain's address (`rpc_urls` in the address book).
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from jupyter_depin.chain.engine import CHAIN_ID, Change, Engine, Refused
from jupyter_depin.chain.rpc_methods import answer
from jupyter_depin.errors import DamagedConfig, DepinError, PortInUse
from jupyter_depin.protocol.identity import Address, parse_address

HOST = "127.0.0.1"


class StateFile:
    """The chain's history on disk: a first line with the genesis time, then one line for each change.

    A change that was not written whole was not answered either, so a torn last line is dropped.
    """

    def __init__(self, engine: Engine, file: BinaryIO) -> None:
        self._engine = engine
        self._file = file
        self._written = len(engine.changes)

    @classmethod
    def open(cls, path: Path) -> StateFile:
        """Replay the file, or begin it. Raises `DamagedConfig`."""
        try:
            return cls._open(path)
        except OSError as error:
            raise DamagedConfig(path=path, reason=error.strerror or error) from error
        except (ValueError, KeyError, TypeError, Refused) as error:
            raise DamagedConfig(path=path, reason=f"it is not a chain's history: {error}") from error

    @classmethod
    def _open(cls, path: Path) -> StateFile:
        path.touch(mode=0o600)
        file = path.open("r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DamagedConfig(path=path, reason="another chain is using it") from error
        whole, newline, torn = file.read().rpartition(b"\n")
        if torn and not whole:
            raise ValueError("it has no whole line")  # somebody's other file, or the first line was torn
        lines = [json.loads(line) for line in whole.splitlines()]
        engine = Engine(lines[0]["genesis"] if lines else int(time.time()))
        for line in lines[1:]:
            if "revert" in line:
                engine.revert(line["revert"])
            else:
                engine.apply(Change(line["kind"], line["at"], bytes.fromhex(line.get("data", ""))))
        file.truncate(len(whole) + len(newline))  # only now: what cannot be read is left as it is
        file.seek(0, os.SEEK_END)
        state = cls(engine, file)
        if not lines:
            state._append({"genesis": engine.genesis, "chain_id": CHAIN_ID})
        return state

    @property
    def engine(self) -> Engine:
        """The chain that this file describes."""
        return self._engine

    def save(self) -> None:
        """Bring the file up to the chain. Called after each single request, before the answer goes out."""
        changes = self._engine.changes
        if len(changes) < self._written:
            self._append({"revert": len(changes)})
        for change in changes[self._written :]:
            line: dict[str, Any] = {"kind": change.kind, "at": change.at}
            if change.data:
                line["data"] = change.data.hex()
            self._append(line)
        self._written = len(changes)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


class RpcHandler(RequestHandler):
    """JSON-RPC 2.0 over POST, single and in batches.

    A page in a browser must not get here by a form or by a name that resolves to this machine: the content type forces
    a preflight that is never answered, and the host must be a local one.
    """

    def initialize(self, engine: Engine, save: Callable[[], None]) -> None:
        """Called by tornado for each request."""
        self._engine = engine
        self._save = save

    def post(self) -> None:
        """Answer one request or a list of them."""
        if self.request.host_name not in (HOST, "localhost"):
            self.set_status(403)
            return
        if not self.request.headers.get("Content-Type", "").startswith("application/json"):
            self.set_status(415)
            return
        try:
            asked = json.loads(self.request.body)
        except ValueError:
            self.set_status(400)
            return
        many = isinstance(asked, list)
        answers = []
        for one in asked if many else [asked]:
            answers.append(answer(self._engine, one))
            self._save()
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(answers if many else answers[0]))


def _listen(port: int) -> list[socket.socket]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise PortInUse(port=port) from error
    listener.listen(128)
    listener.setblocking(False)
    return [listener]


async def serve(port: int, state: Path | None, fund: list[Address], *, with_parent: bool = False) -> None:
    """Run the chain until SIGTERM or SIGINT, or, `with_parent`, until standard input ends. Port 0 takes any free one.

    Raises `PortInUse`, `DamagedConfig`.
    """
    sockets = _listen(port)  # before the replay: two programs must not write one file
    if state is not None:
        history = StateFile.open(state)
        engine, save = history.engine, history.save
    else:
        engine, save = Engine(int(time.time())), lambda: None
    funded = {change.data for change in engine.changes if change.kind == "fund"}
    for address in fund:
        if address not in funded:
            engine.fund(address)
    save()
    server = HTTPServer(Application([("/", RpcHandler, {"engine": engine, "save": save})]))
    server.add_sockets(sockets)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def heard() -> None:
        if not os.read(0, 4096):
            stop.set()

    if with_parent:
        asyncio.get_running_loop().add_reader(0, heard)
    ready = {"url": f"http://{HOST}:{sockets[0].getsockname()[1]}", "chain_id": CHAIN_ID}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    server.stop()
    await server.close_all_connections()


def main() -> None:
    """Run by `python -m jupyter_depin.chain.devchain`."""
    parser = argparse.ArgumentParser(prog="jupyter_depin.chain.devchain", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes any free one")
    parser.add_argument(
        "--state", type=Path, help="file that keeps the chain; without it nothing outlives the program"
    )
    parser.add_argument("--fund", action="append", default=[], help="address that gets 1000 ETH for fees")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    try:
        fund = [parse_address(text) for text in options.fund]
        asyncio.run(serve(options.port, options.state, fund, with_parent=options.with_parent))
    except DepinError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
