"""Lets go of a client that reads nothing, so that it does not stop the others of the same kernel.

One client that is slow slows the kernel, and loses nothing. But where one takes nothing at all for a while, and another
of the same channel would take more, the first is cut off: its ZeroMQ drops what was kept for it and connects again.
Slowness is no such thing, however great. That costs nothing until somebody stands still.

Rejected: dropping messages for whoever is behind (the slow would lose as well as the dead).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from jupyter_depin.channels.peer import Peer

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_LOOKS = 30
"""So many looks in a row at which a connection has taken nothing, and it is cut off."""


class Patience:
    """Watches the connections of one channel while any of them is full. Made by the client side."""

    def __init__(self, channel: str, peers: Callable[[], Iterable[Peer]]) -> None:
        self._channel, self._peers = channel, peers
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seen: dict[Peer, tuple[int, int]] = {}

    def watch(self, on: bool) -> None:
        """Begin or stop to look. Called when the first connection is full, and when none is any more."""
        if on != (self._timer is not None):
            if self._timer is not None:
                self._timer.cancel()
            self._seen.clear()
            self._timer = self._loop.call_later(_LOOK_S, self._look) if on else None

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_S, self._look)
        before, self._seen = self._seen, {}
        for peer in self._peers():
            taken = peer.taken
            last, looks = before.get(peer, (-1, 0))
            self._seen[peer] = (taken, looks + 1 if peer.is_full and taken == last else 0)
        still = [peer for peer, (_, looks) in self._seen.items() if looks >= _LOOKS]
        if len(still) < len(self._seen):
            for peer in still:
                log.warning("a client of the %s channel that did not read was cut off", self._channel)
                peer.cut()
