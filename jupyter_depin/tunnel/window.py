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


class Window:
    """Numbers messages out, checks numbers in. `limit` is in bytes; each message counts `OVERHEAD` on top."""

    OVERHEAD = 256

    def __init__(self, lane: Lane, limit: int) -> None:
        self.lane, self._limit = lane, limit
        self.unacked: deque[Data] = deque()
        self.held = 0
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
        self.held += frame.size + self.OVERHEAD
        return frame

    def crossed(self) -> bool | None:
        """True once when the lane became full, False once when it drained to half, None otherwise."""
        if not self.full and self.held >= self._limit:
            self.full = True
            return True
        if self.full and self.held <= self._limit // 2:
            self.full = False
            return False
        return None

    def take(self, frame: Data) -> None:
        """Check that the peer's frame is the next one. Raises `RemoteProtocolError`."""
        if frame.seq != self.received:
            raise RemoteProtocolError(
                detail=f"{self.lane.name} message {frame.seq} where {self.received} was due"
            )
        self.received += 1
        self.untold_bytes += frame.size

    def acknowledged(self, count: int) -> None:
        """The peer has taken `count` messages in all. Raises `RemoteProtocolError` if it cannot have."""
        first = self.unacked[0].seq if self.unacked else self.sent
        if not first <= count <= self.sent:
            raise RemoteProtocolError(detail=f"{self.lane.name}: {count} taken of {first} … {self.sent}")
        while self.unacked and self.unacked[0].seq < count:
            self.held -= self.unacked.popleft().size + self.OVERHEAD

    def tell(self) -> int | None:
        """How many messages were taken, if the peer does not know that yet."""
        if self.told == self.received:
            return None
        self.told, self.untold_bytes = self.received, 0
        return self.received


def held_bytes(windows: Iterable[Window]) -> int:
    """What a tunnel holds in memory for its peer, in bytes."""
    return sum(window.held for window in windows)
