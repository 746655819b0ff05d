"""From call data to a receipt: nonce, gas, fee, signature, sending and waiting, for any `Signer`.

The private key stays where it is: the transaction (EIP-1559) is hashed here and only the hash goes to the signer.
A wallet that is used by several calls at once needs its nonces given out one after another, hence one lock per wallet;
the lock is free again while receipts are awaited.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import anyio
import rlp

from jupyter_depin.chain.reverts import from_revert
from jupyter_depin.chain.rpc import Rpc, RpcRefused, quantity
from jupyter_depin.errors import ChainUnreachable, FeesMissing, PaymentError, TransactionFailed
from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.identity import Address, Signer
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import format_amount

_DYNAMIC_FEE = b"\x02"
_DEFAULT_TIP = 10**9
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


@dataclass(slots=True)
class _Account:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    waiting: int = 0
    next_nonce: int = 0


def _signed(signer: Signer, *fields: Any) -> bytes:
    unsigned = [*fields, []]  # no access list
    signature = signer.sign(keccak256(_DYNAMIC_FEE + rlp.encode(unsigned)))
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:64]))
    return _DYNAMIC_FEE + bytes(rlp.encode([*unsigned, signature[64] - 27, r, s]))


class Transactor:
    """Sends transactions to one chain and waits for them, `deadline_s` seconds at the longest."""

    def __init__(self, rpc: Rpc, asset: Asset, deadline_s: float) -> None:
        self._rpc = rpc
        self._asset = asset
        self._deadline_s = deadline_s
        self._accounts: dict[Address, _Account] = {}

    async def send(self, signer: Signer, to: Address | None, data: bytes, action: str) -> dict[str, Any]:
        """Send one transaction and return its receipt. `to` None deploys. `action` names it for error sentences.

        Raises `TransactionFailed`, `EmptyWallet`, `ChainUnreachable`; after the last one it may still be mined.
        """
        account = self._accounts.setdefault(signer.address, _Account())
        async with account.lock:
            account.waiting += 1
            try:
                sent = await self._submit(account, signer, to, data, action)
            except BaseException as error:
                account.waiting -= 1
                if isinstance(error, RpcRefused):
                    raise ChainUnreachable(url=self._rpc.url) from error
                raise
        try:
            receipt = await self._receipt(sent)
        finally:
            account.waiting -= 1
        with self._rpc.reading():
            # What callers read of a receipt is looked at here once.
            mined, block = quantity(receipt["status"]) != 0, str(receipt["blockNumber"])
            quantity(receipt["transactionHash"])
            iter(receipt["logs"])
        if not mined:
            raise await self._why(signer.address, to, data, action, block)
        return receipt

    async def _submit(
        self, account: _Account, signer: Signer, to: Address | None, data: bytes, action: str
    ) -> str:
        attempts = 0
        while True:
            attempts += 1
            nonce = await self._rpc.number("eth_getTransactionCount", "0x" + signer.address.hex(), "pending")
            if account.waiting > 1:
                # A node may not have counted what was sent a moment ago.
                nonce = max(nonce, account.next_nonce)
            gas = await self._gas(signer.address, to, data, action)
            base, tip = await self._fees()
            highest = 2 * base + tip
            wei = await self._rpc.number("eth_getBalance", "0x" + signer.address.hex(), "latest")
            if wei < gas * highest:
                raise _no_fees(wei, gas * highest)
            raw = _signed(signer, self._asset.chain_id, nonce, tip, highest, gas, to or b"", 0, data)
            try:
                await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
            except RpcRefused as error:
                message = str(error).lower()
                if "insufficient funds" in message or "cannot afford" in message:
                    raise _no_fees(wei, gas * highest) from error
                if attempts < _ATTEMPTS and ("nonce" in message or "underpriced" in message):
                    account.next_nonce = 0  # another process sent from this wallet
                    continue
                # "Already known": the answer was lost on the way and another node was asked.
                if "already known" not in message:
                    raise TransactionFailed(action=action, reason=error) from error
            account.next_nonce = nonce + 1
            return "0x" + keccak256(raw).hex()

    async def _gas(self, sender: Address, to: Address | None, data: bytes, action: str) -> int:
        try:
            estimate = await self._rpc.number("eth_estimateGas", _call(sender, to, data))
        except RpcRefused as error:
            if error.code != 3 and not error.data and "revert" not in str(error):
                raise TransactionFailed(action=action, reason=error) from error
            raise from_revert(action, error.data, self._asset) from error
        # State may move between the estimate and the block. The random part makes two equal orders, from two programs
        # with one wallet, two transactions; else the second would take the first for its own.
        return estimate * 5 // 4 + 5_000 + secrets.randbelow(5_000)

    async def _fees(self) -> tuple[int, int]:
        block = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        try:
            tip = await self._rpc.number("eth_maxPriorityFeePerGas")
        except RpcRefused:
            tip = _DEFAULT_TIP  # not every node has this method
        with self._rpc.reading():
            return quantity(block["baseFeePerGas"]), tip

    async def _receipt(self, transaction: str) -> dict[str, Any]:
        pause = _FIRST_PAUSE_S
        with anyio.move_on_after(self._deadline_s):
            while True:
                try:
                    receipt = await self._rpc.call("eth_getTransactionReceipt", transaction)
                except (ChainUnreachable, RpcRefused):
                    receipt = None  # it was sent; what counts is the deadline
                if receipt:
                    found: dict[str, Any] = receipt
                    return found
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise ChainUnreachable(url=self._rpc.url)

    async def _why(
        self, sender: Address, to: Address | None, data: bytes, action: str, block: str
    ) -> PaymentError:
        # The estimate passed, so that something changed in between; the same call once more gives the reason.
        try:
            await self._rpc.call("eth_call", _call(sender, to, data), block)
        except RpcRefused as error:
            return from_revert(action, error.data, self._asset)
        return TransactionFailed(action=action, reason="it was reverted when it was mined")


def _no_fees(wei: int, fee: int) -> FeesMissing:
    return FeesMissing(balance=format_amount(wei, 18), needed=format_amount(fee, 18))


def _call(sender: Address, to: Address | None, data: bytes) -> dict[str, str]:
    call = {"from": "0x" + sender.hex(), "data": "0x" + data.hex()}
    if to is not None:
        call["to"] = "0x" + to.hex()
    return call
