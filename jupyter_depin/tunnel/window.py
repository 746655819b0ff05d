"""One direction pair of one lane: what was sent and not acknowledged, what is expected next.

Bounded by bytes, not by messages: a widget's buffer may be a thousand times a stream line. A message is always taken
(its sender cannot be told to wait in the middle): fullness is reported so that the source is stopped, and what was on
its way by then still comes. How much more is let in, for an interrupt's sake, is the owner's affair. Rejected: dropping the oldest (it loses output), a window in messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import Data, Lane, Part
from jupyter_depin.tunnel.backlog import Backlog
from jupyter_depin.tunnel.flow import Flow


class Window:
    """Numbers messages out, checks numbers in. `flow` says how many bytes are enough; each message counts `OVERHEAD` on top.

    `backlog`: where messages wait while the peer is away. A lane that has one is not full then.
    """

    OVERHEAD = 256
    FEW_PARTS, EACH_PART = 16, 64
    """Parts beyond a few count too: thirty thousand empty ones are a megabyte of objects, and no byte of a message."""

    def __init__(self, lane: Lane, flow: Flow, backlog: Backlog | None = None) -> None:
        self.lane, self._flow, self.backlog = lane, flow, backlog
        self.aside = self.away = backlog is not None
        """Whether a message may have to go to the backlog; whether the peer is away, as far as that matters here."""
        self.late = False
        """Whether the peer was away and has not taken everything since."""
        self.unacked: deque[Data] = deque()
        self.held = 0
        self.taken = 0
        """Bytes that the peer has acknowledged so far."""
        self.full = False
        self.sent = 0
        self.received = 0
        self.told = 0
        self.untold_bytes = 0

    def push(self, parts: Sequence[Part], size: int) -> Data:
        """Number a message of `size` bytes and keep it until it is acknowledged."""
        frame = Data(self.lane, self.sent, parts, size)
        self.sent += 1
        self.unacked.append(frame)
        self.held += self._cost(parts, size)
        return frame

    def _cost(self, parts: Sequence[Part], size: int) -> int:
        return size + self.OVERHEAD + self.EACH_PART * max(0, len(parts) - self.FEW_PARTS)

    def crossed(self) -> bool | None:
        """True once when the lane became full, False once when it drained to half, None otherwise.

        While what was kept goes to the peer, the window in front is filled on purpose: only the backlog counts then.
        """
        if self.full:
            if self.away or self._drained():
                self.full = False
                return False
        elif self.held >= self._flow.limit or self.aside:
            self.full = not self.away and self._swamped()
            return self.full or None
        return None

    def _drained(self) -> bool:
        if self.aside and self.backlog is not None:
            return self.backlog.low
        return self.held <= self._flow.limit // 2

    def put_aside(self, parts: Sequence[Part], size: int, now: int) -> bool:
        """Give a message to the backlog, unless it may be numbered now. Called where `aside`."""
        backlog, self.late = self.backlog, True
        if backlog is None or (
            not backlog.waiting and self.away and self.held + self._cost(parts, size) <= backlog.memory
        ):
            return False
        backlog.put(parts, size, now, away=self.away)
        return True

    def refill(self) -> list[Data]:
        """Number what waits in the backlog, as far as the peer has made room. Called while it is there."""
        frames: list[Data] = []
        if self.backlog is not None and self.aside:
            while self.backlog.waiting and self.held < self.backlog.memory:
                parts = self.backlog.pull()
                frames.append(self.push(parts, sum(map(len, parts))))
            self.aside = self.away or self.backlog.waiting
        return frames

    def kept(self, now: int) -> tuple[int, int]:
        """What is there for a peer that comes back: messages numbered so far, and those that wait behind them."""
        if self.backlog is None:
            return self.sent, 0
        self.backlog.expire(now)
        return self.sent, self.backlog.messages

    def peer_gone(self) -> None:
        """The peer is away from now on."""
        self.aside = self.away = self.backlog is not None
        self.late = self.late or (self.aside and bool(self.unacked))

    def caught_up(self) -> bool:
        """True once when the peer has taken everything since it was away."""
        if self.aside or self.unacked:
            return False
        self.late = False
        return True

    def peer_back(self) -> None:
        """The peer is there, and has said what it took."""
        self.away = False

    def _swamped(self) -> bool:
        if self.aside and self.backlog is not None:
            return self.backlog.high
        return self.held >= self._flow.limit

    def take(self, frame: Data) -> None:
        """Check that the peer's frame is the next one. Raises `RemoteProtocolError`."""
        if frame.seq != self.received:
            raise RemoteProtocolError(
                detail=f"{self.lane.name} message {frame.seq} where {self.received} was due"
            )
        self.received += 1
        self.untold_bytes += frame.size

    def acknowledged(self, count: int) -> bool:
        """The peer has taken `count` messages in all; whether that is news. Raises `RemoteProtocolError` if it cannot have."""
        first = self.unacked[0].seq if self.unacked else self.sent
        if not first <= count <= self.sent:
            raise RemoteProtocolError(detail=f"{self.lane.name}: {count} taken of {first} … {self.sent}")
        while self.unacked and self.unacked[0].seq < count:
            frame = self.unacked.popleft()
            self.held -= self._cost(frame.parts, frame.size)
            self.taken += frame.size
        return count > first

    def tell(self) -> int | None:
        """How many messages were taken, if the peer does not know that yet."""
        if self.told == self.received:
            return None
        self.told, self.untold_bytes = self.received, 0
        return self.received


def held_bytes(windows: Iterable[Window]) -> int:
    """What a tunnel holds in memory for its peer, in bytes."""
    return sum(window.held for window in windows)
