"""The renter's tests live in one world with a provider."""

from tests.consumer.world import world

__all__ = ["world"]
