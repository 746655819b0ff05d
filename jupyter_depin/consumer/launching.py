"""One start of a kernel, as its renter waits for it."""

from __future__ import annotations

import anyio

from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.errors import DepinError, KernelStartFailed

_LAUNCH_S = 90
"""How long a kernel may take to come up: a provider gives it 60 s, and the link may be cut meanwhile."""


class Launching:
    """A kernel start under way. Made by the rental when it orders one; the first outcome counts."""

    def __init__(self) -> None:
        self.since_ns = steady_ns()
        self._done = anyio.Event()
        self._error: DepinError | None = None

    @property
    def under_way(self) -> bool:
        """Whether nobody knows yet how it went."""
        return not self._done.is_set()

    def succeeded(self) -> None:
        """The kernel is ready."""
        self._done.set()

    def failed(self, error: DepinError) -> None:
        """It did not start, or nobody waits for it any more."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    async def outcome(self) -> DepinError | None:
        """Wait until it is known how it went, or for as long as a start may take: None, or why it failed."""
        with anyio.move_on_after(_LAUNCH_S):
            await self._done.wait()
        self.failed(KernelStartFailed(reason=f"no word of it for {_LAUNCH_S} s"))
        return self._error
