"""The tunnel's state machine. Messages, not bytes, so that a cut at any byte loses and repeats nothing.

A message stays with its sender until the receiver has acknowledged it; after a cut both sides say how far they got,
and what is missing is sent again on the new connection. The machine knows neither role nor content nor clock.

Rejected: trusting QUIC's own acknowledgements (they say that bytes reached a peer's buffer, not that its tunnel took
them); resuming inside one QUIC connection only (it ends after 30 s of silence); one sequence for all lanes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from jupyter_depin.errors import LocalProtocolError, RemoteProtocolError
from jupyter_depin.protocol.frames import (
    MAX_PARTS,
    Ack,
    Control,
    Data,
    Frame,
    Lane,
    Part,
    Ping,
    Pong,
    Resume,
    longest,
    too_big,
)
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.tunnel.backlog import Backlog
from jupyter_depin.tunnel.events import (
    CaughtUp,
    Closed,
    Doubtful,
    Event,
    Heard,
    Kept,
    LaneDrained,
    LaneFull,
    Message,
    Opened,
    Silent,
)
from jupyter_depin.tunnel.flow import Flow
from jupyter_depin.tunnel.pulse import LATE_NS, Finding, Pulse
from jupyter_depin.tunnel.states import TRANSITIONS, State
from jupyter_depin.tunnel.window import Window, held_bytes

ACK_DELAY_NS = NS_PER_SECOND // 10
ACK_BYTES = 1 << 20
"""An acknowledgement waits this long for company, unless this much has come in."""
AFTER_SLEEP_NS = 30 * NS_PER_SECOND
"""A grace that ended while the machine slept goes on for so long."""


class Tunnel:
    """One end of a tunnel. Times are integer ns of any steady clock; the driver calls, nothing here calls out.

    `grace_ns`: how long it may stay detached. `ping_ns`: the pace at which this end asks while nothing goes on, see
    `Pulse` (None: the other side asks). `limit`: the most bytes that a lane may hold before it reports `LaneFull`; on a slow link it
    is less, see `Flow`.
    `backlogs`: for lanes that keep more than that, within bounds of their own, while the peer is away.
    """

    def __init__(
        self,
        *,
        grace_ns: int,
        now: int,
        ping_ns: int | None = None,
        limit: int = 64 << 20,
        backlogs: Mapping[Lane, Backlog] | None = None,
    ) -> None:
        self.state = State.DETACHED
        self._grace_ns, self._ping_ns, self._limit = grace_ns, ping_ns, limit
        self._backlogs = backlogs or {}
        self._flow = Flow(limit)
        self._windows = {lane: Window(lane, self._flow, self._backlogs.get(lane)) for lane in Lane}
        self._out: list[Frame] = []
        self._events: deque[Event] = deque()
        self._give_up_at: int | None = now + grace_ns
        self._ack_at: int | None = None
        self._awaited = False
        self._pulse = Pulse(ping_ns)

    # -- what the driver tells it

    def attach(self, now: int) -> None:
        """A connection was made: greet the peer. Called by the driver before anything is read or written on it."""
        self._step("attach")
        self._pulse.begin(now)
        for window in self._windows.values():
            window.tell()
        kept = {int(lane): self._windows[lane].kept(now) for lane in self._backlogs}
        self._out = [Resume({lane: window.received for lane, window in self._windows.items()}, kept)]

    def detach(self, now: int) -> None:
        """The connection is gone, for whatever reason. Allowed at any time."""
        if self.state in (State.RESUMING, State.OPEN):
            self._give_up_at, self._awaited = now + self._grace_ns, False
        self._step("detach")
        self._pulse.end()
        self._flow.cut()
        # What was found about that connection says nothing of the next one.
        self._events = deque(e for e in self._events if not isinstance(e, Doubtful | Heard | Silent))
        self._out, self._ack_at = [], None
        for lane in self._backlogs:
            self._windows[lane].peer_gone()
            self._report(self._windows[lane])

    def close(self) -> None:
        """The lease is over: forget everything. Allowed at any time."""
        if self.state is not State.CLOSED:
            self._events.append(Closed(expired=False))
        self._step("close")
        self._forget()

    def send(self, lane: Lane, parts: Sequence[Part], now: int) -> None:
        """Take a message for the peer.

        Raises `LocalProtocolError` once the tunnel is closed or on no parts, and `MessageTooBig` for one that the peer
        would refuse: it would be sent again on each connection, and end it.
        """
        if self.state is State.CLOSED or not parts:
            raise LocalProtocolError(detail=f"send on a {self.state.name} tunnel, {len(parts)} parts")
        size = sum(map(len, parts))
        if len(parts) > MAX_PARTS or size > longest(lane):
            raise too_big(size, len(parts), lane)
        window = self._windows[lane]
        if window.aside and window.put_aside(parts, size, now):
            self._report(window)
            return
        frame = window.push(parts, size)
        if self.state is State.OPEN:
            self._out.append(frame)
            self._pulse.owe(now)
            self._flow.sent(now)
        self._report(window)

    def heard(self, now: int) -> None:
        """Some bytes came, be it only a part of a frame: a big message on a narrow link is no silence."""
        if self._pulse.heard(now):
            self._events.append(Heard())

    def receive(self, frame: Frame, now: int) -> None:
        """Take a frame that came over the present connection. Raises `RemoteProtocolError`: drop that connection."""
        if (self.state, type(frame).__name__) not in TRANSITIONS:
            raise RemoteProtocolError(detail=f"{type(frame).__name__} while {self.state.value}")
        self.heard(now)
        match frame:
            case Data():
                window = self._windows[frame.lane]
                window.take(frame)
                self._events.append(Message(frame.lane, frame.parts))
                if window.untold_bytes >= ACK_BYTES:
                    self._acknowledge()
                elif self._ack_at is None:
                    self._ack_at = now + ACK_DELAY_NS
            case Resume():
                self._learn(frame)
                self._step("Resume")
                self._give_up_at = None
                missing = [data for lane in Lane for data in self._windows[lane].unacked]
                self._out.extend(missing)
                self._events.append(Opened(len(missing), self._kept_by_peer(frame)))
                for lane in self._backlogs:
                    self._windows[lane].peer_back()
                    self._advance(self._windows[lane])
                if self.held:
                    self._flow.sent(now)
            case Ack():
                before = self.held
                if not self._learn(frame):
                    raise RemoteProtocolError(detail="an acknowledgement of nothing new")
                self._flow.taken(before - self.held, self.held, now)
            case Ping():
                self._out.append(Pong(frame.nonce))
            case Pong():
                if frame.nonce > self._pulse.nonce:
                    raise RemoteProtocolError(detail="an answer to a question never asked")
                self._pulse.answered(frame.nonce, now)

    def handle_timer(self, now: int) -> None:
        """Call when `get_timer()` has passed; early calls do no harm."""
        if self._give_up_at is not None and now >= self._give_up_at and self.state is State.DETACHED:
            if now - self._give_up_at > LATE_NS and not self._awaited:
                # The machine slept: whether the lease still lives is the peer's to say, so there is one more try.
                self._give_up_at, self._awaited = now + AFTER_SLEEP_NS, True
            else:
                self._step("grace over")
                self._forget()
                self._events.append(Closed(expired=True))
        if self._ack_at is not None and now >= self._ack_at:
            self._acknowledge()
        if self._pulse.at is not None and now >= self._pulse.at:
            self._look(now)

    def renewed(self, now: int) -> Tunnel:
        """A detached tunnel that begins at zero and holds what this one held, for a peer that lost its memory."""
        fresh = Tunnel(
            grace_ns=self._grace_ns,
            now=now,
            ping_ns=self._ping_ns,
            limit=self._limit,
            backlogs=self._backlogs,
        )
        for lane, window in self._windows.items():
            # A lane that was reported full stays so: its source stands still until it hears of the drain.
            its = fresh._windows[lane]
            its.full, its.late = window.full, window.late
            for data in window.unacked:
                its.push(data.parts, data.size)
            fresh._report(its)
        return fresh

    # -- what the driver asks it

    def frames_to_send(self) -> list[Frame]:
        """Frames for the present connection, in order per lane; control frames belong on the control stream."""
        out, self._out = self._out, []
        return out

    def next_event(self) -> Event | None:
        """The next fact, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> int | None:
        """When to call `handle_timer`, or None."""
        give_up = self._give_up_at if self.state is State.DETACHED else None
        return min((t for t in (give_up, self._ack_at, self._pulse.at) if t is not None), default=None)

    @property
    def held(self) -> int:
        """Bytes kept in memory for the peer."""
        return held_bytes(self._windows.values())

    @property
    def taken(self) -> int:
        """Bytes of messages that the peer has taken so far."""
        return sum(window.taken for window in self._windows.values())

    def drained(self, lane: Lane) -> bool:
        """Whether the peer has taken everything that was sent on a lane."""
        window = self._windows[lane]
        return not window.unacked and (window.backlog is None or not window.backlog.waiting)

    def counts(self, lane: Lane) -> tuple[int, int]:
        """How many messages of a lane were numbered for the peer so far, and how many of them it has taken."""
        window = self._windows[lane]
        return window.sent, window.sent - len(window.unacked)

    def caught_up(self, lane: Lane) -> bool:
        """Whether the peer lags no more behind a lane because it was away: all that waited for it was taken."""
        return not self._windows[lane].late

    def full(self, lane: Lane) -> bool:
        """Whether a lane has reported `LaneFull` and not drained since."""
        return self._windows[lane].full

    @property
    def rtt_ns(self) -> int | None:
        """The smoothed time from a question to its answer; None at an end that does not ask, or has no answer yet."""
        return self._pulse.rtt_ns

    # --

    def _look(self, now: int) -> None:
        windows = self._windows.values()
        found = self._pulse.ring(
            now,
            owed=any(window.unacked for window in windows),
            # The meter ticks by itself: its words do not mean that somebody is at work.
            moved=sum(w.sent + w.received for w in windows if w.lane is not Lane.PAYMENT),
        )
        if found is Finding.SILENT:
            self._events.append(Silent())
            return
        if found is not None and self.state is State.OPEN:
            self._out.append(Ping(self._pulse.question(now)))
        if found is Finding.DOUBTFUL:
            self._events.append(Doubtful())

    def _step(self, cause: str) -> None:
        after = TRANSITIONS.get((self.state, cause))
        if after is None:
            raise LocalProtocolError(detail=f"{cause} while {self.state.value}")
        self.state = after

    def _learn(self, frame: Resume | Ack) -> bool:
        """Take note of what the peer has; whether anything of that is news."""
        news = False
        for lane, count in frame.received.items():
            window = self._windows.get(lane)  # type: ignore[call-overload]
            if window is None:
                raise RemoteProtocolError(detail=f"a lane numbered {lane}")
            news = window.acknowledged(count) or news
            self._advance(window)
        return news

    def _advance(self, window: Window) -> None:
        """The peer has made room on a lane."""
        if window.aside and not window.away:
            self._out.extend(window.refill())
        if window.late and window.caught_up():
            self._events.append(CaughtUp(window.lane))
        self._report(window)

    def _kept_by_peer(self, frame: Resume) -> dict[Lane, Kept]:
        kept: dict[Lane, Kept] = {}
        for lane, (sent, behind) in frame.kept.items():
            window = self._windows.get(lane)  # type: ignore[call-overload]
            if window is None or sent < window.received or behind < 0:
                raise RemoteProtocolError(detail=f"{behind} messages kept behind {sent} on lane {lane}")
            kept[window.lane] = Kept(sent - window.received, behind)
        return kept

    def _report(self, window: Window) -> None:
        crossed = window.crossed()
        if crossed is not None:
            self._events.append(LaneFull(window.lane) if crossed else LaneDrained(window.lane))

    def _acknowledge(self) -> None:
        self._ack_at = None
        taken = {int(lane): count for lane, w in self._windows.items() if (count := w.tell()) is not None}
        if taken:
            self._out.append(Ack(taken))

    def _forget(self) -> None:
        self._out, self._ack_at, self._give_up_at = [], None, None
        self._pulse.end()
        for window in self._windows.values():
            window.unacked.clear()
            window.held = 0
        for backlog in self._backlogs.values():
            backlog.close()


def is_control(frame: Frame) -> bool:
    """Whether a frame belongs on the control stream rather than on a lane's own."""
    return isinstance(frame, Control)
