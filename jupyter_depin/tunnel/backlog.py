"""What one lane says while its peer is away: kept in a store in order, within bounds, the oldest dropped first.

A message has no number in its lane before it leaves the backlog, so the peer never asks for one that was dropped; in
its place goes a marker that says how many messages and bytes are missing. Messages lie in pieces, and a whole piece is
dropped at a time: its space comes back at once, and nothing is ever rewritten. While the peer is there, nothing is
dropped for the bounds' sake: the lane reports that it is full, and its source is stopped.

Rejected: dropping the newest (what a person wants to see on return is how it ended); a ring file (a message that
straddles its end, and one torn write that costs everything behind it); numbers given on arrival (a drop would leave a
hole that no acknowledgement can cross).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jupyter_depin.protocol.frames import Part
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.tunnel.store import Store

_PIECES = 16
"""A full backlog has about so many pieces: what is dropped at once is a small part of it."""
_FEW_PARTS, _EACH_PART = 16, 4
"""Parts beyond a few count what their lengths take on disk."""
_RECORD = 64
"""Bytes that each message counts on top of its own, so that empty ones are bounded too."""
_RETRY_NS = NS_PER_SECOND
"""A store that failed is let alone for so long: a full disk must not cost an attempt per message."""


@dataclass(slots=True)
class Allowance:
    """What several backlogs may take of one store's place together, in bytes."""

    limit: int
    taken: int = 0


@dataclass(slots=True)
class _Piece:
    """Missing messages first, then those that are kept and were not pulled yet."""

    number: int
    newest: int
    missing: int = 0
    missing_bytes: int = 0
    messages: int = 0
    bytes: int = 0
    cost: int = 0
    sealed: bool = False

    def lose(self, messages: int, size: int) -> None:
        self.missing += messages
        self.missing_bytes += size


class Backlog:
    """The messages of one lane that wait behind its window. Owned by the tunnel.

    `limit` bytes while the peer is away (twice that at most while it is there); `age_ns`: what is older goes too.
    `memory`: how much the window in front of it holds. `marker` makes the message that stands for missing ones.
    """

    def __init__(
        self,
        store: Store,
        *,
        limit: int,
        age_ns: int,
        memory: int,
        marker: Callable[[int, int], Sequence[Part]],
        together: Allowance | None = None,
    ) -> None:
        self._store, self._limit, self._age_ns, self._marker = store, limit, age_ns, marker
        self._together = together or Allowance(2 * limit)
        self.memory = memory
        self._pieces: deque[_Piece] = deque()
        self._number = 0
        self._retry_at: int | None = None
        self.taken = 0
        self.messages = 0

    @property
    def waiting(self) -> bool:
        """Whether anything is to be pulled."""
        return bool(self._pieces)

    @property
    def high(self) -> bool:
        """Whether the source should stand still while the peer is there."""
        return self.taken >= self._limit + self._limit // 2

    @property
    def low(self) -> bool:
        """Whether it may go on."""
        return self.taken <= self._limit

    @property
    def brimful(self) -> bool:
        """Whether the next message costs an older one, whoever is there."""
        return self.taken >= 2 * self._limit

    def put(self, parts: Sequence[Part], size: int, now: int, *, away: bool) -> None:
        """Keep a message of `size` bytes behind the others; or count it as missing, if it cannot be kept."""
        if away:
            self.expire(now)
        cost = size + _RECORD + _EACH_PART * max(0, len(parts) - _FEW_PARTS)
        others = self._together.taken - self.taken
        most = min(self._limit if away else 2 * self._limit, self._together.limit - others)
        while self.taken and self.taken + cost > most >= cost:
            self._drop_oldest()
        if cost > most or not self._stored(parts, size, cost, now):
            self._behind(now).lose(1, size)
        self.messages += 1

    def pull(self) -> Sequence[Part]:
        """The next message, or the marker for missing ones. Only while `waiting`."""
        piece = self._pieces[0]
        parts = None if piece.missing else self._store.read(piece.number)
        if parts is None:
            if not piece.missing:
                piece.lose(piece.messages, piece.bytes)
                piece.messages, piece.bytes, piece.sealed = 0, 0, True
            parts = self._marker(piece.missing, piece.missing_bytes)
            self.messages -= piece.missing
            piece.missing = piece.missing_bytes = 0
        else:
            self.messages -= 1
            piece.messages -= 1
            piece.bytes -= sum(map(len, parts))
        if not piece.messages:
            self._pieces.popleft()
            self._free(piece)
        return parts

    def expire(self, now: int) -> None:
        """Drop what is too old. Called also when the peer comes back."""
        while self.taken and now - self._pieces[0].newest > self._age_ns:
            self._drop_oldest()

    def discard(self) -> tuple[int, int]:
        """Forget what waits: how many messages and bytes that were, the missing ones among them."""
        lost = (self.messages, sum(piece.bytes + piece.missing_bytes for piece in self._pieces))
        for piece in self._pieces:
            self._free(piece)
        self._pieces.clear()
        self.messages = 0
        return lost

    def close(self) -> None:
        """Forget everything for good."""
        self.discard()
        self._store.close()

    # --

    def _stored(self, parts: Sequence[Part], size: int, cost: int, now: int) -> bool:
        if self._retry_at is not None and now < self._retry_at:
            return False
        self._retry_at = None
        last = self._pieces[-1] if self._pieces else None
        piece = last if last is not None and not last.sealed else self._new(now)
        if not self._store.append(piece.number, parts):
            self._retry_at = now + _RETRY_NS
            piece.sealed = True
            if piece is not last:
                self._pieces.pop()
                self._store.remove(piece.number)
            return False
        piece.messages += 1
        piece.bytes += size
        piece.cost += cost
        piece.newest = now
        piece.sealed = piece.cost >= self._limit // _PIECES
        self.taken += cost
        self._together.taken += cost
        return True

    def _behind(self, now: int) -> _Piece:
        """A piece at the end whose missing messages come behind all that is kept."""
        if not self._pieces or self._pieces[-1].messages:
            return self._new(now)
        return self._pieces[-1]

    def _new(self, now: int) -> _Piece:
        self._number += 1
        self._pieces.append(_Piece(self._number, now))
        return self._pieces[-1]

    def _drop_oldest(self) -> None:
        piece = self._pieces.popleft()
        self._free(piece)
        if not self._pieces:
            self._new(piece.newest)
        self._pieces[0].lose(piece.missing + piece.messages, piece.missing_bytes + piece.bytes)

    def _free(self, piece: _Piece) -> None:
        self._store.remove(piece.number)
        self.taken -= piece.cost
        self._together.taken -= piece.cost
