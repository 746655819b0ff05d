"""Why a ledger refuses, in words: one table for the contracts' custom errors, used by both ledgers.

The in-memory ledger names the same errors, so that what a person reads does not depend on where the money lies.
"""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_depin.errors import EmptyWallet, StakeTooLow, TransactionFailed, VouchersSkipped
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import format_amount

# {0}, {1}: the error's arguments. Addresses and ids are hex text.
_WORDS = {
    "SessionVault_BadAmount": "the amount is zero, or less than the opening fee",
    "SessionVault_BadSignature": "it is not signed by {0}",
    "SessionVault_Expired": "the order was valid until {0} (Unix seconds), and that has passed",
    "SessionVault_ChannelExists": "this lease was opened before",
    "SessionVault_NotOpen": "this lease is not open",
    "SessionVault_AlreadyClosing": "the close of this lease was requested before",
    "SessionVault_TooEarly": "it is possible from {0} (Unix seconds) on",
    "SessionVault_InexactTransfer": "the token moved {1} of {0} base units; such tokens are not accepted",
    "SessionVault_NotAllowed": "only {1} may do this",
    "SessionVault_BadTerms": "the terms lack a length, a provider or a voucher key, or provider and payer are one",
    "SessionVault_MixedBatch": "there is no voucher, or the vouchers are not all for one provider and one token",
    "SessionVault_WrongGrant": "the terms and the grant do not belong together",
    "SessionVault_GrantRevoked": "the grant was taken back",
    "SessionVault_ProviderRefused": "the grant does not allow the provider {0}",
    "SessionVault_RateAboveGrant": "the rate {0} is above the grant's {1}",
    "SessionVault_GrantUsedUp": "the grant covers {1} base units, and {0} would be in use",
    "ProviderRegistry_NoNode": "a node id of zeros means no node",
    "ProviderRegistry_NodeTaken": "this node acts for the provider {1}",
    "ProviderRegistry_AlreadyRegistered": "{0} is registered already",
    "ProviderRegistry_NotRegistered": "{0} is not registered",
    "ProviderRegistry_BadAmount": "{0} base units are nothing, or more than is staked",
    "ProviderRegistry_NothingThawing": "no stake is thawing",
    "ProviderRegistry_StillThawing": "the stake thaws until {0} (Unix seconds)",
    "ProviderRegistry_InexactTransfer": "the token moved {1} of {0} base units; such tokens are not accepted",
    "DemoToken_MintTooLarge": "at most {1} base units can be made at once",
    "ERC20InsufficientAllowance": "the token did not allow the transfer",
}


def refusal(action: str, name: str, *arguments: object) -> TransactionFailed:
    """The error for a named refusal. `action` continues "The payment network rejected …"."""
    words = _WORDS.get(name)
    reason = words.format(*arguments) if words else " ".join(map(str, (name, *arguments)))
    return TransactionFailed(action=action, reason=reason)


def empty_wallet(asset: Asset, balance: int, needed: int) -> EmptyWallet:
    """The error for too little money, in whole units of the asset."""
    return EmptyWallet(
        balance=format_amount(balance, asset.decimals),
        symbol=asset.symbol,
        needed=format_amount(needed, asset.decimals),
    )


def stake_too_low(asset: Asset, stake: int, least: int) -> StakeTooLow:
    """The error for a stake that the registry does not take, in whole units of the asset."""
    return StakeTooLow(
        stake=format_amount(stake, asset.decimals),
        symbol=asset.symbol,
        least=format_amount(least, asset.decimals),
    )


_SKIPPED = (
    "the lease is not open",
    "its voucher is not signed by the lease's key",
    "too little time has passed for it",
)


def skipped(missed: Sequence[tuple[bytes, int]], total: int) -> VouchersSkipped:
    """The error for rows of a settlement that moved no money though they should: channel ids and `SkipReason`s."""
    reasons = "; ".join(f"0x{channel_id.hex()[:8]}…: {_SKIPPED[reason]}" for channel_id, reason in missed)
    return VouchersSkipped(skipped=len(missed), total=total, reason=reasons)
