"""What is offered, and what two parties agree on: `Offer`, `Lease`, `Terms`.

An offer is signed but promises nothing to anybody in particular. A lease is the provider's signed promise of one
slot to one consumer key. Terms are what the vault knows; their digest is the channel id, and they bind the lease by
its hash, so that the consumer's one `Open` signature covers both.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import msgspec

from jupyter_depin.errors import ConfigError
from jupyter_depin.protocol.eip712 import Domain, keccak256, struct_hash
from jupyter_depin.protocol.identity import Address, NodeId
from jupyter_depin.protocol.money import Amount, Rate, amount

MAX_TICK_S = 10
"""The longest tick that is taken. The payer's meter believes a claim up to one tick beyond its own clock."""
MAX_ARREARS_S = 120
"""The longest arrears that are taken: what a provider may claim for a stretch in which it could not be reached."""
MAX_GRACE_S = 86_400
"""The longest grace that is taken: how long a lease that nobody uses may hold the deposit."""
MAX_SECONDS = 2**32 - 1
"""The longest lease that can be written down."""


@dataclass(frozen=True, slots=True)
class Asset:
    """What is paid with: an ERC-20 on a chain, held by a vault. Chain 0 is the in-memory ledger."""

    chain_id: int
    vault: Address
    token: Address
    symbol: str
    decimals: int

    def __post_init__(self) -> None:
        _fits("an asset", (self.chain_id, 256), (self.decimals, 8))
        readable("an asset", self.symbol)
        _names("an asset", self.vault, 20, self.token, 20)

    @property
    def domain(self) -> Domain:
        """The domain that everything signed about this asset is bound to."""
        return Domain(self.chain_id, self.vault)


def _fits(what: str, *numbers: tuple[int, int]) -> None:
    """Check (number, bits) pairs: what came from the wire must have the size that is hashed and signed."""
    for value, bits in numbers:
        if type(value) is not int or not 0 <= value < 1 << bits:
            raise ConfigError(detail=f"{what} with the number {value!r}")


def _names(what: str, *names: object) -> None:
    """Check names and their lengths, in turn."""
    for name, length in zip(names[::2], names[1::2], strict=True):
        if not isinstance(name, bytes) or len(name) != length:
            raise ConfigError(detail=f"{what} with a name that is not {length} bytes long")


_LONGEST_TEXT = 200
_MOST_FACTS = 32


def readable(what: str, *texts: str) -> None:
    """Check texts that people read on terminals and pages: nothing that moves the cursor or turns the line around."""
    for text in texts:
        if len(text) > _LONGEST_TEXT:
            raise ConfigError(detail=f"{what} with a text of {len(text)} characters, above {_LONGEST_TEXT}")
        if any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in text):
            raise ConfigError(detail=f"{what} with control characters in the text {text!a}")


_OFFER_TYPE = keccak256(
    b"Offer(address provider,bytes32 node,bytes32 slot,address token,uint88 rate,uint88 openFee,uint32 maxSeconds,"
    b"uint32 tickSeconds,uint32 arrearsSeconds,uint32 graceSeconds,uint64 sequence,uint40 expires,bytes32 facts)"
)


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider's published hardware, rate and conditions.

    Rate in base units per hour; times in seconds; `expires` in Unix seconds. `arrears_s`: how long the provider
    serves unpaid before it pauses the kernel. `grace_s`: how long a tunnel may stay detached, or a kernel paused for
    arrears, before the lease ends. `facts`: (name, value) pairs about the machine, as the provider states them.
    """

    provider: Address
    node: NodeId
    slot: bytes
    asset: Asset
    rate: Rate
    open_fee: Amount
    max_seconds: int
    tick_s: int
    arrears_s: int
    grace_s: int
    sequence: int
    expires: int
    title: str
    facts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        amount(self.rate)
        amount(self.open_fee)
        if (
            not 0 < self.tick_s <= self.arrears_s
            or self.grace_s <= 0
            or not 0 < self.max_seconds <= MAX_SECONDS
        ):
            raise ConfigError(detail="an offer needs 0 < tick ≤ arrears, a grace and a length in seconds")
        _fits(
            "an offer",
            (self.tick_s, 32),
            (self.arrears_s, 32),
            (self.grace_s, 32),
            (self.sequence, 64),
            (self.expires, 40),
        )
        _names("an offer", self.provider, 20, self.node, 32, self.slot, 32)
        if len(self.facts) > _MOST_FACTS:
            raise ConfigError(detail=f"an offer with {len(self.facts)} facts, above {_MOST_FACTS}")
        readable("an offer", self.title, *(text for fact in self.facts for text in fact))

    def digest(self) -> bytes:
        """What the provider's wallet signs."""
        facts = keccak256(msgspec.msgpack.encode((self.title, self.facts)))
        return self.asset.domain.digest(
            struct_hash(
                _OFFER_TYPE,
                self.provider,
                self.node,
                self.slot,
                self.asset.token,
                self.rate,
                self.open_fee,
                self.max_seconds,
                self.tick_s,
                self.arrears_s,
                self.grace_s,
                self.sequence,
                self.expires,
                facts,
            )
        )


