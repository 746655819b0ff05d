"""Lets what a kernel says before it does anything go with what comes next.

That it is busy, and which cell it runs, nobody waits for; but each message by itself wakes a thread or two of either side,
and takes processor time from the kernel and from its owner. So these wait for the kernel's next message, which is mostly a
result, and no longer than anybody could see. Whatever else a kernel says goes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from jupyter_depin.channels.header import header
from jupyter_depin.protocol.frames import Lane, Part

LONGEST_S = 0.005
_LONGEST_BUSY = 64
"""Bytes of a status' content: `{"execution_state": "busy"}`."""


class Prelude:
    """Stands between one kernel's channels and `say`. Made by the tenancy for each kernel.

    `flush_behind`: lets go of what waits behind it.
    """

    def __init__(
        self,
        say: Callable[[Lane, Sequence[Part]], None],
        flush_behind: Callable[[], None] = lambda: None,
    ) -> None:
        self._say, self._flush_behind = say, flush_behind
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Sequence[Part]] = []
        self._timer: asyncio.TimerHandle | None = None

    def said(self, lane: Lane, parts: Sequence[Part]) -> None:
        """A message of the kernel. Called by its channels."""
        if lane is Lane.IOPUB and _can_wait(parts):
            self._waiting.append(parts)
            if self._timer is None:
                self._timer = self._loop.call_later(LONGEST_S, self._go)
        else:
            self._go()
            self._say(lane, parts)

    def flush(self) -> None:
        """Let go of what waits, here and behind. Called before the kernel's end is told."""
        self._go()
        self._flush_behind()

    # --

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for parts in waiting:
                self._say(Lane.IOPUB, parts)


def _can_wait(parts: Sequence[Part]) -> bool:
    kind = header(parts)
    if b'"execute_input"' in kind:
        return True
    return b'"status"' in kind and len(parts[-1]) <= _LONGEST_BUSY and b'"busy"' in bytes(parts[-1])
