"""What the meter tells its driver: facts, and the orders that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.voucher import VerifiedVoucher

# -- of the payee


@dataclass(frozen=True, slots=True)
class TickDue:
    """Claim `served_ns` from the payer. Comes while paused as well, so that a lost voucher is asked for again."""

    served_ns: int


@dataclass(frozen=True, slots=True)
class VoucherAccepted:
    """This voucher is worth more than the last one: journal it before anything else."""

    voucher: VerifiedVoucher


@dataclass(frozen=True, slots=True)
class VoucherStale:
    """A voucher of `amount` came where `paid` is held already; it was ignored. Normal after a reconnect."""

    amount: Amount
    paid: Amount


@dataclass(frozen=True, slots=True)
class PauseKernel:
    """Service for `unpaid_ns` is unpaid: stop the kernel's processes. The clock stands from now on."""

    unpaid_ns: int


@dataclass(frozen=True, slots=True)
class UnpauseKernel:
    """Enough was paid: let the kernel run on. The clock runs again."""


@dataclass(frozen=True, slots=True)
class EndLease:
    """End the kernel, claim `served_ns` a last time, settle."""

    reason: EndReason
    served_ns: int


PayeeEvent = TickDue | VoucherAccepted | VoucherStale | PauseKernel | UnpauseKernel | EndLease

# -- of the payer


@dataclass(frozen=True, slots=True)
class SignVoucher:
    """Sign a voucher for `amount` in total, journal it, then send it."""

    amount: Amount


@dataclass(frozen=True, slots=True)
class ClaimTooHigh:
    """The provider claims more time than has passed here; only `allowed_ns` is paid."""

    claimed_ns: int
    allowed_ns: int


@dataclass(frozen=True, slots=True)
class CapReached:
    """The vouchers have reached the cap: nothing more is ever signed. Comes once."""

    cap: Amount


PayerEvent = SignVoucher | ClaimTooHigh | CapReached
