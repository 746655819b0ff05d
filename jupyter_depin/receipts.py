"""A receipt as people read it, on a terminal."""

from __future__ import annotations

from typing import Any

from jupyter_depin.protocol.money import format_amount
from jupyter_depin.protocol.receipt import Receipt


def describe(receipt: Receipt) -> str:
    """A receipt for people."""
    shown: dict[str, Any] = receipt.to_json()
    asset = receipt.asset

    def money(amount: int) -> str:
        return f"{format_amount(amount, asset.decimals)} {asset.symbol}"

    rows = {
        "Provider": shown["provider"],
        "Node": shown["node"],
        "Started": shown["started"],
        "Ended": shown["ended"],
        "Served": f"{shown['seconds']} s at {money(receipt.rate_per_hour)} per hour",
        "Vouchers": receipt.vouchers,
        "Paid": money(receipt.paid),
        "Refunded": f"{money(receipt.refunded)} (to your escrow)",
        "Collected": f"{money(receipt.collected_on_chain)} ({'the chain agrees' if receipt.chain_agrees else 'THE CHAIN DISAGREES'})",
        **{f"Transaction ({t.kind})": t.id for t in receipt.transactions},
    }
    width = max(map(len, rows))
    return "\n".join(
        [f"Receipt · {receipt.title}", *(f"  {name:{width}}  {value}" for name, value in rows.items())]
    )
