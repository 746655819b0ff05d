"""Pumps one tunnel machine between a connection and whoever uses the lanes. Both sides use it.

A lane has a stream of its own, with a reader and a writer task. Everything that comes in is handed on synchronously
in the reader; everything that goes out is queued per lane and joined into few writes, since each await of the
transport costs a wake-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.frame_queue import FrameQueue
from jupyter_depin.errors import DepinError, RemoteProtocolError
from jupyter_depin.protocol.compressed import LaneDecoder
from jupyter_depin.protocol.frames import (
    PRIORITY,
    Control,
    Data,
    Lane,
    MessageDecoder,
    Part,
    encode_data,
    encode_message,
)
from jupyter_depin.protocol.messages import Wish
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.transport import Connection, Stream
from jupyter_depin.tunnel.events import Event, Message, Opened, Silent
from jupyter_depin.tunnel.machine import Tunnel
from jupyter_depin.tunnel.states import State
from jupyter_depin.tunnel.thrift import BUSY_BYTES, Count, Thrift

log = logging.getLogger(__name__)

_READ = 1 << 20
_LOOK_NS = NS_PER_SECOND
"""The path's round-trip time is looked at no more often than this."""
_FEW = 64
"""Messages of a read that need no turn of the others behind them."""
_READ_CONTROL = 1 << 14
"""Some hundred words at a time: whoever floods this stream must not hold up the others."""
_BIG_LANES = (Lane.SHELL, Lane.IOPUB)
"""Lanes whose messages may be long."""
_CONTROL_PRIORITY = max(PRIORITY.values()) + 10
"""Above every lane: an acknowledgement or an answer to a ping that waits behind an output looks like a dead link."""
_CONTROL_LIMIT = 1 << 20
"""Bytes that may wait on the control stream: a peer that asks and asks and never reads the answers is let go."""


