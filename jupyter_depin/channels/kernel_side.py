"""The channels of a kernel in its sandbox.

One set of DEALER sockets per client, with that client's identity on shell, stdin and control, for the kernel asks for
input on stdin by the identity that it saw on shell.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jupyter_depin.channels.lanes import LANES, Handler, Hold, TooBig
from jupyter_depin.channels.peer import Peer
from jupyter_depin.channels.places import MESSAGE, Dialler
from jupyter_depin.channels.zmtp import LONGEST_IDENTITY
from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import MAX_FRAME, Lane, Part

_ANONYMOUS_KEPT = 16
"""Sets of kernel connections kept for clients without an identity of their own (probes); the oldest is closed first."""
_NAMED_KEPT = 64
"""The same for clients with one: each reload of a browser's page brings a new one."""
_UNREAD = 1 << 20
"""Bytes of each connection kept for a kernel that does not read; then clients' messages of that channel wait."""
_NOT_YET, _STANDS_STILL = "a kernel that does not listen yet", "a kernel that does not read"
_SUBSCRIBE = b"\x01"
"""To everything: the topic that follows is empty."""


class _Client:
    """The kernel-side connections of one client; shell waits until the kernel knows the stdin connection."""

    def __init__(self) -> None:
        self.diallers: dict[Lane, Dialler] = {}
        self._waiting: list[Sequence[Part]] | None = []
        self._waiting_bytes = 0
        self.on_wait: Callable[[bool], None] = lambda waits: None

    def send(self, lane: Lane, parts: Sequence[Part]) -> None:
        if lane is Lane.SHELL and self._waiting is not None:
            self._waiting.append(parts)
            self._waiting_bytes += sum(map(len, parts)) + MESSAGE
            if self._waiting_bytes >= _UNREAD:
                self.on_wait(True)
        else:
            self.diallers[lane].send(parts)

    def known(self) -> None:
        waiting, self._waiting = self._waiting or (), None
        self.on_wait(False)
        for parts in waiting:
            self.diallers[Lane.SHELL].send(parts)

    def close(self) -> None:
        self.on_wait(False)
        for dialler in self.diallers.values():
            dialler.close()


class KernelSide:
    """The channels of a kernel in its sandbox. Made by the tenancy for each kernel it starts.

    `endpoints` maps `shell`, `iopub`, `stdin`, `control` to ZeroMQ endpoints. `on_message` gets what the kernel says:
    on iopub as it is, on the others with the client's identity in front. The kernel's output is read at full speed:
    a slow reader would make it drop messages. A frame above `MAX_FRAME` ends its connection before it is read.
    `hold` is asked to keep a lane's messages back while the kernel does not read what was delivered; `too_big` hears of
    what the kernel said and nobody can carry.

    Nothing is asked of the kernel before its output is subscribed to, or the output of the first cell would be lost with
    its end. What it says first shows that it has the subscription, or that it answers a question that came behind it.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        on_message: Handler,
        hold: Hold = lambda *_: None,
        too_big: TooBig = lambda *_: None,
    ) -> None:
        self._hold, self._too_big = hold, too_big
        self._held: set[tuple[Lane, str]] = set()
        self._endpoints, self._on_message = endpoints, on_message
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()
        self._waiting: list[tuple[Lane, Sequence[Part]]] | None = []
        self._waiting_bytes = 0
        self._iopub = Dialler(
            endpoints["iopub"],
            lambda owner: Peer(owner, b"SUB", limit=_UNREAD, longest=MAX_FRAME),
            self._published,
            limit=_UNREAD,
            first=[_SUBSCRIBE],
            on_known=self._subscribed,
            on_oversize=partial(self._too_big, Lane.IOPUB),
        )

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a client's message (identity first) to the kernel. Raises `RemoteProtocolError`."""
        if lane not in LANES.values():
            raise RemoteProtocolError(detail=f"a client's message on the {lane.name} lane")
        if not 0 < len(parts[0]) <= LONGEST_IDENTITY:
            raise RemoteProtocolError(detail=f"a client's identity of {len(parts[0])} bytes")
        if self._waiting is not None:
            self._waiting.append((lane, parts))
            self._waiting_bytes += sum(map(len, parts)) + MESSAGE
            if self._waiting_bytes >= _UNREAD:
                for each in LANES.values():
                    self._keep_back(each, _NOT_YET, True)
        else:
            self._client(bytes(parts[0])).send(lane, parts[1:])

    def pending(self) -> bool:
        """Whether the kernel has said something on iopub that was not read yet."""
        return self._iopub.pending()

    def close(self) -> None:
        """Close every connection. May be called twice."""
        self._waiting = None
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        for lane, why in list(self._held):
            self._keep_back(lane, why, False)
        self._iopub.close()

    def _keep_back(self, lane: Lane, why: str, held: bool) -> None:
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
            self.deliver(lane, parts)
        for lane in LANES.values():
            self._keep_back(lane, _NOT_YET, False)

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
        client = self._clients[identity] = _Client()
        name = identity.hex()
        client.on_wait = partial(
            self._keep_back, Lane.SHELL, f"a kernel that does not know client {name} yet"
        )
        for channel, lane in LANES.items():
            client.diallers[lane] = Dialler(
                self._endpoints[channel],
                lambda owner: Peer(owner, b"DEALER", limit=_UNREAD, identity=own, longest=MAX_FRAME),
                partial(self._said, identity, lane),
                limit=_UNREAD,
                on_known=client.known if lane is Lane.STDIN else lambda: None,
                on_full=partial(self._keep_back, lane, f"{_STANDS_STILL} (client {name})"),
                on_oversize=partial(self._too_big, lane),
            )
        return client

    def _said(self, identity: bytes, lane: Lane, parts: list[Part]) -> None:
        self._on_message(lane, [identity, *parts])
