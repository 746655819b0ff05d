"""The provider's tests live in one world with a renter."""

from tests.consumer.world import world

__all__ = ["world"]
