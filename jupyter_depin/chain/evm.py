"""The ledger on an EVM chain: `SessionVault`, `ProviderRegistry` and an ERC-20, over JSON-RPC by address.

Reads go to the newest block. Writes are estimated first, so that nearly every refusal costs nothing and comes with the
contract's own reason. What happened is read from the receipt's events, never assumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import anyio

from jupyter_depin.chain import ChannelState, Closing, ProviderRecord
from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.artifacts import artifact
from jupyter_depin.chain.recovery import compact
from jupyter_depin.chain.refusals import empty_wallet, skipped
from jupyter_depin.chain.reverts import from_revert
from jupyter_depin.chain.rpc import Rpc, RpcRefused, quantity
from jupyter_depin.chain.transactions import Transactor
from jupyter_depin.errors import ChainUnreachable, TransactionFailed, WrongChain
from jupyter_depin.protocol.eip712 import keccak256, struct_hash
from jupyter_depin.protocol.identity import Address, NodeId, Signer
from jupyter_depin.protocol.market import Asset, Opening, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import Claim

_CLOSED = 2**40 - 1
_PERMIT_TYPE = keccak256(
    b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
_FOREVER = 2**256 - 1
_LOG_BLOCKS = 10_000
"""What public nodes answer at once when asked for events."""


def _row(terms: Terms) -> tuple[object, ...]:
    return (
        terms.payer,
        terms.signer,
        terms.provider,
        terms.token,
        terms.open_fee,
        terms.rate,
        terms.max_seconds,
        terms.grant_id,
        terms.lease_hash,
    )


class EvmLedger:
    """`Ledger` on the chain of an address book.

    `timeout_s` is for one request, `deadline_s` for a transaction from sending to being mined. Use it from one event
    loop; calls may overlap.
    """

    def __init__(self, book: AddressBook, *, timeout_s: float = 10.0, deadline_s: float = 120.0) -> None:
        self._book = book
        self._asset = book.asset
        self._rpc = Rpc(book.rpc_urls, timeout_s)
        self._transactor = Transactor(self._rpc, self._asset, deadline_s)
        self._checked = False
        self._allowances: dict[Address, anyio.Lock] = {}
        self._vault = artifact("SessionVault")
        self._registry = artifact("ProviderRegistry")
        self._token = artifact("DemoToken")  # read as an ERC-20 with permit, whatever token it is

    @property
    def asset(self) -> Asset:
        """See `Ledger`."""
        return self._asset

    async def check(self) -> None:
        """See `Ledger`. A chain of this id without the vault, e.g. a fresh development chain, is a wrong one too."""
        expected, vault = self._asset.chain_id, "0x" + self._book.vault.hex()
        try:
            found: object = await self._rpc.number("eth_chainId")
            code = await self._rpc.data("eth_getCode", vault, "latest")
        except RpcRefused as error:
            raise ChainUnreachable(url=self._rpc.url) from error
        if found == expected and not code:
            found = f"{found} without the vault {vault}"
        if found != expected:
            raise WrongChain(url=self._rpc.url, found=found, expected=expected)
        self._checked = True

    async def now(self) -> int:
        """See `Ledger`."""
        times = []
        for tag in ("latest", "pending"):  # the last block may be old where blocks are made on demand
            with contextlib.suppress(RpcRefused):  # not every node tells of a pending block
                block = await self._rpc.call("eth_getBlockByNumber", tag, False)
                if block:
                    with self._rpc.reading():
                        times.append(quantity(block["timestamp"]))
        if not times:
            raise ChainUnreachable(url=self._rpc.url)
        return max(times)

    async def close(self) -> None:
        """See `Ledger`."""
        await self._rpc.close()

    # -- wallet and escrow

    async def balance(self, owner: Address) -> Amount:
        """See `Ledger`."""
        return Amount(await self._read_token("balanceOf", owner))

    async def escrow(self, payer: Address) -> Amount:
        """See `Ledger`."""
        (free,) = await self._read_vault("balanceOf", payer, self._book.token)
        return Amount(free)

    async def deposit(self, wallet: Signer, amount: Amount) -> str:
        """See `Ledger`. One transaction where the token takes signed permits (EIP-2612), else an approval before it."""
        vault, token = self._book.vault, self._book.token
        action = "the deposit"
        async with self._allowance_lock(wallet):
            await self._require(wallet.address, amount)
            permit = await self._permit(wallet, vault, amount)
            if permit is not None:
                data = self._vault.call("depositWithPermit", token, amount, _FOREVER, *permit)
                try:
                    return await self._send(wallet, vault, data, action)
                except TransactionFailed:
                    if await self._read_token("allowance", wallet.address, vault) >= amount:
                        raise  # the permit was not what failed
            await self._approve(wallet, vault, amount)
            return await self._send(
                wallet, vault, self._vault.call("deposit", token, wallet.address, amount), action
            )

    async def withdraw(self, wallet: Signer, amount: Amount) -> str:
        """See `Ledger`."""
        data = self._vault.call("withdraw", self._book.token, amount, wallet.address)
        return await self._send(wallet, self._book.vault, data, "the withdrawal")

    async def mint(self, wallet: Signer, owner: Address, amount: Amount) -> str:
        """Make demo money for `owner`; only where the token is a `DemoToken`."""
        data = self._token.call("mint", owner, amount)
        return await self._send(wallet, self._book.token, data, "the making of demo money")

    def _allowance_lock(self, wallet: Signer) -> anyio.Lock:
        # Permits have a counter and approvals replace each other: one at a time for each wallet.
        return self._allowances.setdefault(wallet.address, anyio.Lock())

    async def _require(self, owner: Address, amount: int) -> None:
        balance = await self.balance(owner)
        if balance < amount:
            raise empty_wallet(self._asset, balance, amount)

    async def _permit(self, wallet: Signer, spender: Address, amount: int) -> tuple[int, bytes, bytes] | None:
        try:
            (separator,) = await self._tried(self._token, self._book.token, "DOMAIN_SEPARATOR")
            (nonce,) = await self._tried(self._token, self._book.token, "nonces", wallet.address)
        except (TransactionFailed, ValueError):
            return None
        hashed = struct_hash(_PERMIT_TYPE, wallet.address, spender, amount, nonce, _FOREVER)
        signature = wallet.sign(keccak256(b"\x19\x01" + separator + hashed))
        return signature[64], signature[:32], signature[32:64]

    async def _approve(self, wallet: Signer, spender: Address, amount: int) -> None:
        if await self._read_token("allowance", wallet.address, spender) < amount:
            data = self._token.call("approve", spender, amount)
            await self._send(wallet, self._book.token, data, "the approval of the transfer")

    # -- leases

    async def open(self, relayer: Signer, terms: Terms, opening: Opening) -> str:
        """See `Ledger`."""
        data = self._vault.call("open", _row(terms), opening.deposit, opening.open_by, opening.signature)
        return await self._send(relayer, self._book.vault, data, "the opening of the lease")

    async def channel(self, channel_id: bytes) -> ChannelState | None:
        """See `Ledger`."""
        deposit, settled, opened_at, close_at = await self._read_vault("channels", channel_id)
        if opened_at == 0:
            return None
        closed = close_at == _CLOSED
        return ChannelState(deposit, settled, opened_at, None if closed or not close_at else close_at, closed)

    async def closing(self, channel_id: bytes) -> Closing | None:
        """See `Ledger`. The event is looked for from the newest block back to the lease's opening."""
        state = await self.channel(channel_id)
        if state is None or not state.closed:
            return None
        wanted = {
            "address": "0x" + self._book.vault.hex(),
            "topics": ["0x" + self._vault.topic("Closed").hex(), "0x" + channel_id.hex()],
        }
        newest = await self._ask("eth_blockNumber")
        with self._rpc.reading():
            last = quantity(newest)
        while last >= 0:
            first = max(0, last - _LOG_BLOCKS + 1)
            logs = await self._ask("eth_getLogs", {**wanted, "fromBlock": hex(first), "toBlock": hex(last)})
            with self._rpc.reading():
                if len(logs):
                    transaction = str(logs[-1]["transactionHash"])
                    return Closing(state.settled, Amount(state.deposit - state.settled), transaction)
            oldest = await self._ask("eth_getBlockByNumber", hex(first), False)
            with self._rpc.reading():
                if quantity(oldest["timestamp"]) < state.opened_at:
                    break
            last = first - 1
        return None

    async def settle(self, relayer: Signer, claims: Sequence[Claim], *, close: bool) -> str:
        """See `Ledger`. Raises `VouchersSkipped` if a row that should have paid did not; the others did."""
        rows = [(_row(claim.terms), claim.amount, *compact(claim.signature)) for claim in claims]
        data = self._vault.call("settleAndClose" if close else "settle", rows)
        receipt = await self._transact(relayer, self._book.vault, data, "the settlement")
        with self._rpc.reading():
            reasons = {
                values["channelId"]: values["reason"]
                for name, values in self._events(receipt)
                if name == "Skipped"
            }
        missed = []
        for claim in claims:
            channel_id = claim.terms.channel_id(self._asset.domain)
            if channel_id in reasons:
                state = await self.channel(channel_id)
                if state is None or claim.amount > state.settled:
                    missed.append((channel_id, reasons[channel_id]))
        if missed:
            with self._rpc.reading():
                failure = skipped(missed, len(claims))
            raise failure
        return str(receipt["transactionHash"])

    async def request_close(self, relayer: Signer, terms: Terms, signature: bytes) -> str:
        """See `Ledger`."""
        data = self._vault.call("requestClose", _row(terms), *compact(signature))
        return await self._send(relayer, self._book.vault, data, "the request to close the lease")

    async def finalize(self, relayer: Signer, terms: Terms) -> str:
        """See `Ledger`."""
        data = self._vault.call("finalize", _row(terms))
        return await self._send(relayer, self._book.vault, data, "the end of the lease")

    # -- providers

    async def provider(self, address: Address) -> ProviderRecord | None:
        """See `Ledger`."""
        node, stake, _thawing, _thawed_at = await self._read_registry("providers", address)
        if not any(node):
            return None
        (active,) = await self._read_registry("isAllowed", address)
        return ProviderRecord(NodeId(node), Amount(stake), active)

    async def register(self, wallet: Signer, node: NodeId, stake: Amount) -> str:
        """See `Ledger`. The stake is approved first, and a change of node and stake are two transactions."""
        registry, action = self._book.registry, "the registration"
        async with self._allowance_lock(wallet):
            if stake:
                await self._require(wallet.address, stake)
            known = await self.provider(wallet.address)
            if known is None:
                await self._approve(wallet, registry, stake)
                return await self._send(
                    wallet, registry, self._registry.call("register", node, stake), action
                )
            transaction = ""
            if known.node != node or not stake:
                transaction = await self._send(wallet, registry, self._registry.call("setNode", node), action)
            if stake:
                await self._approve(wallet, registry, stake)
                transaction = await self._send(
                    wallet, registry, self._registry.call("addStake", stake), action
                )
            return transaction

    # -- below the port

    async def _send(self, signer: Signer, to: Address, data: bytes, action: str) -> str:
        return str((await self._transact(signer, to, data, action))["transactionHash"])

    async def _transact(self, signer: Signer, to: Address, data: bytes, action: str) -> dict[str, Any]:
        if not self._checked:
            await self.check()
        return await self._transactor.send(signer, to, data, action)

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcRefused as error:
            if error.data:
                raise from_revert("a question", error.data, self._asset) from error
            raise TransactionFailed(action="a question", reason=error) from error

    async def _read(self, contract: Any, at: Address, function: str, *arguments: object) -> tuple[Any, ...]:
        with self._rpc.reading():
            return await self._tried(contract, at, function, *arguments)

    async def _tried(self, contract: Any, at: Address, function: str, *arguments: object) -> tuple[Any, ...]:
        # Raises `ValueError` where the contract has no such function and its fallback answered with nothing.
        if not self._checked:
            await self.check()
        call = {"to": "0x" + at.hex(), "data": "0x" + contract.call(function, *arguments).hex()}
        answer = await self._ask("eth_call", call, "latest")
        if not isinstance(answer, str):
            raise ChainUnreachable(url=self._rpc.url)
        try:
            return tuple(contract.result(function, bytes.fromhex(answer.removeprefix("0x"))))
        except ValueError:
            await self.check()  # a chain that was replaced under its address answers with nothing
            raise

    async def _read_vault(self, function: str, *arguments: object) -> tuple[Any, ...]:
        return await self._read(self._vault, self._book.vault, function, *arguments)

    async def _read_registry(self, function: str, *arguments: object) -> tuple[Any, ...]:
        return await self._read(self._registry, self._book.registry, function, *arguments)

    async def _read_token(self, function: str, *arguments: object) -> Any:
        (value,) = await self._read(self._token, self._book.token, function, *arguments)
        return value

    def _events(self, receipt: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for log in receipt["logs"]:
            if log["address"].lower() == "0x" + self._book.vault.hex():
                topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
                event = self._vault.event(topics, bytes.fromhex(log["data"][2:]))
                if event is not None:
                    found.append(event)
        return found
