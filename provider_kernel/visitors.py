"""Those who came to rent and have no lease yet: what they may hold, and for how long. They are free, so both are little."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.market import Lease, Offer

HANDSHAKE_S = 15
"""How long a visitor may take for its stream, for each request, and to take an answer."""


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

    def patience(self, now: int) -> int:
        """How long its next request may take, in seconds: one with a promise may have to bring money first."""
        left = self.promise.lease.accept_by - now if self.promise else 0
        return HANDSHAKE_S + max(0, left)
