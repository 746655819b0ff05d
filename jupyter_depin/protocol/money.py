"""Money in integers: base units of an asset, and the one rounding rule.

A rate is base units per hour, because a per-second integer is too coarse for a six-decimal asset (0.50 per hour is
138.9 units per second). The rule is repeated in TypeScript and Solidity; `tests/vectors/owed.json` binds all three.
"""

from __future__ import annotations

from typing import NewType

from jupyter_depin.errors import ConfigError

Amount = NewType("Amount", int)
"""Base units of an asset, never negative."""

Rate = NewType("Rate", int)
"""Base units per hour, never negative."""

NOTHING = Amount(0)

NS_PER_SECOND = 10**9
NS_PER_HOUR = 3600 * NS_PER_SECOND
MAX_AMOUNT = 2**88 - 1
"""The contract's uint88: what one lease or one rate may reach."""


def amount(value: int) -> Amount:
    """Check a number at the door. Raises `ConfigError` unless it is an integer in 0 … 2^88-1."""
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise ConfigError(detail=f"{value!r} is not an amount of base units")
    return Amount(value)


def rate(value: int) -> Rate:
    """Check a rate at the door. Raises `ConfigError` unless it is an integer in 0 … 2^88-1."""
    return Rate(amount(value))


def owed(rate: Rate, served_ns: int) -> Amount:
    """What `served_ns` nanoseconds cost at `rate` base units per hour, rounded down. Both meters call only this."""
    return Amount(rate * served_ns // NS_PER_HOUR)


def served_for(rate: Rate, paid: Amount) -> int:
    """The longest service in ns that `paid` covers: the largest t with `owed(rate, t) <= paid`. `rate` above 0."""
    return ((paid + 1) * NS_PER_HOUR - 1) // rate


def format_amount(value: int, decimals: int) -> str:
    """Exact decimal text of base units, without trailing zeros. For edges only (CLI, notebook output)."""
    whole, part = divmod(value, 10**decimals)
    text = f"{part:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole}.{text}" if text else str(whole)


def parse_amount(text: str, decimals: int) -> Amount:
    """Base units from what a person typed, e.g. "0.50". Raises `ConfigError` on anything but an exact number."""
    whole, _, part = text.strip().partition(".")
    if not (whole + part).isdecimal() or not (whole + part).isascii() or len(part) > decimals:
        raise ConfigError(detail=f"{text!r} is not an amount with at most {decimals} decimals")
    return amount(int(whole or "0") * 10**decimals + int(part.ljust(decimals, "0") or "0"))
