"""Port to the place where money lies: an EVM chain (`evm.py`) or memory (`memory.py`); one suite runs on both.

Amounts are base units of `asset`. Signatures are checked by the ledger itself: anybody may relay what was signed.
Errors: `ChainUnreachable`, `WrongChain`, `TransactionFailed`, `EmptyWallet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jupyter_depin.protocol.identity import Address, NodeId, Signer
from jupyter_depin.protocol.market import Asset, Opening, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import Claim


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A lease as the vault sees it. `closing_at` (Unix seconds) is set once a close was requested.

    A closed channel keeps its `opened_at`; what it settled and refunded is in `Ledger.closed`.
    """

    deposit: Amount
    settled: Amount
    opened_at: int
    closing_at: int | None
    closed: bool


@dataclass(frozen=True, slots=True)
class Closing:
    """How a lease ended on the ledger: what the provider got in all, what went back to the payer, and where."""

    settled: Amount
    refunded: Amount
    transaction: str


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """A registered provider: its bound node and its stake."""

    node: NodeId
    stake: Amount
    active: bool


class Ledger(Protocol):
    """Where deposits lie and vouchers are collected. Transaction ids are hex text with 0x."""

    @property
    def asset(self) -> Asset:
        """What this ledger counts."""

    async def check(self) -> None:
        """Raise `ChainUnreachable` or `WrongChain` unless money can move now."""

    async def now(self) -> int:
        """The ledger's own time in Unix seconds."""

    async def balance(self, owner: Address) -> Amount:
        """What a wallet holds outside the vault."""

    async def escrow(self, payer: Address) -> Amount:
        """What a payer has in the vault, free for new leases or withdrawal."""

    async def deposit(self, wallet: Signer, amount: Amount) -> str:
        """Move from the wallet into its escrow. Raises `EmptyWallet`."""

    async def withdraw(self, wallet: Signer, amount: Amount) -> str:
        """Move free escrow back to the wallet. Raises `EmptyWallet`."""

    async def open(self, relayer: Signer, terms: Terms, opening: Opening) -> str:
        """Lock the opening's deposit for a lease. Raises `TransactionFailed` (twice, forged, late), `EmptyWallet`."""

    async def channel(self, channel_id: bytes) -> ChannelState | None:
        """The lease as it stands, or None if it was never opened."""

    async def closing(self, channel_id: bytes) -> Closing | None:
        """How the lease was closed, or None while it is not."""

    async def settle(self, relayer: Signer, claims: Sequence[Claim], *, close: bool) -> str:
        """Collect vouchers of one provider; with `close` (provider only) also end the leases and refund the rest.

        Rows that do not hold (stale, closed, badly signed) are skipped; amounts are clamped to rate × elapsed and to
        the deposit. All claims share provider and token.
        """

    async def request_close(self, relayer: Signer, terms: Terms, signature: bytes) -> str:
        """Start the payer's close; `signature` is over `close_digest` by the voucher key."""

    async def finalize(self, relayer: Signer, terms: Terms) -> str:
        """End a lease whose close window or settlement window is over. Raises `TransactionFailed` if too early."""

    async def provider(self, address: Address) -> ProviderRecord | None:
        """A provider's registration, or None."""

    async def register(self, wallet: Signer, node: NodeId, stake: Amount) -> str:
        """Register the wallet as a provider that acts through `node`, or change its node; adds `stake`."""

    async def close(self) -> None:
        """Let go of connections. Never raises."""
