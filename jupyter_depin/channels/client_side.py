"""The channels that Jupyter clients connect to.

The heartbeat is answered here, since a round trip of over a second would look like death; and each subscriber is
welcomed here, at the moment it subscribes, in place of the kernel, which subscribes nobody but the agent.
"""

from __future__ import annotations

import hmac
import json
import os
import uuid
from collections.abc import Callable, Sequence

import zmq

from jupyter_depin.channels.header import DELIMITER, header
from jupyter_depin.channels.outbox import Outbox
from jupyter_depin.channels.patience import Patience
from jupyter_depin.channels.sockets import LANES, Handler, Hold, LoopSocket, new_socket, translated
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.protocol.local import LocalInfo

_UNREAD = 64 << 20
"""Bytes kept for clients that do not read, per channel; then the kernel's messages of that channel wait."""


class ClientSide:
    """The channels that Jupyter clients connect to. Made by the rental; `on_message` gets what clients send.

    Each message to the lanes begins with the client's identity. `hold` is asked to keep a lane's messages back while
    its clients do not read. Raises `PortInUse`.
    """

    def __init__(self, info: LocalInfo, on_message: Handler, hold: Hold = lambda *_: None) -> None:
        self.info = info
        self._on_message = on_message
        self._sockets: dict[str, LoopSocket] = {}
        self._hold = hold
        self.outboxes: dict[Lane, Outbox] = {}
        """What each channel keeps for its clients."""
        self._patience: dict[Lane, Patience] = {}
        self.last_request: bytes = b"{}"
        self.beating = True
        """Whether the heartbeat is answered. It stops with the kernel, not with the link."""
        self._attended = True
        self._paused: set[Lane] = set()
        try:
            for channel in ("shell", "stdin", "control", "iopub", "hb"):
                outbox = self._outbox(channel) if channel != "hb" else None
                self._sockets[channel] = LoopSocket(
                    self._bound(channel), self._receiver(channel), outbox, b"" if channel == "iopub" else None
                )
        except BaseException:
            self.close()
            raise

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a message from the kernel to the clients."""
        if lane is Lane.IOPUB:
            # Each subscriber was already welcomed here, at the moment it subscribed.
            if b'"iopub_welcome"' in header(parts):
                return
            self._sockets["iopub"].send(parts)
        else:
            self._sockets[lane.name.lower()].send(parts)

    def say(self, text: str, request: bytes = b"") -> None:
        """Show a line in a cell's output, as if the kernel had written it to standard error.

        `request`: the header of the cell's request; without it, it is the one that ran last.
        """
        content = {"name": "stderr", "text": text + "\n"}
        self._publish(b"stream.stderr", "stream", content, request or self.last_request)

    def pause(self, lane: Lane, paused: bool) -> None:
        """Stop or go on taking clients' messages of one lane (their own queues hold what comes meanwhile)."""
        (self._paused.add if paused else self._paused.discard)(lane)
        self._listen()

    def attend(self, attended: bool) -> None:
        """Say whether there is a kernel. While there is none, what clients send waits, as it would for a local one."""
        self._attended = attended
        self._listen()

    def _listen(self) -> None:
        for channel, lane in LANES.items():
            self._sockets[channel].pause(not self._attended or lane in self._paused)

    def serves(self, info: LocalInfo) -> bool:
        """Whether clients that were told `info` find these sockets. Asked before a kernel is started again.

        A manager that restarts a young kernel removes its ipc sockets from the file system, and then gives the same
        names out again.
        """
        return self.info == info and (
            info.transport != "ipc"
            or all(os.path.exists(f"{info.ip}-{port}") for port in info.ports.values())
        )

    def close(self) -> None:
        """Close every socket. May be called twice."""
        for socket in self._sockets.values():
            socket.close()
        for outbox in self.outboxes.values():
            outbox.close()

    def _outbox(self, channel: str) -> Outbox:
        lane = Lane[channel.upper()]
        outbox = self.outboxes[lane] = Outbox(_UNREAD, lambda over: self._unread(lane, over))
        self._patience[lane] = Patience(self.info.url(channel), outbox)
        return outbox

    def _unread(self, lane: Lane, over: bool) -> None:
        self._patience[lane].watch(over)
        self._hold(lane, over, "clients that do not read")

    def _bound(self, channel: str) -> zmq.Socket[bytes]:
        socket = new_socket(zmq.XPUB if channel == "iopub" else zmq.ROUTER)
        if channel == "iopub":
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        else:
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if self.info.curve_secretkey and self.info.curve_publickey:
            socket.curve_server = True
            socket.curve_secretkey, socket.curve_publickey = (
                self.info.curve_secretkey,
                self.info.curve_publickey,
            )
        try:
            with translated(self.info.url(channel)):
                socket.bind(self.info.url(channel))
        except BaseException:
            socket.close(0)
            raise
        return socket

    def _receiver(self, channel: str) -> Callable[[list[Part]], None]:
        if channel == "hb":
            return lambda parts: self._sockets["hb"].send(parts) if self.beating else None
        if channel == "iopub":
            return self._subscribed
        lane = LANES[channel]

        def receive(parts: list[Part]) -> None:
            if lane is Lane.SHELL:
                self._remember(parts)
            self._on_message(lane, parts)

        return receive

    def _remember(self, parts: list[Part]) -> None:
        asked = header(parts)
        if b'"execute_request"' in asked:
            self.last_request = asked

    def _subscribed(self, parts: list[Part]) -> None:
        request = bytes(parts[0])
        if request[:1] == b"\x01":
            content = {"subscription": request[1:].decode(errors="replace")}
            self._publish(request[1:], "iopub_welcome", content, b"{}")

    def _publish(self, topic: bytes, kind: str, content: dict[str, str], parent: bytes) -> None:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": kind,
            "username": "jupyter-depin",
            "session": "",
            "date": "",
            "version": "5.4",
        }
        frames = [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]
        mac = hmac.new(self.info.key, digestmod=self.info.signature_scheme.removeprefix("hmac-"))
        for frame in frames:
            mac.update(frame)
        signature = mac.hexdigest().encode() if self.info.key else b""
        self._sockets["iopub"].send([*([topic] if topic else []), DELIMITER, signature, *frames])
