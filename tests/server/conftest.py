"""A Jupyter server with the extension and rentals that the test moves by hand."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jupyter_depin.errors import DepinError, RentalNotFound
from jupyter_depin.protocol.status import RentalStatus, Settled

RENTAL = "ab" * 32
PROVIDER = "0xE57bFE9F44b819898F47BF37E5AF72a0783e1141"


class FakeRentals:
    """The `Rentals` port in memory. `report` speaks on a thread of its own, as the real meter does."""

    def __init__(self) -> None:
        self.statuses: dict[str, RentalStatus] = {}
        self.subscribers: list[Callable[[RentalStatus], None]] = []
        self.opened = 0
        self.failure: Exception | None = None

    def open(self) -> FakeRentals:
        """What the extension calls to get the rentals."""
        self.opened += 1
        return self

    def snapshot(self) -> list[RentalStatus]:
        return list(self.statuses.values())

    def subscribe(self, callback: Callable[[RentalStatus], None]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    async def settle(self, rental_id: str) -> RentalStatus:
        if self.failure is not None:
            raise self.failure
        if rental_id not in self.statuses:
            raise RentalNotFound(rental=rental_id)
        spent = self.statuses[rental_id].spent
        receipt = Settled(paid=spent, refunded=self.statuses[rental_id].cap - spent)
        return self.report(rental_id, state="ended", reason=("stopped_by_user", {}), receipt=receipt)

    def add(self, **changes: Any) -> RentalStatus:
        """A new rental: 0.36 DEMO per hour, 83 s served, unless told otherwise."""
        given: dict[str, Any] = {
            "id": RENTAL,
            "kernel_id": "kernel-1",
            "state": "running",
            "reason": None,
            "provider": PROVIDER,
            "node": "cd" * 32,
            "title": "CPU demo",
            "rate_per_hour": 360_000,
            "symbol": "DEMO",
            "decimals": 6,
            "served_ns": 83 * 10**9,
            "spent": 8_300,
            "cap": 180_000,
            "bytes_up": 12_345,
            "bytes_down": 6_789_000,
            "spared": 1_000,
            "saving": True,
            "rtt_ms": 38.4,
            "relayed": False,
            "via": "198.51.100.7:7979",
        }
        status = RentalStatus(**given | changes)
        return self._tell(status)

    def report(self, rental_id: str = RENTAL, **changes: Any) -> RentalStatus:
        """A change of a rental, told to the subscribers."""
        return self._tell(dataclasses.replace(self.statuses[rental_id], **changes))

    def _tell(self, status: RentalStatus) -> RentalStatus:
        self.statuses[status.id] = status
        thread = threading.Thread(target=lambda: [call(status) for call in list(self.subscribers)])
        thread.start()
        thread.join()
        return status

    def fail_with(self, error: DepinError | Exception) -> None:
        self.failure = error


@pytest.fixture
def rentals() -> FakeRentals:
    return FakeRentals()


@pytest.fixture
def jp_server_config(rentals: FakeRentals) -> dict[str, Any]:
    """Read by pytest-jupyter."""
    return {
        "ServerApp": {"jpserver_extensions": {"jupyter_depin.server": True}},
        # Not the bound method: a configuration is copied deeply, and its object with it.
        "DepinExtension": {"open_rentals": lambda: rentals.open()},
    }
