"""Port to where a backlog lies: in memory (here), or on a provider's disk (`provider_kernel/spool.py`).

A store knows pieces, which are numbered by their owner, and the order of messages in each; it counts and decides
nothing. It never raises: what fails is said in the answer, and its owner counts the loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from jupyter_depin.protocol.frames import Part


class Store(Protocol):
    """Messages in pieces. One piece at a time is written, and one at a time is read, each from its begin to its end."""

    def append(self, piece: int, parts: Sequence[Part]) -> bool:
        """Add a message to a piece, which is made with its first. False: it is not kept, nor will a next one be."""

    def read(self, piece: int) -> Sequence[Part] | None:
        """The next message of a piece. None: what is left of the piece cannot be read."""

    def remove(self, piece: int) -> None:
        """Forget a piece, whether it is there or not."""

    def close(self) -> None:
        """Forget everything. May be called twice."""


class MemoryStore:
    """The twin in memory."""

    def __init__(self) -> None:
        self._pieces: dict[int, deque[list[Part]]] = {}

    def append(self, piece: int, parts: Sequence[Part]) -> bool:
        """Always kept."""
        self._pieces.setdefault(piece, deque()).append([bytes(part) for part in parts])
        return True

    def read(self, piece: int) -> Sequence[Part] | None:
        """None only at a piece's end."""
        messages = self._pieces.get(piece)
        return messages.popleft() if messages else None

    def remove(self, piece: int) -> None:
        """Forget a piece."""
        self._pieces.pop(piece, None)

    def close(self) -> None:
        """Forget everything."""
        self._pieces.clear()
