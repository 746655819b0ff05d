"""A rental's life as both sides and the browser see it. No I/O, no clock.

```
starting ──> running <──> paused
                 ^  ╲      ^ │
                 │   ╲     │ v
                 └────> reconnecting          any of these ──> ending ──> ended
```

The first reason given stays: a kernel that the user stops while it is in arrears was stopped by the user.

Rejected: `paused` and `reconnecting` as flags beside one "running" state. Everything that shows a rental would then
have to decide which flag wins, each in its own way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from jupyter_depin.errors import LocalProtocolError
from jupyter_depin.protocol.reason import EndReason

__all__ = ["TRANSITIONS", "EndReason", "Lifecycle", "State", "StateChanged"]


class State(StrEnum):
    """Where a rental stands. The values are stable: they reach the browser and the journal."""

    STARTING = "starting"
    """Agreed and paid for, the kernel is not ready yet. A cut link does not change this."""
    RUNNING = "running"
    """The kernel runs and is paid for."""
    PAUSED = "paused"
    """The provider holds the kernel still; nothing is owed meanwhile."""
    RECONNECTING = "reconnecting"
    """The link is down; the kernel runs on as long as it is paid for."""
    ENDING = "ending"
    """The last claim and voucher are exchanged, the kernel is let go. A cut link does not change this."""
    ENDED = "ended"
    """Over. Settlement may still be pending: that is the journal's affair."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.RUNNING, State.ENDING, State.ENDED}),
    State.RUNNING: frozenset({State.PAUSED, State.RECONNECTING, State.ENDING, State.ENDED}),
    State.PAUSED: frozenset({State.RUNNING, State.RECONNECTING, State.ENDING, State.ENDED}),
    State.RECONNECTING: frozenset({State.RUNNING, State.PAUSED, State.ENDING, State.ENDED}),
    State.ENDING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The rental went from `before` to `after` at `now` (ns); `reason` is set from `ending` on."""

    before: State
    after: State
    reason: EndReason | None
    now: int


class Lifecycle:
    """One rental's state. `since` is the moment of the last change, in ns of the driver's clock.

    `state` other than `starting` is for a rental taken up again from the journal.
    """

    def __init__(self, now: int, state: State = State.STARTING) -> None:
        self.state = state
        self.reason: EndReason | None = None
        self.since = now
        self._events: deque[StateChanged] = deque()

    def may(self, state: State) -> bool:
        """Whether the table allows this step now. Asked by drivers where two causes race, e.g. a cut while ending."""
        return state in TRANSITIONS[self.state]

    def to(self, state: State, reason: EndReason | None, now: int) -> None:
        """Take a step. Raises `LocalProtocolError` if it is forbidden, or if an end comes without a reason."""
        if not self.may(state):
            raise LocalProtocolError(detail=f"a rental cannot go from {self.state} to {state}")
        ends = state in (State.ENDING, State.ENDED)
        if ends and reason is None and self.reason is None:
            raise LocalProtocolError(detail=f"a rental went to {state} without a reason")
        if not ends and reason is not None:
            raise LocalProtocolError(detail=f"a rental went to {state} with the reason {reason}")
        before, self.state, self.since = self.state, state, now
        self.reason = self.reason or reason
        self._events.append(StateChanged(before, state, self.reason, now))

    def next_event(self) -> StateChanged | None:
        """The oldest change not yet taken, or None."""
        return self._events.popleft() if self._events else None
