"""Memory for what a peer announces and then sends: it takes room only as it is filled, so a giant length costs nothing.

New memory is the dearest part of a big message: each page of it is a fault, which takes longer than filling it. So a
little of what was used is kept and used again, once nobody looks at it any more.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Sequence

_MAPPED = 1 << 20
"""From this size on memory comes from the system page by page. Below, that costs more than it spares."""
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_KEPT, _KEPT_BYTES = 4, 160 << 20
"""So much is kept at most: two messages of the size that a lane holds."""
# Shared memory, which Python would take, is filled five times as slowly, and never in huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def _references(kept: Sequence[object], at: int) -> int:
    return sys.getrefcount(kept[at])


_MINE = _references(deque([object()]), 0)
"""References to pages that nobody else looks at; how many that are differs from one Python to the next."""


class Rooms:
    """Gives rooms out. One for each process; `room` asks it."""

    def __init__(self) -> None:
        self._kept: deque[mmap.mmap] = deque()

    def room(self, size: int) -> memoryview:
        """So many bytes to be written; what they hold before is anything. Raises `MemoryError`."""
        if size < _MAPPED:
            return memoryview(bytearray(size))
        for at in range(len(self._kept)):
            # Half of it unused is not worth keeping it from others.
            if size <= len(self._kept[at]) <= 2 * size and _references(self._kept, at) == _MINE:
                return memoryview(self._kept[at])[:size]
        try:
            made = mmap.mmap(-1, size, **_PRIVATE)
        except OSError as error:
            raise MemoryError(f"{size:,} bytes") from error
        if _HUGE is not None:
            made.madvise(_HUGE)
        if size <= _KEPT_BYTES:
            self._kept.append(made)
            while len(self._kept) > _KEPT or sum(map(len, self._kept)) > _KEPT_BYTES:
                self._kept.popleft()
        return memoryview(made)


_rooms = Rooms()


def room(size: int) -> memoryview:
    """Memory of this process for `size` bytes of a message. Raises `MemoryError`."""
    return _rooms.room(size)
