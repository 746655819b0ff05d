"""Those who came to rent and have no lease yet: what they may hold, and for how long. They are free, so both are little.

One holds a stream with one short request on it, a slot for as long as a promise, and its place in this room. Where the
room is full, whoever fills it most makes room: a crowd from one node turns out its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import anyio

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.market import Lease, Offer

HANDSHAKE_S = 15
"""How long a visitor may take for its stream, for each request, and to take an answer."""

MOST_VISITORS = 64
"""Connections without a lease at a time."""
MOST_REQUESTS = 64
"""Requests of one visitor. Renting takes three, and some more where slots are taken or money is missing."""


@dataclass(slots=True)
class Promise:
    """A slot kept for somebody; `opening`: the ledger is being asked, so it does not lapse meanwhile."""

    lease: Lease
    offer: Offer
    slot: int
    opening: bool = False

    def lapsed(self, now: int) -> bool:
        """Whether it no longer binds (Unix seconds)."""
        return not self.opening and self.lease.accept_by < now


@dataclass(slots=True, eq=False)
class Visitor:
    """A connection that is not attached to a lease: the slot it was promised, and the scope that shows it out."""

    peer: NodeId
    scope: anyio.CancelScope
    promise: Promise | None = None
    requests: int = 0

    def asks(self) -> None:
        """It asked something. Raises `RemoteProtocolError` once that is too often."""
        self.requests += 1
        if self.requests > MOST_REQUESTS:
            raise RemoteProtocolError(detail=f"more than {MOST_REQUESTS} requests and no lease")

    def patience(self, now: int) -> int:
        """How long its next request may take, in seconds: one with a promise may have to bring money first."""
        left = self.promise.lease.accept_by - now if self.promise else 0
        return HANDSHAKE_S + max(0, left)


class Visitors:
    """Everybody who is here without a lease. Kept by the agent."""

    def __init__(self) -> None:
        self._here: list[Visitor] = []

    def __len__(self) -> int:
        return len(self._here)

    def admit(self, visitor: Visitor) -> Visitor | None:
        """Let one in, and say who is to leave for that, if anybody: the oldest of the node with the most.

        Whoever just has a deposit locked stays.
        """
        idle = [each for each in self._here if each.promise is None or not each.promise.opening]
        self._here.append(visitor)
        if len(self._here) <= MOST_VISITORS or not idle:
            return None
        crowd = Counter(each.peer for each in idle)
        return next(each for each in idle if crowd[each.peer] == max(crowd.values()))

    def leave(self, visitor: Visitor) -> None:
        """It is no visitor any more: it has gone, or has a lease. May be called twice."""
        if visitor in self._here:
            self._here.remove(visitor)
