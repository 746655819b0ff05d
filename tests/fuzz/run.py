"""Knocks at all doors in turn, and counts what came back."""

from __future__ import annotations

import random
import resource
import traceback
from collections import Counter
from dataclasses import dataclass, field

from tests.fuzz.doors import Door, plain_doors
from tests.fuzz.words import Speaker


@dataclass
class Outcome:
    """What a run saw. `wrong`: one line for each kind of thing that should not have been raised, and where first."""

    knocks: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    grown: int = 0
    """Bytes that the process grew by between the first tenth and the end."""


def knock(door: Door, outcome: Outcome) -> None:
    """One frame."""
    outcome.knocks[door.name] += 1
    try:
        door.knock()
    except door.allowed:
        outcome.refused[door.name] += 1
        door.shut()
    except Exception as error:
        told(outcome, door.name, error)
        door.shut()


def told(outcome: Outcome, name: str, error: Exception) -> None:
    """Note what should not have been raised."""
    what = f"{name}: {type(error).__name__}: {str(error)[:200]}"
    outcome.wrong.setdefault(what, "".join(traceback.format_exception(error)[-4:]))


def plain(frames: int, seed: int) -> Outcome:
    """A run over the doors that need no world."""
    outcome = Outcome()
    rng = random.Random(seed)
    doors = plain_doors(Speaker(rng))
    first = 0
    for i in range(frames):
        knock(doors[i % len(doors)], outcome)
        if i == frames // 10:
            first = peak()
    outcome.grown = peak() - first
    return outcome


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
