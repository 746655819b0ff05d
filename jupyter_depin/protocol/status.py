"""How a rental stands, in one frozen value: what the consumer says and every edge (browser, CLI, magics) shows.

It carries codes and figures, never sentences: the front end writes those in the user's language. Rejected: giving
edges the live rental object, for it lives on another thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from jupyter_depin.errors import ConfigError
from jupyter_depin.protocol.money import amount
from jupyter_depin.protocol.receipt import Receipt

State = Literal["starting", "running", "paused", "reconnecting", "ending", "ended"]
"""starting: nothing is charged yet. paused: the kernel is stopped for want of money and nothing is charged.
reconnecting: the link is down, the kernel goes on. ending: being settled. ended: over, for a reason."""

STATES: frozenset[str] = frozenset(get_args(State))


class Settled(TypedDict, total=False):
    """What settlement brought, in short: the figures of a `receipt.Receipt` that a meter shows. Amounts in base units."""

    paid: int
    """What the provider received: equal to the meter's last `spent`."""
    refunded: int
    """What came back out of the deposit."""
    served_ns: int
    transaction: str
    """Id of the settling transaction; empty where there is none."""


@dataclass(frozen=True, slots=True)
class RentalStatus:
    """One rental as its meter last reported it. Built by the consumer's rental on each change and each tick.

    `id`: the lease's channel id, 64 hex digits. `reason`: (stable code, facts) for `paused` and `ended`; the code is
    an `EndReason` or an error's code. Rate in base units per hour; `spent` and `cap` in base units;
    `served_ns` nanoseconds. `relayed`: whether the link goes over a relay, `via`: that relay's URL or the provider's
    `ip:port`, `rtt_ms`: its round-trip time (None: there is no link). `since`: Unix seconds at which `state` began
    (None: unknown). `spared`: bytes that thrift kept off the link in both directions; `saving`: whether it does so now.
    """

    id: str
    kernel_id: str
    state: State
    reason: tuple[str, Mapping[str, str]] | None
    provider: str
    node: str
    title: str
    rate_per_hour: int
    symbol: str
    decimals: int
    served_ns: int
    spent: int
    cap: int
    bytes_up: int
    bytes_down: int
    rtt_ms: float | None = None
    relayed: bool | None = None
    via: str | None = None
    receipt: Settled | None = None
    since: float | None = None
    spared: int = 0
    saving: bool = False

    def __post_init__(self) -> None:
        if len(self.id) != 64 or self.id.strip("0123456789abcdef"):
            raise ConfigError(detail=f"{self.id!r} is not a rental id of 64 hex digits")
        if self.state not in STATES:
            raise ConfigError(detail=f"{self.state!r} is not a state of a rental")
        for value in (self.rate_per_hour, self.spent, self.cap):
            amount(value)
        if min(self.served_ns, self.bytes_up, self.bytes_down, self.spared, self.decimals) < 0:
            raise ConfigError(detail="times, sizes and decimals of a rental cannot be negative")


def settled(receipt: Receipt) -> Settled:
    """The part of a receipt that is shown beside the rental."""
    return {
        "paid": receipt.collected_on_chain,
        "refunded": receipt.refunded,
        "served_ns": receipt.served_ns,
        "transaction": receipt.transactions[-1].id if receipt.transactions else "",
    }
