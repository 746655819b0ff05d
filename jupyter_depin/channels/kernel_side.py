"""The channels of a kernel in its sandbox.

One set of DEALER sockets per client, with that client's identity on shell, stdin and control, for the kernel asks for
input on stdin by the identity that it saw on shell.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import zmq
from zmq.utils.monitor import parse_monitor_message

from jupyter_depin.channels.outbox import MESSAGE, Outbox
from jupyter_depin.channels.sockets import LANES, Handler, Hold, LoopSocket, new_socket, readable, translated
from jupyter_depin.errors import RemoteProtocolError, TransportError
from jupyter_depin.protocol.frames import MAX_FRAME, Lane, Part

log = logging.getLogger(__name__)

_LONGEST_IDENTITY = 255
"""ZeroMQ's own limit, in bytes."""
_ANONYMOUS_KEPT = 16
"""Sets of kernel sockets kept for clients without an identity of their own (probes); the oldest is closed first."""
_NAMED_KEPT = 64
"""The same for clients with one: each reload of a browser's page brings a new one."""
_UNREAD = 1 << 20
"""Bytes of each channel kept for a kernel that does not read; then its clients' messages of that channel wait."""
_NOT_YET, _STANDS_STILL = "a kernel that does not listen yet", "a kernel that does not read"
_SUBSCRIBED_S = 0.1
"""How long after its handshake a subscription that the kernel does not confirm is taken for made."""


def _new_socket(kind: int) -> zmq.Socket[bytes]:
    socket = new_socket(kind)
    # A hostile kernel's frames lie in this process, outside the kernel's own limits.
    socket.maxmsgsize = MAX_FRAME
    return socket


