"""Strategies and examples of the vocabulary's values."""

from __future__ import annotations

import pytest

from jupyter_depin.protocol.identity import Address, NodeId
from jupyter_depin.protocol.market import Asset, Offer, Terms
from jupyter_depin.protocol.money import Amount, Rate


@pytest.fixture
def asset() -> Asset:
    return Asset(31337, Address(b"\x0a" * 20), Address(b"\x0b" * 20), "DEMO", 6)


@pytest.fixture
def terms() -> Terms:
    return Terms(
        payer=Address(b"\x01" * 20),
        signer=Address(b"\x02" * 20),
        provider=Address(b"\x03" * 20),
        token=Address(b"\x0b" * 20),
        open_fee=Amount(1000),
        rate=Rate(500_000),
        max_seconds=7200,
        grant_id=b"\x07" * 32,
        lease_hash=b"\x09" * 32,
    )


@pytest.fixture
def offer(asset: Asset) -> Offer:
    return Offer(
        provider=Address(b"\x03" * 20),
        node=NodeId(b"\x04" * 32),
        slot=b"\x05" * 32,
        asset=asset,
        rate=Rate(500_000),
        open_fee=Amount(1000),
        max_seconds=7200,
        tick_s=5,
        arrears_s=15,
        grace_s=60,
        sequence=3,
        expires=2_000_000_000,
        title="A card, 24 GB",
        facts=(("gpu", "one"),),
    )
