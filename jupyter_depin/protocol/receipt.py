"""The receipt of a rental: what was served, what was paid, what the chain says. Both sides keep one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jupyter_depin.protocol.identity import Address, NodeId, checksummed
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import Amount, Rate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Transaction:
    """Something that happened on the chain for a rental: `kind` (open, settle, …) and the transaction's id."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """One rental, settled.

    `started_ns` and `ended_ns` are Unix times, `served_ns` is the time that is paid for (pauses are not); amounts are
    base units. `paid` is the newest voucher, `collected_on_chain` what the vault gave the provider.
    `chain_agrees`: what the vault paid out and gave back is what the vouchers say.
    """

    channel_id: bytes
    title: str
    provider: Address
    node: NodeId
    started_ns: int
    ended_ns: int
    served_ns: int
    rate_per_hour: Rate
    asset: Asset
    vouchers: int
    paid: Amount
    refunded: Amount
    collected_on_chain: Amount
    transactions: tuple[Transaction, ...]
    chain_agrees: bool

    def to_json(self) -> dict[str, object]:
        """The receipt for people and programs: amounts as decimal strings of base units, seconds to the millisecond."""
        return {
            "provider": checksummed(self.provider),
            "node": self.node.hex(),
            "started": _iso(self.started_ns),
            "ended": _iso(self.ended_ns),
            "seconds": self.served_ns // 10**6 / 1000,
            "rate_per_hour": str(self.rate_per_hour),
            "asset": {
                "chain_id": self.asset.chain_id,
                "token": checksummed(self.asset.token),
                "symbol": self.asset.symbol,
                "decimals": self.asset.decimals,
            },
            "vouchers": self.vouchers,
            "paid": str(self.paid),
            "refunded": str(self.refunded),
            "collected_on_chain": str(self.collected_on_chain),
            "transactions": [{"kind": each.kind, "id": each.id} for each in self.transactions],
            "chain_agrees": self.chain_agrees,
        }


def _iso(unix_ns: int) -> str:
    """ISO 8601 in UTC, to the millisecond, by integer arithmetic."""
    moment = _EPOCH + timedelta(milliseconds=unix_ns // 10**6)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