class TunnelDriver:
    """One end of a tunnel in motion. `on_message` and `on_event` are called from the loop and must not block.

    What they raise as `DepinError` ends the present connection. `opens`: whether this side opens the lanes' streams.
    `thrift`: whether this end compresses what it sends.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        opens: bool,
        on_message: Callable[[Lane, Sequence[Part]], None],
        on_event: Callable[[Event], None],
        thrift: Wish = "auto",
    ) -> None:
        self.tunnel = tunnel
        self._thrift = Thrift(thrift)
        self._opens = opens
        self._on_message, self._on_event = on_message, on_event
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._armed: int | None = None
        self._control = FrameQueue()
        self._lanes = {lane: FrameQueue(small=lane not in _BIG_LANES) for lane in Lane}
        self._decoders = {lane: LaneDecoder(lane) for lane in Lane}
        self._spared_down = 0
        self._scope: anyio.CancelScope | None = None
        self._free = anyio.Lock()
        self._newest: Connection | None = None
        self._renew = False
        self._memory: bytes | None = None
        self._pumping = False
        self._reason = ""
        self._moved: asyncio.Event | None = None
        self._open = asyncio.Event()
        self._holders: dict[Lane, set[str]] = {lane: set() for lane in Lane}
        self._going = {lane: asyncio.Event() for lane in Lane}
        for going in self._going.values():
            going.set()
        self.connection: Connection | None = None
        self.bytes_down = 0
        self.joined = 0
        """Bytes that were spared before they came to the tunnel, as far as its owner knows."""
        self._look_at = self._compressed = 0
        self.thrifty = False
        """Whether this end compresses what it sends."""
        self._follow()
        self._arm()

    @property
    def attached(self) -> bool:
        """Whether messages flow now."""
        return self.tunnel.state is State.OPEN

    def send(self, lane: Lane, *parts: Part) -> None:
        """Send a message on a lane, now or as soon as the link is back. Does nothing once the tunnel is closed."""
        if self.tunnel.state is not State.CLOSED:
            self.tunnel.send(lane, parts, steady_ns())
            self._pump()

    def hold(self, lane: Lane, held: bool, by: str) -> None:
        """Hand on nothing more of a lane while anybody holds it (`by`); what the peer sends waits at the peer.

        Called by the channels when their readers stand still. What was handed over in the same moment still comes.
        """
        holders = self._holders[lane]
        (holders.add if held else holders.discard)(by)
        (self._going[lane].clear if holders else self._going[lane].set)()

    @property
    def bytes_up(self) -> int:
        """Bytes that were handed to the transport so far, over all connections."""
        return self._control.written + sum(queue.written for queue in self._lanes.values())

    def asked(self, wish: Wish) -> None:
        """The peer asks for thrift, or for none, or leaves it to this end. Called by the owner of the tunnel."""
        self._thrift.asked = wish
        self._follow()

    @property
    def spares(self) -> bool:
        """Whether either side compresses now."""
        return self.thrifty or any(decoder.compressed for decoder in self._decoders.values())

    @property
    def spared(self) -> int:
        """Bytes that were kept off the wire so far, in both directions."""
        up = sum(queue.spared for queue in self._lanes.values())
        down = self._spared_down + sum(decoder.spared for decoder in self._decoders.values())
        return max(0, up + down) + self.joined

    async def taken(self, lane: Lane) -> None:
        """Wait until the peer has taken everything that was sent on a lane."""
        while not self.tunnel.drained(lane):
            if self._moved is None:
                self._moved = asyncio.Event()
            await self._moved.wait()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something from the loop after a while."""
        self._loop.call_later(seconds, call)

    def drop(self) -> None:
        """Give up the present connection, if there is one; the tunnel lives on."""
        if self._scope is not None:
            self._scope.cancel()

    def close(self) -> None:
        """End the tunnel for good."""
        self.tunnel.close()
        self.drop()
        self._pump()

    async def carry(
        self,
        connection: Connection,
        control: Stream,
        *,
        memory: bytes = b"",
        admitted: Callable[[Stream], Awaitable[None]] | None = None,
    ) -> str:
        """Carry the tunnel over a connection until that ends, and say why it did. A newer call ends an older one.

        `admitted`: waits on the control stream for the peer's consent, which comes before its first frame.
        `memory` names what the peer remembers: with another one than before it begins at zero, so this end does too.
        """
        self.drop()
        # What a superseded call was told of the peer's memory still holds for the one that comes after it.
        self._newest, self._renew = connection, self._renew or self._memory not in (None, memory)
        self._memory = memory
        async with self._free:
            if self.tunnel.state is State.CLOSED:
                return "the rental has ended"
            if self._newest is not connection:
                return "a newer connection came"
            if self._renew:
                self.tunnel, self._renew = self.tunnel.renewed(steady_ns()), False
            self._reason, reason = "", "dropped"
            self.connection = connection
            try:
                with anyio.CancelScope() as self._scope:
                    async with anyio.create_task_group() as tasks:
                        control.set_priority(_CONTROL_PRIORITY)
                        self.tunnel.attach(steady_ns())
                        tasks.start_soon(self._control.run, control)
                        tasks.start_soon(self._read_control, control, admitted)
                        if self._opens:
                            for lane in Lane:
                                tasks.start_soon(self._open_lane, tasks, connection, lane)
                        tasks.start_soon(self._accept_lanes, tasks, connection)
                        self._pump()
            except* DepinError as failures:
                reason = str(failures.exceptions[0])
                log.info("a connection ended: %s", reason)
            finally:
                self._scope = self.connection = None
                self._open.clear()
                self.tunnel.detach(steady_ns())
                self._thrift.cut()
                for queue in (self._control, *self._lanes.values()):
                    queue.clear()
                self._pump()
            return self._reason or reason

    # -- streams

    async def _open_lane(self, tasks: TaskGroup, connection: Connection, lane: Lane) -> None:
        # Before the peer's consent it would be a stranger's stream.
        await self._open.wait()
        stream = await connection.open_stream()
        stream.set_priority(PRIORITY[lane])
        await stream.write(bytes([lane]))
        self._start_lane(tasks, stream, lane, b"")

    async def _accept_lanes(self, tasks: TaskGroup, connection: Connection) -> None:
        # Nobody reads a stream that has no lane, so a peer could fill any number of them: there is none.
        missing = set() if self._opens else set(Lane)
        while True:
            stream = await connection.accept_stream()
            first = await stream.read(_READ)
            lane = Lane(first[0]) if first and first[0] in set(Lane) else None
            if lane not in missing:
                raise RemoteProtocolError(detail=f"a stream that begins with {first[:1].hex()!r}")
            missing.discard(lane)
            stream.set_priority(PRIORITY[lane])
            self._start_lane(tasks, stream, lane, first[1:])

    def _start_lane(self, tasks: TaskGroup, stream: Stream, lane: Lane, first: bytes) -> None:
        tasks.start_soon(self._lanes[lane].run, stream)
        tasks.start_soon(self._read_lane, stream, lane, first)

    async def _read_lane(self, stream: Stream, lane: Lane, first: bytes) -> None:
        self._spared_down += self._decoders[lane].spared
        decoder = self._decoders[lane] = LaneDecoder(lane)
        data = first or await stream.read(_READ)
        while data:
            self._heard(data)
            # Streams overtake each other: a lane's first bytes may be here before the peer's Resume is.
            await self._open.wait()
            await self._hand_on(lane, decoder, data)
            await self._going[lane].wait()
            data = await stream.read(_READ)
        raise RemoteProtocolError(detail=f"the {lane.name} stream ended")

    async def _hand_on(self, lane: Lane, decoder: LaneDecoder, data: bytes) -> None:
        while True:
            await self._going[lane].wait()
            frames = decoder.feed(data)
            if frames:
                for frame in frames:
                    self.tunnel.receive(frame, steady_ns())
                self._pump()
            if not decoder.more and len(frames) <= _FEW:
                return
            # Little on the wire may be much here: others have their turns in between.
            data = b""
            await anyio.lowlevel.checkpoint()
            if not decoder.more:
                return

    async def _read_control(
        self, stream: Stream, admitted: Callable[[Stream], Awaitable[None]] | None
    ) -> None:
        if admitted is not None:
            await admitted(stream)
        decoder: MessageDecoder[Control] = MessageDecoder(Control)
        while data := await stream.read(_READ_CONTROL):
            self._heard(data)
            for frame in decoder.feed(data):
                self.tunnel.receive(frame, steady_ns())
            self._pump()
            self._measure()
        raise RemoteProtocolError(detail="the control stream ended")

    # -- the machines

    def _heard(self, data: bytes) -> None:
        self.bytes_down += len(data)
        self.tunnel.heard(steady_ns())

    def _pump(self) -> None:
        # A handler that sends comes back here: its frames go out at the end, and no message is handled inside another.
        if self._pumping:
            return
        self._pumping = True
        try:
            while (event := self.tunnel.next_event()) is not None:
                try:
                    self._handle(event)
                except DepinError as error:
                    # Whoever sends just now has no part in it: the connection ends, the caller goes on.
                    self._give_up(str(error))
        finally:
            self._pumping = False
            big = False
            for frame in self.tunnel.frames_to_send():
                if isinstance(frame, Data):
                    self._lanes[frame.lane].put(encode_data(frame))
                    big = big or frame.size >= BUSY_BYTES
                else:
                    self._control.put([encode_message(frame)])
            if self._moved is not None:
                self._moved.set()
                self._moved = None
            self._arm()
        if big:
            self._measure()
        if self._control.size > _CONTROL_LIMIT:
            self._give_up("it asks much and reads no answers")

    def _measure(self) -> None:
        lanes = self._lanes.values()
        spared = sum(queue.spared for queue in lanes)
        count = Count(steady_ns(), self.tunnel.taken, self.bytes_up, spared)
        self._thrift.moved(count, self.tunnel.held)
        if count.at >= self._look_at:
            self._look_at = count.at + _LOOK_NS
            path = self.connection.path() if self.connection is not None else None
            if path is not None:
                self._thrift.way(path.rtt_ms)
        self._follow()

    def _follow(self) -> None:
        if self._thrift.on != self.thrifty:
            self.thrifty = self._thrift.on
            log.info("what is sent is %s from here on", "compressed" if self.thrifty else "plain")
        if self._thrift.most != self._compressed:
            self._compressed = self._thrift.most
            for queue in self._lanes.values():
                queue.compressed = self._compressed

    def _give_up(self, reason: str) -> None:
        log.info("a connection is given up: %s", reason)
        self._reason = self._reason or reason
        self.drop()

    def _handle(self, event: Event) -> None:
        if isinstance(event, Message):
            self._on_message(event.lane, event.parts)
        elif isinstance(event, Silent):
            self.drop()
        else:
            if isinstance(event, Opened):
                self._open.set()
            self._on_event(event)

    def _arm(self) -> None:
        due = self.tunnel.get_timer()
        if due == self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed, self._timer = due, None
        if due is not None:
            self._timer = self._loop.call_later(max(0, due - steady_ns()) / 1e9, self._ring)

    def _ring(self) -> None:
        self._armed = self._timer = None
        self.tunnel.handle_timer(steady_ns())
        self._pump()
