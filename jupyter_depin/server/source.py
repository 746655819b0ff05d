"""Where the server extension gets rentals from: a port that the consumer satisfies, and its lazy default.

The consumer is imported at the first request and not with the server, so that people who never rent start as fast as
before, and a broken consumer installation cannot keep Jupyter Server from starting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from jupyter_depin.protocol.status import RentalStatus


class Rentals(Protocol):
    """The rentals of this process, live and recently ended."""

    def snapshot(self) -> Sequence[RentalStatus]:
        """All rentals, oldest first. Called on the server's thread; must not block."""

    def subscribe(self, callback: Callable[[RentalStatus], None]) -> Callable[[], None]:
        """Call `callback` on every change and tick, on any thread. Returns the function that ends it."""

    async def settle(self, rental_id: str) -> RentalStatus:
        """Stop the rental, collect and settle, and return how it ended, with its receipt.

        Called by the settle handler on the server's loop. Raises `RentalNotFound`, `SettlementPending` or another
        `DepinError`. Settling a settled rental returns it again.
        """


def runtime_rentals() -> Rentals:
    """This process's rentals. Called by the extension at the first request that needs them."""
    from jupyter_depin.consumer.runtime import rentals

    return rentals()
