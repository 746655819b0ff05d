"""What a revert's data says, as an error of ours. Apart from `refusals.py`, so that memory needs no EVM libraries."""

from __future__ import annotations

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from jupyter_depin.chain.artifacts import artifact
from jupyter_depin.chain.refusals import empty_wallet, refusal, stake_too_low
from jupyter_depin.errors import PaymentError, TransactionFailed
from jupyter_depin.protocol.market import Asset

_ERROR_STRING = bytes.fromhex("08c379a0")  # Error(string)


def from_revert(action: str, data: bytes, asset: Asset) -> PaymentError:
    """The error for a revert's data. Called by the EVM ledger."""
    if data[:4] == _ERROR_STRING:
        try:
            return TransactionFailed(action=action, reason=decode(["string"], data[4:])[0])
        except (DecodingError, ValueError):
            return TransactionFailed(action=action, reason="the contract gave a reason that cannot be read")
    for contract in ("SessionVault", "ProviderRegistry", "DemoToken"):
        found = artifact(contract).error(data)
        if found is None:
            continue
        name, arguments = found
        if name == "SessionVault_InsufficientEscrow":
            return empty_wallet(asset, arguments[0], arguments[1])
        if name == "ERC20InsufficientBalance":
            return empty_wallet(asset, arguments[1], arguments[2])
        if name == "ProviderRegistry_StakeTooLow":
            return stake_too_low(asset, arguments[0], arguments[1])
        return refusal(action, name, *("0x" + a.hex() if isinstance(a, bytes) else a for a in arguments))
    return TransactionFailed(action=action, reason="the contract gave no reason")
