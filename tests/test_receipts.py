"""The receipt that a person reads says the same as the one for programs."""

from __future__ import annotations

import dataclasses

import pytest

from jupyter_depin.protocol.identity import Address, NodeId
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.receipt import Receipt, Transaction
from jupyter_depin.receipts import describe

RECEIPT = Receipt(
    channel_id=bytes(32),
    title="CPU demo",
    provider=Address(bytes(19) + b"\x01"),
    node=NodeId(bytes(32)),
    started_ns=1_700_000_000 * 10**9,
    ended_ns=1_700_000_060 * 10**9,
    served_ns=60 * 10**9,
    rate_per_hour=Rate(360_000),
    asset=Asset(31337, Address(bytes(20)), Address(bytes(20)), "DEMO", 6),
    vouchers=12,
    paid=Amount(6_000),
    refunded=Amount(714_000),
    collected_on_chain=Amount(6_000),
    transactions=(Transaction("open", "0x01"), Transaction("settle", "0x02")),
    chain_agrees=True,
)


def test_amounts_are_in_units_and_the_chain_is_named():
    text = describe(RECEIPT)
    assert "60.0 s at 0.36 DEMO per hour" in text
    for line in (
        "Paid                  0.006 DEMO",
        "Refunded              0.714 DEMO (to your escrow)",
        "(the chain agrees)",
    ):
        assert line in text
    assert "Transaction (settle)  0x02" in text


@pytest.mark.parametrize("collected", [0, 6_001])
def test_a_chain_that_says_otherwise_is_shouted(collected):
    text = describe(dataclasses.replace(RECEIPT, collected_on_chain=Amount(collected), chain_agrees=False))
    assert "THE CHAIN DISAGREES" in text
