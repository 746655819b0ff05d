"""The ledger in memory: the rules of the contracts in Python, with a clock that tests can set.

It checks the same signatures, clamps with the same rule and refuses with the same words as `evm.py`; one suite runs on
both. Only fees are missing. Used by tests, by examples, and where a notebook is tried without any chain.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jupyter_depin.chain import ChannelState, Closing, ProviderRecord
from jupyter_depin.chain.recovery import recover
from jupyter_depin.chain.refusals import empty_wallet, refusal, skipped, stake_too_low
from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.identity import NO_ADDRESS, Address, NodeId, Signer
from jupyter_depin.protocol.market import Asset, Opening, Terms, close_digest, open_digest
from jupyter_depin.protocol.money import NS_PER_SECOND, Amount, owed
from jupyter_depin.protocol.voucher import Claim, Voucher

SLACK_S = 120
"""`SLACK` of SessionVault.sol."""

ASSET = Asset(
    0, Address(keccak256(b"memory vault")[12:]), Address(keccak256(b"memory token")[12:]), "DEMO", 6
)
"""What a ledger in memory counts unless it is told otherwise."""

_NOT_OPEN, _BAD_SIGNATURE, _NOTHING_NEW = range(3)


@dataclass(slots=True)
class _Lease:
    state: ChannelState
    closing: Closing | None = None


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


class MemoryLedger:
    """`Ledger` without a chain.

    `clock` gives Unix seconds; `advance` puts it forward. Every wallet begins with `gift` base units.
    """

    def __init__(
        self,
        asset: Asset = ASSET,
        *,
        challenge_s: int = 24 * 3600,
        settle_s: int = 24 * 3600,
        min_stake: int = 0,
        gift: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._asset = asset
        self._challenge_s = challenge_s
        self._settle_s = settle_s
        self._min_stake = min_stake
        self._clock = clock
        self._ahead = 0
        self._wallets: defaultdict[Address, int] = defaultdict(lambda: gift)
        self._escrows: defaultdict[Address, int] = defaultdict(int)
        self._leases: dict[bytes, _Lease] = {}
        self._providers: dict[Address, ProviderRecord] = {}
        self._transactions = 0

    @property
    def asset(self) -> Asset:
        """See `Ledger`."""
        return self._asset

    def mint(self, owner: Address, amount: Amount) -> None:
        """Give a wallet money from nowhere."""
        self._wallets[owner] += amount

    def advance(self, seconds: int) -> None:
        """Put the ledger's clock forward."""
        self._ahead += seconds

    async def check(self) -> None:
        """See `Ledger`. Memory is always reachable."""

    async def now(self) -> int:
        """See `Ledger`."""
        return self._now()

    def _now(self) -> int:
        return int(self._clock()) + self._ahead

    async def close(self) -> None:
        """See `Ledger`."""

    def _transaction(self) -> str:
        self._transactions += 1
        return _hex(keccak256(b"transaction %d" % self._transactions))

    # -- wallet and escrow

    async def balance(self, owner: Address) -> Amount:
        """See `Ledger`."""
        return Amount(self._wallets[owner])

    async def escrow(self, payer: Address) -> Amount:
        """See `Ledger`."""
        return Amount(self._escrows[payer])

    async def deposit(self, wallet: Signer, amount: Amount) -> str:
        """See `Ledger`."""
        self._take(wallet.address, amount, "the deposit")
        self._escrows[wallet.address] += amount
        return self._transaction()

    async def withdraw(self, wallet: Signer, amount: Amount) -> str:
        """See `Ledger`."""
        if amount == 0:
            raise refusal("the withdrawal", "SessionVault_BadAmount")
        self._lock(wallet.address, amount)
        self._wallets[wallet.address] += amount
        return self._transaction()

    def _take(self, owner: Address, amount: int, action: str) -> None:
        if self._wallets[owner] < amount:
            raise empty_wallet(self._asset, self._wallets[owner], amount)
        if amount == 0:
            raise refusal(action, "SessionVault_BadAmount")
        self._wallets[owner] -= amount

    def _lock(self, payer: Address, amount: int) -> None:
        if self._escrows[payer] < amount:
            raise empty_wallet(self._asset, self._escrows[payer], amount)
        self._escrows[payer] -= amount

    # -- leases

    async def open(self, relayer: Signer, terms: Terms, opening: Opening) -> str:
        """See `Ledger`."""
        action = "the opening of the lease"
        if any(terms.grant_id):
            raise refusal(action, "SessionVault_WrongGrant")
        channel_id = terms.channel_id(self._asset.domain)
        digest = open_digest(self._asset.domain, channel_id, opening.deposit, opening.open_by)
        signed = len(opening.signature) == 65 and recover(digest, opening.signature) == terms.payer
        if relayer.address != terms.payer and not signed:
            raise refusal(action, "SessionVault_BadSignature", _hex(terms.payer))
        if self._now() > opening.open_by:
            raise refusal(action, "SessionVault_Expired", opening.open_by)
        if (
            NO_ADDRESS in (terms.provider, terms.signer)
            or terms.provider == terms.payer
            or not terms.max_seconds
        ):
            raise refusal(action, "SessionVault_BadTerms")
        if opening.deposit == 0 or opening.deposit < terms.open_fee:
            raise refusal(action, "SessionVault_BadAmount")
        if channel_id in self._leases:
            raise refusal(action, "SessionVault_ChannelExists")
        self._lock(terms.payer, opening.deposit)
        self._leases[channel_id] = _Lease(ChannelState(opening.deposit, Amount(0), self._now(), None, False))
        return self._transaction()

    async def channel(self, channel_id: bytes) -> ChannelState | None:
        """See `Ledger`."""
        lease = self._leases.get(channel_id)
        return lease.state if lease else None

    async def closing(self, channel_id: bytes) -> Closing | None:
        """See `Ledger`."""
        lease = self._leases.get(channel_id)
        return lease.closing if lease else None

    async def settle(self, relayer: Signer, claims: Sequence[Claim], *, close: bool) -> str:
        """See `Ledger`. Raises `VouchersSkipped` if a row that should have paid did not; the others did."""
        action = "the settlement"
        if len({(claim.terms.provider, claim.terms.token) for claim in claims}) != 1:
            raise refusal(action, "SessionVault_MixedBatch")
        provider = claims[0].terms.provider
        if close and relayer.address != provider:
            raise refusal(action, "SessionVault_NotAllowed", _hex(relayer.address), _hex(provider))
        transaction = self._transaction()
        reasons: dict[bytes, int] = {}
        for claim in claims:
            channel_id = claim.terms.channel_id(self._asset.domain)
            reason = self._settle_one(channel_id, claim, close, transaction)
            if reason is not None:
                reasons[channel_id] = reason
        missed = []
        for claim in claims:
            channel_id = claim.terms.channel_id(self._asset.domain)
            lease = self._leases.get(channel_id)
            if channel_id in reasons and (lease is None or claim.amount > lease.state.settled):
                missed.append((channel_id, reasons[channel_id]))
        if missed:
            raise skipped(missed, len(claims))
        return transaction

    def _settle_one(self, channel_id: bytes, claim: Claim, close: bool, transaction: str) -> int | None:
        terms = claim.terms
        lease = self._leases.get(channel_id)
        if lease is None or lease.state.closed:
            return _NOT_OPEN
        amount: int = terms.open_fee
        if claim.amount > terms.open_fee:
            digest = Voucher(channel_id, claim.amount).digest(self._asset.domain)
            if recover(digest, claim.signature) != terms.signer:
                return _BAD_SIGNATURE
            elapsed = min(self._now() - lease.state.opened_at, terms.max_seconds)
            ceiling = terms.open_fee + owed(terms.rate, (elapsed + SLACK_S) * NS_PER_SECOND)
            amount = min(claim.amount, ceiling, lease.state.deposit)
        if amount > lease.state.settled:
            self._wallets[terms.provider] += amount - lease.state.settled
            lease.state = replace(lease.state, settled=Amount(amount))
        elif not close:
            return _NOTHING_NEW
        if close:
            self._end(terms, lease, transaction)
        return None

    def _end(self, terms: Terms, lease: _Lease, transaction: str) -> None:
        refunded = Amount(lease.state.deposit - lease.state.settled)
        self._escrows[terms.payer] += refunded
        lease.state = replace(lease.state, closing_at=None, closed=True)
        lease.closing = Closing(lease.state.settled, refunded, transaction)

    async def request_close(self, relayer: Signer, terms: Terms, signature: bytes) -> str:
        """See `Ledger`."""
        action = "the request to close the lease"
        channel_id, lease = self._open_lease(terms, action)
        if lease.state.closing_at is not None:
            raise refusal(action, "SessionVault_AlreadyClosing")
        digest = close_digest(self._asset.domain, channel_id)
        if relayer.address != terms.payer and recover(digest, signature) != terms.signer:
            raise refusal(action, "SessionVault_BadSignature", _hex(terms.signer))
        end = min(self._now() + self._challenge_s, self._last(terms, lease))
        lease.state = replace(lease.state, closing_at=end)
        return self._transaction()

    async def finalize(self, relayer: Signer, terms: Terms) -> str:
        """See `Ledger`."""
        action = "the end of the lease"
        _, lease = self._open_lease(terms, action)
        end = lease.state.closing_at or self._last(terms, lease)
        if self._now() < end:
            raise refusal(action, "SessionVault_TooEarly", end)
        if terms.open_fee > lease.state.settled:
            self._escrows[terms.provider] += terms.open_fee - lease.state.settled
            lease.state = replace(lease.state, settled=terms.open_fee)
        transaction = self._transaction()
        self._end(terms, lease, transaction)
        return transaction

    def _last(self, terms: Terms, lease: _Lease) -> int:
        return lease.state.opened_at + terms.max_seconds + self._settle_s

    def _open_lease(self, terms: Terms, action: str) -> tuple[bytes, _Lease]:
        channel_id = terms.channel_id(self._asset.domain)
        lease = self._leases.get(channel_id)
        if lease is None or lease.state.closed:
            raise refusal(action, "SessionVault_NotOpen")
        return channel_id, lease

    # -- providers

    async def provider(self, address: Address) -> ProviderRecord | None:
        """See `Ledger`."""
        return self._providers.get(address)

    async def register(self, wallet: Signer, node: NodeId, stake: Amount) -> str:
        """See `Ledger`."""
        action = "the registration"
        for holder, record in self._providers.items():
            if record.node == node and holder != wallet.address:
                raise refusal(action, "ProviderRegistry_NodeTaken", _hex(node), _hex(holder))
        if not any(node):
            raise refusal(action, "ProviderRegistry_NoNode")
        known = self._providers.get(wallet.address)
        if known is None and stake < self._min_stake:
            raise stake_too_low(self._asset, stake, self._min_stake)
        if stake:
            self._take(wallet.address, stake, action)
        total = stake + (known.stake if known else 0)
        self._providers[wallet.address] = ProviderRecord(node, Amount(total), total >= self._min_stake)
        return self._transaction()
