"""What the tunnel tells its driver: facts, each with one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jupyter_depin.protocol.frames import Lane, Part


@dataclass(frozen=True, slots=True)
class Message:
    """The peer's next message of a lane arrived, in order and for the first time."""

    lane: Lane
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the peer has kept of a lane: `frames` messages to come as they are, and then `messages` of its backlog.

    Of the backlog each message comes, or a marker that stands for some of them.
    """

    frames: int
    messages: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Both sides know what the other has; `resent` messages were taken up again.

    `kept`: what the peer has kept while it could not be sent, for lanes that have a backlog there.
    """

    resent: int
    kept: Mapping[Lane, Kept] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A question is unanswered, or the machine slept: make a new connection beside this one, until `Heard`."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The connection was doubtful, and something came over it."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing was heard for too long: drop this connection and make a new one."""


@dataclass(frozen=True, slots=True)
class LaneFull:
    """A lane holds as much as it may: stop feeding it until `LaneDrained`."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class LaneDrained:
    """A full lane has room again."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The peer was away and has taken by now everything that was said on a lane meanwhile and since."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class Closed:
    """The tunnel is over: its peer stayed away longer than the grace, or it was closed here."""

    expired: bool


Event = Message | Opened | Doubtful | Heard | Silent | LaneFull | LaneDrained | Closed | CaughtUp
