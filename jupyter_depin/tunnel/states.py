"""The states of a tunnel and every step between them, as data: the machine asks it, the diagram is drawn from it."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a tunnel is. The values are for people."""

    DETACHED = "no connection"
    RESUMING = "connected, waiting for the peer's Resume"
    OPEN = "carrying messages"
    CLOSED = "over"


TRANSITIONS: dict[tuple[State, str], State] = {
    (State.DETACHED, "attach"): State.RESUMING,
    (State.RESUMING, "Resume"): State.OPEN,
    (State.RESUMING, "detach"): State.DETACHED,
    (State.OPEN, "Data"): State.OPEN,
    (State.OPEN, "Ack"): State.OPEN,
    (State.OPEN, "Ping"): State.OPEN,
    (State.OPEN, "Pong"): State.OPEN,
    (State.OPEN, "detach"): State.DETACHED,
    (State.DETACHED, "detach"): State.DETACHED,
    (State.DETACHED, "grace over"): State.CLOSED,
    (State.DETACHED, "close"): State.CLOSED,
    (State.RESUMING, "close"): State.CLOSED,
    (State.OPEN, "close"): State.CLOSED,
    (State.CLOSED, "close"): State.CLOSED,
    (State.CLOSED, "detach"): State.CLOSED,
}
"""Every step that is allowed. A frame that is not here breaks the protocol; the diagram is drawn from this."""
