"""The voucher: a signed, cumulative statement "of this lease, N in total". The newest replaces all others.

The type string equals that of x402 batch settlement, so that one signing path can serve both.
"""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_depin.protocol.eip712 import Domain, keccak256, struct_hash
from jupyter_depin.protocol.market import Terms
from jupyter_depin.protocol.money import Amount

VOUCHER_TYPE = keccak256(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
ATTACH_TYPE = keccak256(b"Attach(bytes32 channelId,bytes32 node)")


@dataclass(frozen=True, slots=True)
class Voucher:
    """`amount` base units in total may be collected for the lease `channel_id` (32 bytes)."""

    channel_id: bytes
    amount: Amount

    def digest(self, domain: Domain) -> bytes:
        """What the voucher key signs."""
        return domain.digest(struct_hash(VOUCHER_TYPE, self.channel_id, self.amount))


@dataclass(frozen=True, slots=True)
class SignedVoucher:
    """A voucher as it came from the wire: nobody has checked the 65 signature bytes yet."""

    voucher: Voucher
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedVoucher:
    """A voucher whose signature was checked against the lease's key. Only `keys.verify_voucher` makes these."""

    voucher: Voucher
    signature: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What is handed to the vault for one lease: its terms and its newest voucher, or none at amount 0."""

    terms: Terms
    amount: Amount
    signature: bytes = b""


def attach_digest(domain: Domain, channel_id: bytes, node: bytes) -> bytes:
    """What the voucher key signs so that the node `node` may attach to the lease's tunnel."""
    return domain.digest(struct_hash(ATTACH_TYPE, channel_id, node))


def split_signature(signature: bytes) -> tuple[bytes, bytes]:
    """EIP-2098 (r, vs) of 65 bytes r ‖ s ‖ v; 64-byte compact ones are split as they are."""
    if len(signature) == 64:
        return signature[:32], signature[32:]
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64] - 27
    return r, (s | (v << 255)).to_bytes(32, "big")