class _Monitor:
    """Calls `on_handshake` from the loop once the other end of a socket knows it, and is closed then."""

    def __init__(self, socket: zmq.Socket[bytes], on_handshake: Callable[[], object]) -> None:
        self._watched, self._on_handshake = socket, on_handshake
        self._events = LoopSocket(socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED), self._happened)

    def close(self) -> None:
        if not self._events.socket.closed:
            self._events.close()
            self._watched.disable_monitor()

    def _happened(self, parts: list[Part]) -> None:
        if parse_monitor_message([bytes(part) for part in parts])["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.close()
            self._on_handshake()


class _Client:
    """The kernel-side sockets of one client; shell waits until the kernel knows the stdin socket.

    `on_wait` is told when much waits, and when that is over.
    """

    def __init__(self, on_wait: Callable[[bool], None]) -> None:
        self._on_wait = on_wait
        self.sockets: dict[Lane, LoopSocket] = {}
        self.monitor: _Monitor | None = None
        self._waiting: list[Sequence[Part]] | None = []
        self._waiting_bytes = 0

    def send(self, lane: Lane, parts: Sequence[Part]) -> None:
        if lane is Lane.SHELL and self._waiting is not None:
            self._waiting.append(parts)
            self._waiting_bytes += sum(map(len, parts)) + MESSAGE
            if self._waiting_bytes >= _UNREAD:
                self._on_wait(True)
        else:
            self.sockets[lane].send(parts)

    def known(self) -> None:
        waiting, self._waiting = self._waiting or (), None
        self._on_wait(False)
        for parts in waiting:
            self.sockets[Lane.SHELL].send(parts)

    def close(self) -> None:
        self._on_wait(False)
        if self.monitor is not None:
            self.monitor.close()
        for socket in self.sockets.values():
            socket.close()


class KernelSide:
    """The channels of a kernel in its sandbox. Made by the tenancy for each kernel it starts.

    `endpoints` maps `shell`, `iopub`, `stdin`, `control` to ZeroMQ endpoints. `on_message` gets what the kernel says:
    on iopub as it is, on the others with the client's identity in front. The kernel's output is read at full speed:
    a slow reader would make it drop messages. A frame above `MAX_FRAME` ends its connection before it is read.
    `hold` is asked to keep a lane's messages back while the kernel does not read what was delivered.

    Nothing is asked of the kernel before its output is subscribed to, or the output of the first cell would be lost with
    its end. What it says first shows that it has the subscription: ipykernel says that in a word of its own.
    """

    def __init__(
        self, endpoints: Mapping[str, str], on_message: Handler, hold: Hold = lambda *_: None
    ) -> None:
        self._hold = hold
        self._held: set[tuple[Lane, str]] = set()
        self.outboxes = {lane: self._outbox(lane) for lane in LANES.values()}
        """What each channel keeps for the kernel."""
        self._endpoints, self._on_message = endpoints, on_message
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()
        self._waiting: list[tuple[Lane, Sequence[Part]]] | None = []
        self._waiting_bytes = 0
        iopub = _new_socket(zmq.SUB)
        iopub.setsockopt(zmq.SUBSCRIBE, b"")
        loop = asyncio.get_running_loop()
        self._monitor = _Monitor(iopub, lambda: loop.call_later(_SUBSCRIBED_S, self._subscribed))
        iopub.connect(endpoints["iopub"])
        self._iopub = LoopSocket(iopub, self._published)

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a client's message (identity first) to the kernel. Raises `RemoteProtocolError`, `TransportError`."""
        if lane not in LANES.values():
            raise RemoteProtocolError(detail=f"a client's message on the {lane.name} lane")
        if not 0 < len(parts[0]) <= _LONGEST_IDENTITY:
            raise RemoteProtocolError(detail=f"a client's identity of {len(parts[0])} bytes")
        if self._waiting is not None:
            self._waiting.append((lane, parts))
            self._waiting_bytes += sum(map(len, parts)) + MESSAGE
            if self._waiting_bytes >= _UNREAD:
                for each in LANES.values():
                    self._keep_back(each, True, _NOT_YET)
        else:
            self._client(bytes(parts[0])).send(lane, parts[1:])

    def pending(self) -> bool:
        """Whether the kernel has said something on iopub that was not read yet."""
        return not self._iopub.socket.closed and readable(self._iopub.socket)

    def close(self) -> None:
        """Close every socket. May be called twice."""
        self._waiting = None
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        for outbox in self.outboxes.values():
            outbox.close()
        for lane, why in list(self._held):
            self._keep_back(lane, False, why)
        self._monitor.close()
        self._iopub.close()

    def _outbox(self, lane: Lane) -> Outbox:
        return Outbox(_UNREAD, lambda over: self._keep_back(lane, over, _STANDS_STILL))

    def _keep_back(self, lane: Lane, held: bool, why: str) -> None:
        if held != ((lane, why) in self._held):
            (self._held.add if held else self._held.discard)((lane, why))
            self._hold(lane, held, why)

    def _published(self, parts: list[Part]) -> None:
        self._subscribed()
        self._on_message(Lane.IOPUB, parts)

    def _subscribed(self) -> None:
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        for lane, parts in waiting:
            try:
                self.deliver(lane, parts)
            except TransportError as error:
                log.warning("a client's message was not delivered: %s", error)
        for lane in LANES.values():
            self._keep_back(lane, False, _NOT_YET)

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
        why = f"a kernel that does not know client {identity.hex()} yet"
        client = _Client(lambda waits: self._keep_back(Lane.SHELL, waits, why))
        try:
            with translated("a kernel's channel"):
                self._connect(client, identity, own)
        except BaseException:
            client.close()
            raise
        self._clients[identity] = client
        return client

    def _connect(self, client: _Client, identity: bytes, own: bytes) -> None:
        for channel, lane in LANES.items():
            socket = _new_socket(zmq.DEALER)
            client.sockets[lane] = LoopSocket(
                socket, self._receiver(identity, lane), self.outboxes[lane], identity
            )
            socket.setsockopt(zmq.IDENTITY, own)
            if lane is Lane.STDIN:
                client.monitor = _Monitor(socket, client.known)
            socket.connect(self._endpoints[channel])

    def _receiver(self, identity: bytes, lane: Lane) -> Callable[[list[Part]], None]:
        return lambda parts: self._on_message(lane, [identity, *parts])
