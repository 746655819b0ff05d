"""The playbook: a machine's test written as a play. `>>` is what happens to it, `<<` the event that must follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class Playbook:
    """`play >> (now, verb, *arguments) << Event(...)`. Between two lines of `>>` every event must have been named."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.script: list[str] = []

    def __rshift__(self, line: tuple[Any, ...]) -> Playbook:
        self.over()
        now, verb, *arguments = line
        self.script.append(f">> {line}")
        getattr(self.machine, verb)(*arguments, now)
        return self

    def __lshift__(self, expected: object) -> Playbook:
        got = self.machine.next_event()
        self.script.append(f"<< {got}")
        assert got == expected, "\n".join(["", *self.script, f"-- expected {expected}"])
        return self

    def over(self) -> None:
        left = self.machine.next_event()
        assert left is None, "\n".join(["", *self.script, f"<< {left}", "-- expected nothing more"])


@pytest.fixture
def play() -> Callable[[Any], Playbook]:
    """Makes a playbook for a machine."""
    return Playbook
