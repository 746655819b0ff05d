"""Which offer to take. An offer counts only if its wallet signed it and the node that answers is the one it names."""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_depin.errors import (
    DepinError,
    LeaseRefused,
    OfferExpired,
    OtherNetwork,
    RateAboveCap,
    WrongAddress,
)
from jupyter_depin.keys import recover
from jupyter_depin.protocol.identity import NodeId, Ticket, checksummed
from jupyter_depin.protocol.market import MAX_ARREARS_S, MAX_GRACE_S, MAX_TICK_S, Asset, Offer
from jupyter_depin.protocol.messages import SignedOffer
from jupyter_depin.protocol.money import Rate, format_amount


def checked(signed: SignedOffer, *, ticket: Ticket, node: NodeId, asset: Asset, now: int) -> Offer:
    """An offer that may be taken. `node`: the one that answered; `now`: Unix seconds.

    Raises `WrongAddress` (also for another's signature), `OtherNetwork`, `OfferExpired`, `LeaseRefused` (a fee, or
    conditions beyond the limits above), and `RemoteProtocolError` for what is no signature at all.
    """
    offer = signed.offer
    if offer.provider != ticket.provider or recover(offer.digest(), signed.signature) != offer.provider:
        raise WrongAddress(found=checksummed(offer.provider), expected=checksummed(ticket.provider))
    if offer.node != node:
        raise WrongAddress(found=node.hex(), expected=offer.node.hex())
    if offer.asset != asset:
        raise OtherNetwork(found=_named(offer.asset, asset), expected=_named(asset, offer.asset))
    if offer.open_fee:
        raise LeaseRefused(reason="it asks for an opening fee, which this version does not pay")
    for what, asked, limit in (
        ("a tick", offer.tick_s, MAX_TICK_S),
        ("arrears", offer.arrears_s, MAX_ARREARS_S),
        ("a grace", offer.grace_s, MAX_GRACE_S),
    ):
        if asked > limit:
            raise LeaseRefused(reason=f"it asks for {what} of {asked} s, above the {limit} s that are safe")
    if offer.expires <= now:
        raise OfferExpired(ago=f"{now - offer.expires} s")
    return offer


def _named(asset: Asset, other: Asset) -> str:
    """What an asset is called where it must be told from another: by the vault too, if the rest is the same."""
    name = f"chain {asset.chain_id} in {asset.symbol}"
    if (asset.chain_id, asset.symbol) == (other.chain_id, other.symbol):
        name += f" (vault {checksummed(asset.vault)}, token {checksummed(asset.token)})"
    return name


def ranked(
    offers: Sequence[SignedOffer], *, ticket: Ticket, node: NodeId, asset: Asset, cap: Rate, now: int
) -> list[Offer]:
    """The offers that may be taken, cheapest first; raises why the last one may not if there is none."""
    good: list[Offer] = []
    failure: DepinError = LeaseRefused(reason="it offers nothing")
    for signed in offers:
        try:
            offer = checked(signed, ticket=ticket, node=node, asset=asset, now=now)
            if offer.rate > cap:
                raise RateAboveCap(
                    rate=f"{format_amount(offer.rate, asset.decimals)} {asset.symbol}",
                    cap=f"{format_amount(cap, asset.decimals)} {asset.symbol}",
                )
        except DepinError as error:
            failure = error
        else:
            good.append(offer)
    if not good:
        raise failure
    return sorted(good, key=lambda offer: offer.rate)
