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

from jupyter_depin.channels.curve import CurveServer
from jupyter_depin.channels.header import DELIMITER, header
from jupyter_depin.channels.lanes import LANES, Handler, Hold, TooBig
from jupyter_depin.channels.patience import Patience
from jupyter_depin.channels.peer import LONGEST_TOPIC, Peer
from jupyter_depin.channels.places import Listener
from jupyter_depin.channels.zmtp import encode
from jupyter_depin.errors import TransportError
from jupyter_depin.protocol.frames import MAX_FRAME, Lane, Part
from jupyter_depin.protocol.local import LocalInfo

_UNREAD = 64 << 20
"""Bytes kept for each client that does not read, per channel; then the kernel's messages of that channel wait."""


class _Channel:
    """One channel and the connections that clients made to it (`Owner`). `on_full`: whether any of them does not read."""

    def __init__(
        self,
        name: str,
        info: LocalInfo,
        on_message: Callable[[Peer, list[Part]], None],
        on_full: Callable[[bool], None],
        on_oversize: Callable[[int, int], None],
    ) -> None:
        self._on_message, self._on_full, self._on_oversize = on_message, on_full, on_oversize
        self._info = info
        # Keys that are none are told now, not to each client.
        self._curve()
        self._kind = b"XPUB" if name == "iopub" else b"ROUTER"
        self.peers: dict[bytes, Peer] = {}
        """Those whose handshake is over, by identity."""
        self._strangers: set[Peer] = set()
        self._full: set[Peer] = set()
        self._patience = Patience(name, lambda: self.peers.values())
        self._paused = self._closed = False
        self._longest = MAX_FRAME if name in LANES else LONGEST_TOPIC + 1
        self._listener = Listener(info.url(name), self._peer)

    def deliver(self, parts: Sequence[Part]) -> None:
        """Send to the client that the first part names; nobody else would want it."""
        peer = self.peers.get(bytes(parts[0]))
        if peer is not None:
            peer.send(parts[1:])

    def publish(self, parts: Sequence[Part]) -> None:
        """Send to every client that has subscribed to it."""
        pieces = encode(parts)
        for peer in self.peers.values():
            if peer.wants(parts[0]):
                peer.send(parts, pieces)

    def pause(self, paused: bool) -> None:
        """Stop or go on taking messages."""
        self._paused = paused
        for peer in self.peers.values():
            peer.pause(paused)

    @property
    def held(self) -> int:
        """Bytes that wait for the client that is behind most."""
        return max((peer.held for peer in self.peers.values()), default=0)

    @property
    def over(self) -> bool:
        """Whether some client does not read."""
        return bool(self._full)

    def close(self) -> None:
        """Take no more connections, and end those that are there. May be called twice."""
        self._closed = True
        self._listener.close()
        peers, self.peers = self.peers, {}
        for peer in (*peers.values(), *self._strangers):
            peer.close()
            self._unfull(peer)
        self._strangers.clear()

    # -- `Owner`

    def ready(self, peer: Peer) -> None:
        """A client is there. One that comes back under its name takes its older connection's place."""
        self._strangers.discard(peer)
        older = self.peers.pop(peer.identity, None)
        if older is not None:
            older.cut()
            self._unfull(older)
        self.peers[peer.identity] = peer
        peer.pause(self._paused)

    def message(self, peer: Peer, parts: list[Part]) -> None:
        """A client says something, or subscribes."""
        if self.peers.get(peer.identity) is peer:
            self._on_message(peer, parts)

    def oversize(self, peer: Peer, size: int, parts: int) -> None:
        """A client says more than is carried."""
        self._on_oversize(size, parts)

    def full(self, peer: Peer, full: bool) -> None:
        """A client does not read, or does again."""
        if not full:
            self._unfull(peer)
        elif self.peers.get(peer.identity) is peer:
            self._full.add(peer)
            if len(self._full) == 1:
                self._patience.watch(True)
                self._on_full(True)

    def answered(self, peer: Peer) -> None:
        """Nothing is asked here."""

    def lost(self, peer: Peer) -> None:
        """A client has gone."""
        self._strangers.discard(peer)
        if self.peers.get(peer.identity) is peer:
            del self.peers[peer.identity]
        self._unfull(peer)

    # --

    def _peer(self) -> Peer:
        peer = Peer(self, self._kind, limit=_UNREAD, curve=self._curve(), longest=self._longest)
        self._strangers.add(peer)
        if self._closed:
            # It came while this was closed.
            peer.cut()
        return peer

    def _curve(self) -> CurveServer | None:
        public, secret = self._info.curve_publickey, self._info.curve_secretkey
        if not public or not secret:
            return None
        try:
            return CurveServer(public, secret)
        except ValueError as error:
            raise TransportError(detail=f"the connection file's keys: {error}") from error

    def _unfull(self, peer: Peer) -> None:
        if peer in self._full:
            self._full.discard(peer)
            if not self._full:
                self._patience.watch(False)
                self._on_full(False)


