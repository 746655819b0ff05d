"""Which offers count, and which of those is taken first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyter_depin.chain.memory import ASSET
from jupyter_depin.consumer.offers import checked, ranked
from jupyter_depin.errors import (
    DepinError,
    LeaseRefused,
    OfferExpired,
    OtherNetwork,
    RateAboveCap,
    RemoteProtocolError,
    WrongAddress,
)
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeAddress, Ticket, node_id
from jupyter_depin.protocol.market import Offer
from jupyter_depin.protocol.messages import SignedOffer
from jupyter_depin.protocol.money import Amount, Rate

NOW = 1_800_000_000
PROVIDER = Wallet(b"\x01" * 32)
OTHER = Wallet(b"\x02" * 32)
NODE = node_id(b"\x0a" * 32)
TICKET = Ticket(NodeAddress(NODE), PROVIDER.address)
OFFER = Offer(
    provider=PROVIDER.address, node=NODE, slot=bytes(32), asset=ASSET, rate=Rate(500_000), open_fee=Amount(0),
    max_seconds=3600, tick_s=5, arrears_s=30, grace_s=600, sequence=1, expires=NOW + 1, title="GPU",
)  # fmt: skip


def signed(offer: Offer, by: Wallet = PROVIDER) -> SignedOffer:
    return SignedOffer(offer, by.sign(offer.digest()))


def look(offer: SignedOffer) -> Offer:
    return checked(offer, ticket=TICKET, node=NODE, asset=ASSET, now=NOW)


def test_an_honest_offer_counts():
    assert look(signed(OFFER)) == OFFER


@pytest.mark.parametrize(
    ("offer", "error"),
    [
        (signed(OFFER, OTHER), WrongAddress),
        (signed(replace(OFFER, provider=OTHER.address), OTHER), WrongAddress),
        (signed(replace(OFFER, provider=OTHER.address)), WrongAddress),
        (SignedOffer(replace(OFFER, rate=Rate(1)), signed(OFFER).signature), WrongAddress),
        (signed(replace(OFFER, node=node_id(bytes(32)))), WrongAddress),
        (signed(replace(OFFER, asset=replace(ASSET, chain_id=1))), OtherNetwork),
        (signed(replace(OFFER, asset=replace(ASSET, token=OTHER.address))), OtherNetwork),
        (signed(replace(OFFER, open_fee=Amount(1))), LeaseRefused),
        (signed(replace(OFFER, expires=NOW)), OfferExpired),
        (SignedOffer(OFFER, b""), RemoteProtocolError),
        (SignedOffer(OFFER, bytes(65)), RemoteProtocolError),
    ],
)  # fmt: skip
def test_anything_else_does_not(offer, error):
    with pytest.raises(error):
        look(offer)


def test_another_network_is_named_so_that_it_can_be_told_apart():
    with pytest.raises(OtherNetwork, match="paid on chain 1 in EUR, you are set up for chain 0 in DEMO"):
        look(signed(replace(OFFER, asset=replace(ASSET, chain_id=1, symbol="EUR"))))
    with pytest.raises(OtherNetwork, match=r"vault 0x.*vault 0x"):
        look(signed(replace(OFFER, asset=replace(ASSET, vault=OTHER.address))))


@pytest.mark.parametrize(
    ("taken", "refused", "sentence"),
    [
        ({"tick_s": 10}, {"tick_s": 11}, "a tick of 11 s, above the 10 s"),
        ({"arrears_s": 120}, {"arrears_s": 121}, "arrears of 121 s, above the 120 s"),
        ({"grace_s": 86_400}, {"grace_s": 86_401}, "a grace of 86401 s, above the 86400 s"),
        ({}, {"tick_s": 7200, "arrears_s": 7200}, "a tick of 7200 s"),
    ],
)
def test_conditions_under_which_a_renter_could_lose_money_are_refused(taken, refused, sentence):
    assert look(signed(replace(OFFER, **taken)))
    with pytest.raises(LeaseRefused, match=sentence):
        look(signed(replace(OFFER, **refused)))


def choose(*offers: SignedOffer, cap: int = 500_000) -> list[Offer]:
    return ranked(offers, ticket=TICKET, node=NODE, asset=ASSET, cap=Rate(cap), now=NOW)


def test_the_cheapest_comes_first_and_what_does_not_count_is_left_out():
    cheap, dear = replace(OFFER, rate=Rate(1), slot=b"\1" * 32), OFFER
    taken = choose(
        signed(dear), signed(OFFER, OTHER), signed(replace(OFFER, rate=Rate(500_001))), signed(cheap)
    )
    assert taken == [cheap, dear]


def test_a_rate_above_the_limit_is_told_in_the_assets_units():
    with pytest.raises(RateAboveCap, match=r"costs 0\.5 DEMO per hour, above your limit of 0\.499999 DEMO"):
        choose(signed(OFFER), cap=499_999)


@pytest.mark.parametrize(("offers", "error"), [([], LeaseRefused), ([signed(OFFER, OTHER)], WrongAddress)])
def test_why_there_is_none_is_told(offers, error: type[DepinError]):
    with pytest.raises(error):
        choose(*offers)
