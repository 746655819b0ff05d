"""The five kernel channels as ZeroMQ sockets: the side that Jupyter clients see, and the side that the kernel sees.

Messages pass as they are: this room reads no content but one word (`iopub_welcome`, which each side says for itself).
A client's ZeroMQ identity is kept: the kernel side has one set of DEALER sockets per client, with that identity on
shell, stdin and control, for the kernel asks for input on stdin by the identity that it saw on shell. The heartbeat is
answered on the client's side, since a round trip of over a second would look like death.

Sockets are read from the loop by their file descriptor rather than through `zmq.asyncio`, which costs a future per
message. ZeroMQ's descriptor is edge-triggered: after every send, pending input is looked at again. Frames pass through
pyzmq's inner class, for the outer one makes enumerations of the flags and options of each.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import zmq
from zmq.backend import Socket as BareSocket
from zmq.utils.monitor import parse_monitor_message

from jupyter_depin.errors import PortInUse, RemoteProtocolError, TransportError
from jupyter_depin.protocol.frames import MAX_FRAME, Lane, Part
from jupyter_depin.protocol.local import LocalInfo

log = logging.getLogger(__name__)

Handler = Callable[[Lane, list[Part]], None]

_BIG = 1 << 16
"""From this size on a ZeroMQ frame is handed on without a copy."""
_LONGEST_IDENTITY = 255
"""ZeroMQ's own limit, in bytes."""
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_TURN = 200
"""Messages that one socket may deliver before the loop turns to others."""
_ANONYMOUS_KEPT = 32
"""Sets of kernel sockets kept for clients without an identity of their own (probes); the oldest is closed first."""
_NAMED_KEPT = 128
"""The same for clients with one: each reload of a browser's page brings a new one."""
_SOCKETS = 4096
"""What one kernel's side may have at a time, those that are still being closed included."""
_SUBSCRIBED_S = 0.1
"""How long after its handshake a subscription that the kernel does not confirm is taken for made."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise PortInUse(port=what.rpartition(":")[2]) from error
        raise TransportError(detail=f"{what}: {error}") from error


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", BareSocket.get(socket, _EVENTS)) & _POLLIN)


def _receive(socket: zmq.Socket[bytes]) -> list[Part]:
    """The next message, small frames as bytes. Raises `zmq.Again` if there is none."""
    parts: list[Part] = []
    more = True
    while more:
        frame = BareSocket.recv(socket, _LAST, copy=False)
        parts.append(frame.buffer if len(frame) >= _BIG else frame.bytes)
        more = frame.more
    return parts


def _send(socket: zmq.Socket[bytes], parts: Sequence[Part]) -> None:
    """Send a message, big frames without a copy. Raises `zmq.ZMQError`."""
    rest = len(parts)
    for part in parts:
        rest -= 1
        flags = _MORE if rest else _LAST
        if len(part) < _BIG:
            BareSocket.send(socket, part, flags)
        else:
            BareSocket.send(socket, part, flags, copy=False)


class _Socket:
    """One socket on the running loop. `on_message` is called from the loop with the frames of each message."""

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[Part]], None]) -> None:
        self.socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = cast("int", socket.getsockopt(zmq.FD))
        self._paused = False
        self._scheduled = False
        self._loop.add_reader(self._fd, self._read)
        self._look_again()

    def send(self, parts: Sequence[Part]) -> None:
        try:
            _send(self.socket, parts)
        except zmq.Again:
            log.warning("a kernel channel did not take a message")
        except zmq.ZMQError as error:
            if not self.socket.closed:
                log.warning("a kernel channel failed: %s", error)
            return
        self._look_again()

    def pause(self, paused: bool) -> None:
        self._paused = paused
        if not paused:
            self._look_again()

    def close(self) -> None:
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self.socket.close(0)

    def _look_again(self) -> None:
        if not self._scheduled and not self._paused and _readable(self.socket):
            self._scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._scheduled = False
        for _ in range(_TURN):
            if self._paused or self.socket.closed or not _readable(self.socket):
                return
            try:
                parts = _receive(self.socket)
            except zmq.Again:
                return
            self._on_message(parts)
        self._scheduled = True
        self._loop.call_soon(self._read)


_LANES = {"shell": Lane.SHELL, "stdin": Lane.STDIN, "control": Lane.CONTROL}


_DELIMITER = b"<IDS|MSG>"
_LONGEST_HEADER = 4096


def _header(parts: Sequence[Part]) -> bytes:
    """The header of a Jupyter message; empty if this is none."""
    for i, part in enumerate(parts[:-2]):
        if len(part) == len(_DELIMITER) and bytes(part) == _DELIMITER:
            header = parts[i + 2]
            return bytes(header) if len(header) <= _LONGEST_HEADER else b""
    return b""


def _unlimited(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    # Bounds belong to the tunnel, which stops the source; ZeroMQ's own would drop messages.
    socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
    return socket


class ClientSide:
    """The channels that Jupyter clients connect to. Made by the rental; `on_message` gets what clients send.

    Each message to the lanes begins with the client's identity. Raises `PortInUse`.
    """

    def __init__(self, info: LocalInfo, on_message: Handler) -> None:
        self.info = info
        self._context = zmq.Context()
        self._on_message = on_message
        self._sockets: dict[str, _Socket] = {}
        self.last_request: bytes = b"{}"
        self.beating = True
        """Whether the heartbeat is answered. It stops with the kernel, not with the link."""
        self._attended = True
        self._paused: set[Lane] = set()
        try:
            for channel in ("shell", "stdin", "control", "iopub", "hb"):
                self._sockets[channel] = _Socket(self._bound(channel), self._receiver(channel))
        except BaseException:
            self.close()
            raise

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a message from the kernel to the clients."""
        if lane is Lane.IOPUB:
            # Each subscriber was already welcomed here, at the moment it subscribed.
            if b'"iopub_welcome"' in _header(parts):
                return
            self._sockets["iopub"].send(parts)
        else:
            self._sockets[lane.name.lower()].send(parts)

    def say(self, text: str) -> None:
        """Show a line in the output of the cell that ran last, as if the kernel had written it to standard error."""
        content = {"name": "stderr", "text": text + "\n"}
        self._publish(b"stream.stderr", "stream", content, self.last_request)

    def pause(self, lane: Lane, paused: bool) -> None:
        """Stop or go on taking clients' messages of one lane (their own queues hold what comes meanwhile)."""
        (self._paused.add if paused else self._paused.discard)(lane)
        self._listen()

    def attend(self, attended: bool) -> None:
        """Say whether there is a kernel. While there is none, what clients send waits, as it would for a local one."""
        self._attended = attended
        self._listen()

    def _listen(self) -> None:
        for channel, lane in _LANES.items():
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
        self._context.destroy(0)

    def _bound(self, channel: str) -> zmq.Socket[bytes]:
        socket = _unlimited(self._context.socket(zmq.XPUB if channel == "iopub" else zmq.ROUTER))
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
            with _translated(self.info.url(channel)):
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
        lane = _LANES[channel]

        def receive(parts: list[Part]) -> None:
            if lane is Lane.SHELL:
                self._remember(parts)
            self._on_message(lane, parts)

        return receive

    def _remember(self, parts: list[Part]) -> None:
        header = _header(parts)
        if b'"execute_request"' in header:
            self.last_request = header

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
        self._sockets["iopub"].send([*([topic] if topic else []), _DELIMITER, signature, *frames])


