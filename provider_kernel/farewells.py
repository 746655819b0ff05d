"""The last words to renters whose leases are over: kept while they may still come for them, within bounds of memory."""

from __future__ import annotations

from provider_kernel.tenancy import Tenancy

MOST_HELD = 256 << 20
"""Bytes of output kept for all of them together; beyond it, the oldest tunnel is given up. The ledger tells its renter
how the lease ended."""


class Farewells:
    """The agent's ended tenancies."""

    def __init__(self) -> None:
        self._waiting: list[Tenancy] = []

    async def say(self, tenancy: Tenancy) -> None:
        """Wait until the renter has heard everything, for as long as the grace; then close its tunnel."""
        self._waiting.append(tenancy)
        while sum(each.driver.tunnel.held for each in self._waiting) > MOST_HELD:
            self._waiting.pop(0).driver.close()
        # The consumer may be cut off just now.
        try:
            await tenancy.heard(tenancy.offer.grace_s)
        finally:
            tenancy.driver.close()
            if tenancy in self._waiting:
                self._waiting.remove(tenancy)