_LEASE_TYPE = keccak256(
    b"Lease(bytes32 offer,address provider,bytes32 slot,address consumer,uint32 maxSeconds,uint40 acceptBy,bytes32 salt)"
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The provider's promise of one slot to the holder of `consumer` (the key that signs vouchers).

    `offer` is the offer's digest; the promise lapses at `accept_by` (Unix seconds) unless a channel is open by then.
    """

    offer: bytes
    provider: Address
    slot: bytes
    consumer: Address
    max_seconds: int
    accept_by: int
    salt: bytes

    def __post_init__(self) -> None:
        _fits("a lease", (self.max_seconds, 32), (self.accept_by, 40))
        _names("a lease", self.offer, 32, self.provider, 20, self.slot, 32, self.consumer, 20, self.salt, 32)

    def digest(self, domain: Domain) -> bytes:
        """What the provider signs; also `Terms.lease_hash`."""
        return domain.digest(
            struct_hash(
                _LEASE_TYPE,
                self.offer,
                self.provider,
                self.slot,
                self.consumer,
                self.max_seconds,
                self.accept_by,
                self.salt,
            )
        )


TERMS_TYPE = keccak256(
    b"Terms(address payer,address signer,address provider,address token,uint88 openFee,uint88 rate,uint32 maxSeconds,"
    b"bytes32 grantId,bytes32 leaseHash)"
)
OPEN_TYPE = keccak256(b"Open(bytes32 channelId,uint88 deposit,uint40 openBy)")
CLOSE_TYPE = keccak256(b"RequestClose(bytes32 channelId)")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the vault knows of a lease. `signer` signs vouchers; `rate` is base units per hour."""

    payer: Address
    signer: Address
    provider: Address
    token: Address
    open_fee: Amount
    rate: Rate
    max_seconds: int
    grant_id: bytes
    lease_hash: bytes

    def __post_init__(self) -> None:
        amount(self.open_fee)
        amount(self.rate)
        _fits("terms", (self.max_seconds, 32))
        _names("terms", self.payer, 20, self.signer, 20, self.provider, 20, self.token, 20)
        _names("terms", self.grant_id, 32, self.lease_hash, 32)

    def channel_id(self, domain: Domain) -> bytes:
        """The lease's name everywhere, 32 bytes: in the vault, in vouchers, in journals."""
        return domain.digest(
            struct_hash(
                TERMS_TYPE,
                self.payer,
                self.signer,
                self.provider,
                self.token,
                self.open_fee,
                self.rate,
                self.max_seconds,
                self.grant_id,
                self.lease_hash,
            )
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """The payer's signed order to lock `deposit` for a lease, valid until `open_by` (Unix seconds)."""

    deposit: Amount
    open_by: int
    signature: bytes

    def __post_init__(self) -> None:
        amount(self.deposit)
        _fits("an opening", (self.open_by, 40))


def open_digest(domain: Domain, channel_id: bytes, deposit: Amount, open_by: int) -> bytes:
    """What the payer signs to open a channel."""
    return domain.digest(struct_hash(OPEN_TYPE, channel_id, deposit, open_by))


def close_digest(domain: Domain, channel_id: bytes) -> bytes:
    """What the voucher key signs to ask the vault to close without the provider."""
    return domain.digest(struct_hash(CLOSE_TYPE, channel_id))
