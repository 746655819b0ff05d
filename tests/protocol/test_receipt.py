"""The receipt, as people and programs read it."""

from __future__ import annotations

import json
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.protocol.identity import NodeId, checksummed
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import MAX_AMOUNT, Amount, Rate
from jupyter_depin.protocol.receipt import Receipt, Transaction

PROVIDER = b"\x03" * 20


def receipt(*, started_ns: int = 1_795_341_600_123_999_999, served_ns: int = 3_599_999_999_999) -> Receipt:
    return Receipt(
        channel_id=b"\x01" * 32,
        title="A card",
        provider=PROVIDER,
        node=NodeId(b"\x02" * 32),
        started_ns=started_ns,
        ended_ns=started_ns + 3600 * 10**9,
        served_ns=served_ns,
        rate_per_hour=Rate(500_000),
        asset=Asset(31337, b"\x0a" * 20, b"\x0b" * 20, "DEMO", 6),
        vouchers=720,
        paid=Amount(499_999),
        refunded=Amount(MAX_AMOUNT),
        collected_on_chain=Amount(499_999),
        transactions=(Transaction("open", "0x01"), Transaction("settle", "0x02")),
        chain_agrees=True,
    )


def test_a_receipt_in_full():
    shown = json.loads(json.dumps(receipt().to_json()))
    assert shown == {
        "provider": checksummed(PROVIDER),
        "node": "02" * 32,
        "started": "2026-11-22T10:00:00.123Z",
        "ended": "2026-11-22T11:00:00.123Z",
        "seconds": 3599.999,
        "rate_per_hour": "500000",
        "asset": {"chain_id": 31337, "token": checksummed(b"\x0b" * 20), "symbol": "DEMO", "decimals": 6},
        "vouchers": 720,
        "paid": "499999",
        "refunded": str(2**88 - 1),
        "collected_on_chain": "499999",
        "transactions": [{"kind": "open", "id": "0x01"}, {"kind": "settle", "id": "0x02"}],
        "chain_agrees": True,
    }


@given(st.integers(0, 10**19), st.integers(0, 10**17))
def test_times_are_cut_to_the_millisecond(started_ns, served_ns):
    shown = receipt(started_ns=started_ns, served_ns=served_ns).to_json()
    assert round(datetime.fromisoformat(str(shown["started"])).timestamp() * 1000) == started_ns // 10**6
    assert round(float(str(shown["seconds"])) * 1000) == served_ns // 10**6
