"""A Jupyter client that adds nothing to what it measures: two sockets, one poll, no sleeps.

jupyter_client's own blocking client looks at its sockets in turns of several milliseconds, which would hide the
channels under test. The same client is used on every peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import zmq
from jupyter_client.session import Session

PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a kernel's shell and iopub are (ZeroMQ endpoints), and what signs its messages."""

    shell: str
    iopub: str
    key: bytes

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Endpoints:
        """Those of a connection file's content."""
        place, separator = f"{info['transport']}://{info['ip']}", "-" if info["transport"] == "ipc" else ":"
        return cls(
            f"{place}{separator}{info['shell_port']}", f"{place}{separator}{info['iopub_port']}", info["key"]
        )


class Client:
    """Connected to one kernel; not more than one request is under way."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._context = zmq.Context()
        self._session = Session(key=endpoints.key)
        self._shell = self._context.socket(zmq.DEALER)
        self._shell.setsockopt(zmq.IDENTITY, self._session.bsession)
        self._iopub = self._context.socket(zmq.SUB)
        self._iopub.rcvhwm = 0  # what is lost shall be lost by the path, not by this client
        self._iopub.subscribe(b"")
        self._poller = zmq.Poller()
        for socket, endpoint in ((self._shell, endpoints.shell), (self._iopub, endpoints.iopub)):
            socket.connect(endpoint)
            self._poller.register(socket, zmq.POLLIN)

    def close(self) -> None:
        self._context.destroy(0)

    def first_result(self) -> None:
        """Return when the kernel has answered at all, and its output arrives here too."""
        self.execute("1", until_idle=False, idle_s=0)
        while not self.execute("1", until_idle=False, idle_s=0.2):
            pass

    def execute(
        self,
        code: str,
        *,
        until_idle: bool = True,
        idle_s: float = PATIENCE_S,
        on_output: Callable[[str], None] = lambda kind: None,
    ) -> bool:
        """Run a cell; return whether its reply and its idle came. `on_output` hears each output's type.

        Without `until_idle` the idle is waited for no longer than `idle_s` after the reply.
        """
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        request = self._session.msg("execute_request", content)
        mine = request["header"]["msg_id"]
        self._shell.send_multipart(self._session.serialize(request))
        replied = idle = False
        deadline = time.monotonic() + PATIENCE_S
        while not (replied and idle):
            if replied and not until_idle:
                deadline = min(deadline, time.monotonic() + idle_s)
            left = deadline - time.monotonic()
            ready = self._poller.poll(max(0, int(left * 1000)))
            if not ready:
                if until_idle or not replied:
                    raise TimeoutError(f"no answer in {PATIENCE_S} s")
                return False
            for socket, _ in ready:
                _, frames = self._session.feed_identities(socket.recv_multipart(copy=False), copy=False)
                message = self._session.deserialize(frames, content=True, copy=False)
                if message["parent_header"].get("msg_id") != mine:
                    continue
                if socket is self._shell:
                    if message["content"]["status"] != "ok":
                        raise RuntimeError(f"the cell failed: {message['content']}")
                    replied = True
                elif message["msg_type"] == "status":
                    idle = idle or message["content"]["execution_state"] == "idle"
                else:
                    on_output(message["msg_type"])
        return True

    def outputs(self, code: str, patience_s: float) -> Iterator[dict[str, Any]]:
        """Run a cell and give the content of each of its outputs as it comes, until the kernel is idle."""
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        request = self._session.msg("execute_request", content)
        self._shell.send_multipart(self._session.serialize(request))
        while self._iopub.poll(int(patience_s * 1000)):
            _, frames = self._session.feed_identities(self._iopub.recv_multipart())
            message = self._session.deserialize(frames, content=True)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            if message["msg_type"] == "status":
                if message["content"]["execution_state"] == "idle":
                    # Its reply must not be taken for the next cell's.
                    self._shell.recv_multipart()
                    return
            elif message["msg_type"] != "execute_input":
                yield message["content"]
        raise TimeoutError(f"nothing in {patience_s} s")

    def timed(
        self, code: str, rounds: int = 1, on_output: Callable[[str], None] = lambda kind: None
    ) -> list[float]:
        """Seconds from a request to its reply and idle, of each round."""
        samples = []
        for _ in range(rounds):
            begun = time.perf_counter()
            self.execute(code, on_output=on_output)
            samples.append(time.perf_counter() - begun)
        return samples