class ClientSide:
    """The channels that Jupyter clients connect to. Made by the rental; `on_message` gets what clients send.

    Each message to the lanes begins with the client's identity. `hold` is asked to keep a lane's messages back while
    its clients do not read; `too_big` hears of what clients asked and nobody can carry. Raises `PortInUse`,
    `TransportError`.
    """

    def __init__(
        self,
        info: LocalInfo,
        on_message: Handler,
        hold: Hold = lambda *_: None,
        too_big: TooBig = lambda *_: None,
    ) -> None:
        self.info = info
        self._on_message, self._hold, self._too_big = on_message, hold, too_big
        self.channels: dict[str, _Channel] = {}
        self.last_request: bytes = b"{}"
        self.beating = True
        """Whether the heartbeat is answered. It stops with the kernel, not with the link."""
        self._attended = True
        self._paused: set[Lane] = set()
        try:
            for name in ("shell", "stdin", "control", "iopub", "hb"):
                self.channels[name] = self._channel(name)
        except BaseException:
            self.close()
            raise

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a message from the kernel to the clients."""
        if lane is Lane.IOPUB:
            # Each subscriber was already welcomed here, at the moment it subscribed.
            if b'"iopub_welcome"' in header(parts):
                return
            self.channels["iopub"].publish(parts)
        else:
            self.channels[lane.name.lower()].deliver(parts)

    def say(self, text: str, request: bytes = b"") -> None:
        """Show a line in a cell's output, as if the kernel had written it to standard error.

        `request`: the header of the cell's request; without it, it is the one that ran last.
        """
        content = {"name": "stderr", "text": text + "\n"}
        message = self._message(b"stream.stderr", "stream", content, request or self.last_request)
        self.channels["iopub"].publish(message)

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
            self.channels[channel].pause(not self._attended or lane in self._paused)

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
        """Close every channel. May be called twice."""
        for channel in self.channels.values():
            channel.close()

    def _channel(self, name: str) -> _Channel:
        lane = Lane[name.upper()] if name != "hb" else None

        def full(full: bool) -> None:
            if lane is not None:
                self._hold(lane, full, "clients that do not read")

        def oversize(size: int, parts: int) -> None:
            if lane is not None and lane is not Lane.IOPUB:
                self._too_big(lane, size, parts)

        return _Channel(name, self.info, self._receiver(name), full, oversize)

    def _receiver(self, channel: str) -> Callable[[Peer, list[Part]], None]:
        if channel == "hb":
            # Who reads no answers gets none: they would pile up.
            return lambda peer, parts: peer.send(parts) if self.beating and not peer.is_full else None
        if channel == "iopub":
            return lambda peer, parts: self._welcome(peer, bytes(parts[0]))
        lane = LANES[channel]

        def receive(peer: Peer, parts: list[Part]) -> None:
            if lane is Lane.SHELL:
                self._remember(parts)
            self._on_message(lane, [peer.identity, *parts])

        return receive

    def _remember(self, parts: list[Part]) -> None:
        asked = header(parts)
        if b'"execute_request"' in asked:
            self.last_request = asked

    def _welcome(self, peer: Peer, topic: bytes) -> None:
        if peer.is_full:
            return
        content = {"subscription": topic.decode(errors="replace")}
        peer.send(self._message(topic, "iopub_welcome", content, b"{}"))

    def _message(self, topic: bytes, kind: str, content: dict[str, str], parent: bytes) -> list[Part]:
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
        return [*([topic] if topic else []), DELIMITER, signature, *frames]
