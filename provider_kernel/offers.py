"""What the owner offers: one signed offer per slot, signed once and kept, so that asking costs the agent nothing."""

from __future__ import annotations

from collections.abc import Callable

from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.identity import NodeId, Signer
from jupyter_depin.protocol.market import Asset, Offer
from jupyter_depin.protocol.messages import MOST_OFFERS, SignedOffer
from jupyter_depin.protocol.money import NOTHING, Rate, parse_amount
from provider_kernel.config import ProviderConfig
from provider_kernel.sandbox import Sandbox

OFFER_S = 600
"""How long an offer holds; a fresh one is signed when half of that is over."""


class OfferBook:
    """The agent's offers. Raises `ConfigError` when made with a rate that is no amount."""

    def __init__(
        self, config: ProviderConfig, node: NodeId, asset: Asset, wallet: Signer, sandbox: Sandbox
    ) -> None:
        self._config, self._node, self._asset, self._wallet = config, node, asset, wallet
        self._facts = tuple(sorted({"sandbox": sandbox.name, **sandbox.facts()}.items()))
        self._rate = Rate(parse_amount(config.rate_per_hour, asset.decimals))
        self._slots = {self._name(slot): slot for slot in range(config.slots)}
        self._sequence = 0
        self._current: tuple[SignedOffer, ...] = ()
        self._known: dict[bytes, Offer] = {}

    def current(self, now: int) -> tuple[SignedOffer, ...]:
        """The offers that hold now (Unix seconds), one per slot, taken or free."""
        if not self._current or self._current[0].offer.expires - now < OFFER_S // 2:
            self._known = {digest: offer for digest, offer in self._known.items() if offer.expires > now}
            # Above every number of an earlier life of this agent: two offers under one number would be a contradiction.
            self._sequence = max(self._sequence + 1, now)
            self._current = tuple(self._signed(name, now + OFFER_S) for name in self._slots)
        return self._current

    def few(self, now: int, taken: Callable[[int], bool]) -> tuple[SignedOffer, ...]:
        """As many of them as one answer may hold; where there are more, those of free slots first."""
        offers = self.current(now)
        if len(offers) > MOST_OFFERS:
            free_first = sorted(offers, key=lambda signed: taken(self.slot(signed.offer)))
            return tuple(free_first[:MOST_OFFERS])
        return offers

    def known(self, digest: bytes) -> Offer | None:
        """An offer that was given to somebody and may not be forgotten yet."""
        return self._known.get(digest)

    def slot(self, offer: Offer) -> int:
        """The slot that an offer of this book is about."""
        return self._slots[offer.slot]

    def _name(self, slot: int) -> bytes:
        return keccak256(self._node + slot.to_bytes(4, "big"))

    def _signed(self, slot: bytes, expires: int) -> SignedOffer:
        config = self._config
        offer = Offer(
            provider=self._wallet.address,
            node=self._node,
            slot=slot,
            asset=self._asset,
            rate=self._rate,
            open_fee=NOTHING,
            max_seconds=config.max_seconds,
            tick_s=config.tick_s,
            arrears_s=config.arrears_s,
            grace_s=config.grace_s,
            sequence=self._sequence,
            expires=expires,
            title=config.title,
            facts=self._facts,
        )
        digest = offer.digest()
        self._known[digest] = offer
        return SignedOffer(offer, self._wallet.sign(digest))