class _Monitor:
    """Calls `on_handshake` from the loop once the other end of a socket knows it, and is closed then."""

    def __init__(self, socket: zmq.Socket[bytes], on_handshake: Callable[[], object]) -> None:
        self._watched, self._on_handshake = socket, on_handshake
        self._events = _Socket(socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED), self._happened)

    def close(self) -> None:
        if not self._events.socket.closed:
            self._events.close()
            self._watched.disable_monitor()

    def _happened(self, parts: list[Part]) -> None:
        if parse_monitor_message([bytes(part) for part in parts])["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.close()
            self._on_handshake()


class _Client:
    """The kernel-side sockets of one client; shell waits until the kernel knows the stdin socket."""

    def __init__(self) -> None:
        self.sockets: dict[Lane, _Socket] = {}
        self.monitor: _Monitor | None = None
        self._waiting: list[Sequence[Part]] | None = []

    def send(self, lane: Lane, parts: Sequence[Part]) -> None:
        if lane is Lane.SHELL and self._waiting is not None:
            self._waiting.append(parts)
        else:
            self.sockets[lane].send(parts)

    def known(self) -> None:
        waiting, self._waiting = self._waiting or (), None
        for parts in waiting:
            self.sockets[Lane.SHELL].send(parts)

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
        for socket in self.sockets.values():
            socket.close()


class KernelSide:
    """The channels of a kernel in its sandbox. Made by the tenancy for each kernel it starts.

    `endpoints` maps `shell`, `iopub`, `stdin`, `control` to ZeroMQ endpoints. `on_message` gets what the kernel says:
    on iopub as it is, on the others with the client's identity in front. The kernel's output is read at full speed:
    a slow reader would make it drop messages. A frame above `MAX_FRAME` ends its connection before it is read.

    Nothing is asked of the kernel before its output is subscribed to, or the output of the first cell would be lost with
    its end. What it says first shows that it has the subscription: ipykernel says that in a word of its own.
    """

    def __init__(self, endpoints: Mapping[str, str], on_message: Handler) -> None:
        self._context = zmq.Context()
        self._endpoints, self._on_message = endpoints, on_message
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()
        self._waiting: list[tuple[Lane, Sequence[Part]]] | None = []
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS)
        # A hostile kernel's frames lie in this process, outside the kernel's own limits.
        self._context.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        iopub = _unlimited(self._context.socket(zmq.SUB))
        iopub.setsockopt(zmq.SUBSCRIBE, b"")
        loop = asyncio.get_running_loop()
        self._monitor = _Monitor(iopub, lambda: loop.call_later(_SUBSCRIBED_S, self._subscribed))
        iopub.connect(endpoints["iopub"])
        self._iopub = _Socket(iopub, self._published)

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a client's message (identity first) to the kernel. Raises `RemoteProtocolError`, `TransportError`."""
        if not 0 < len(parts[0]) <= _LONGEST_IDENTITY:
            raise RemoteProtocolError(detail=f"a client's identity of {len(parts[0])} bytes")
        if self._waiting is not None:
            self._waiting.append((lane, parts))
        else:
            self._client(bytes(parts[0])).send(lane, parts[1:])

    def pending(self) -> bool:
        """Whether the kernel has said something on iopub that was not read yet."""
        return not self._iopub.socket.closed and _readable(self._iopub.socket)

    def close(self) -> None:
        """Close every socket. May be called twice."""
        self._waiting = None
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._monitor.close()
        self._iopub.close()
        self._context.destroy(0)

    def _published(self, parts: list[Part]) -> None:
        self._subscribed()
        self._on_message(Lane.IOPUB, parts)

    def _subscribed(self) -> None:
        waiting, self._waiting = self._waiting or (), None
        for lane, parts in waiting:
            try:
                self.deliver(lane, parts)
            except TransportError as error:
                log.warning("a client's message was not delivered: %s", error)

    def _client(self, identity: bytes) -> _Client:
        client = self._clients.get(identity)
        if client is not None:
            self._clients.move_to_end(identity)
            return client
        anonymous = identity[:1] == b"\0"
        crowd = [i for i in self._clients if (i[:1] == b"\0") == anonymous]
        if len(crowd) >= (_ANONYMOUS_KEPT if anonymous else _NAMED_KEPT):
            self._clients.pop(crowd[0]).close()
        # ZeroMQ reserves identities that begin with a zero byte.
        own = b"x" + uuid.uuid4().bytes if anonymous else identity
        client = _Client()
        try:
            with _translated("a kernel's channel"):
                self._connect(client, identity, own)
        except BaseException:
            client.close()
            raise
        self._clients[identity] = client
        return client

    def _connect(self, client: _Client, identity: bytes, own: bytes) -> None:
        for channel, lane in _LANES.items():
            socket = self._context.socket(zmq.DEALER)
            client.sockets[lane] = _Socket(_unlimited(socket), self._receiver(identity, lane))
            socket.setsockopt(zmq.IDENTITY, own)
            if lane is Lane.STDIN:
                client.monitor = _Monitor(socket, client.known)
            socket.connect(self._endpoints[channel])

    def _receiver(self, identity: bytes, lane: Lane) -> Callable[[list[Part]], None]:
        return lambda parts: self._on_message(lane, [identity, *parts])
