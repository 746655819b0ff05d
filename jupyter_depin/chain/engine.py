"""The embedded chain without its server: py-evm, a clock that follows the wall, and an exact replay of what happened.

Every change is one `Change` with the timestamp of its block; the same changes in the same order give the same block
hashes, so a killed chain comes back from its file, and going back to a snapshot is a replay of the shorter list.

Rejected: eth-tester around py-evm (random block fields make replay impossible, reverts lose their data, and a
transaction takes several times as long); accounts with known keys (money comes as a withdrawal, which needs no key).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockAPI, BlockHeaderAPI, ComputationAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.db import get_db_backend
from eth.exceptions import HeaderNotFound, PyEVMError, Revert, VMError
from eth.vm.forks import PragueVM
from eth.vm.forks.shanghai.withdrawals import Withdrawal
from eth.vm.spoof import SpoofTransaction
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException

from jupyter_depin.protocol.eip712 import keccak256

CHAIN_ID = 31337
"""What development chains are called everywhere; wallets know it."""

FUNDING = 1000 * 10**18
"""Wei that one funding gives."""

_GAS_LIMIT = 30_000_000
_EMPTY_TRIE = keccak256(b"\x80")


class _Vm(PragueVM):  # type: ignore[misc]
    @classmethod
    def validate_header(cls, header: BlockHeaderAPI, parent_header: BlockHeaderAPI) -> None:
        """Called by py-evm for each block made here; its only complaint would be two blocks in one second."""


class _Chain(MiningChain):  # type: ignore[misc]
    chain_id = CHAIN_ID
    vm_configuration = ((0, _Vm),)

    def create_header_from_parent(self, parent_header: BlockHeaderAPI, **params: Any) -> BlockHeaderAPI:
        # A constant limit: the protocol would let it drift towards what blocks use.
        return super().create_header_from_parent(
            parent_header, **{**params, "gas_limit": parent_header.gas_limit}
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the chain's history: `kind` is "raw", "fund" or "mine" with the block's time, or "skip" seconds."""

    kind: str
    at: int
    data: bytes = b""


class Refused(Exception):
    """What a node would answer with an error: a JSON-RPC code, a message and a revert's data."""

    def __init__(self, message: str, code: int = -32000, data: bytes | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


@dataclass(slots=True)
class Mined:
    """A transaction in its block, with what came of it."""

    transaction: SignedTransactionAPI
    block: BlockAPI
    computation: ComputationAPI
    gas_used: int
    logs: Sequence[tuple[bytes, tuple[bytes, ...], bytes]]


class Engine:
    """A chain with one transaction per block. `genesis` is the first block's time; `clock` gives Unix seconds.

    Called by the server, from one thread. Raises `Refused`.
    """

    def __init__(self, genesis: int, clock: Callable[[], float] = time.time) -> None:
        self.genesis = genesis
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        parameters = {
            "coinbase": bytes(20),
            "difficulty": 0,
            "extra_data": b"",
            "gas_limit": _GAS_LIMIT,
            "mix_hash": bytes(32),
            "nonce": bytes(8),
            "receipt_root": _EMPTY_TRIE,
            "timestamp": self.genesis,
            "transaction_root": _EMPTY_TRIE,
        }
        self._chain = _Chain.from_genesis(get_db_backend(), parameters, {})
        self._offset = 0
        self.changes: list[Change] = []
        self.mined: dict[bytes, Mined] = {}

    # -- time

    @property
    def head(self) -> BlockHeaderAPI:
        """The newest block's header."""
        return self._chain.get_canonical_head()

    def pending_time(self) -> int:
        """The time that the next block gets: the wall's. Several blocks may share a second, as on rollups."""
        return max(int(self._clock()) + self._offset, int(self.head.timestamp))

    # -- changes

    def send(self, raw: bytes) -> bytes:
        """Mine one signed transaction; returns its hash."""
        transaction = self._decoded(raw)
        if transaction.hash in self.mined:
            raise Refused("already known")
        if transaction.chain_id != CHAIN_ID:
            raise Refused("invalid chain id for signer")
        nonce = self.nonce(transaction.sender)
        if transaction.nonce != nonce:
            low = transaction.nonce < nonce
            raise Refused(
                f"nonce too {'low' if low else 'high'}: next {nonce}, transaction {transaction.nonce}"
            )
        self.apply(Change("raw", self.pending_time(), raw))
        return bytes(transaction.hash)

    def fund(self, address: bytes) -> None:
        """Give an address `FUNDING` wei."""
        self.apply(Change("fund", self.pending_time(), address))

    def mine(self) -> None:
        """Mine an empty block."""
        self.apply(Change("mine", self.pending_time()))

    def skip(self, seconds: int) -> None:
        """Put the clock forward for all blocks to come."""
        self.apply(Change("skip", seconds))

    def revert(self, length: int) -> None:
        """Go back to the time when there were `length` changes."""
        if not 0 <= length <= len(self.changes):
            raise Refused("unknown snapshot", -32602)
        kept = self.changes[:length]
        self._restart()
        for change in kept:
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Do one change; live ones and those from the file come this way. Raises `Refused`, and then nothing changed."""
        if change.kind == "skip":
            self._offset += change.at
        else:
            self._chain.set_header_timestamp(change.at)
            seal = {"coinbase": bytes(20), "mix_hash": keccak256(self.head.hash)}
            if change.kind == "fund":
                gift = Withdrawal(len(self.changes), 0, change.data, FUNDING // 10**9)
                self._chain.mine_all([], withdrawals=[gift], **seal)
            elif change.kind == "raw":
                self._mine_transaction(change.data, seal)
            elif change.kind == "mine":
                self._chain.mine_block(**seal)
            else:
                raise Refused(f"unknown change {change.kind!r}")
        self.changes.append(change)

    def _decoded(self, raw: bytes) -> SignedTransactionAPI:
        try:
            transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
            transaction.check_signature_validity()
        except (PyEVMError, RLPException, ValidationError, ValueError, IndexError) as error:
            raise Refused(f"malformed transaction: {error}", -32602) from error
        return transaction

    def _mine_transaction(self, raw: bytes, seal: dict[str, Any]) -> None:
        transaction = self._decoded(raw)
        try:
            _, receipt, computation = self._chain.apply_transaction(transaction)
        except ValidationError as error:
            raise Refused(str(error)) from error
        block = self._chain.mine_block(**seal)
        logs = [
            (log.address, tuple(t.to_bytes(32, "big") for t in log.topics), log.data) for log in receipt.logs
        ]
        self.mined[transaction.hash] = Mined(transaction, block, computation, receipt.gas_used, logs)

    # -- reads; `number` None is the newest block

    def header(self, number: int | None) -> BlockHeaderAPI:
        """A block's header. Raises `Refused` for a block that is not there."""
        try:
            return self.head if number is None else self._chain.get_canonical_block_header_by_number(number)
        except HeaderNotFound as error:
            raise Refused("unknown block") from error

    def block(self, number: int) -> BlockAPI:
        """A whole block."""
        self.header(number)
        return self._chain.get_canonical_block_by_number(number)

    def block_by_hash(self, block_hash: bytes) -> BlockAPI:
        """A whole block by its hash."""
        try:
            return self._chain.get_block_by_hash(block_hash)
        except HeaderNotFound as error:
            raise Refused("unknown block") from error

    def nonce(self, address: bytes, number: int | None = None) -> int:
        """How many transactions an address has sent."""
        return int(self._state(number).get_nonce(address))

    def balance(self, address: bytes, number: int | None = None) -> int:
        """Wei of an address."""
        return int(self._state(number).get_balance(address))

    def code(self, address: bytes, number: int | None = None) -> bytes:
        """The contract at an address."""
        return bytes(self._state(number).get_code(address))

    def storage(self, address: bytes, slot: int, number: int | None = None) -> int:
        """One storage word."""
        return int(self._state(number).get_storage(address, slot))

    def _state(self, number: int | None) -> Any:
        return self._chain.get_vm(at_header=self.header(number)).state

    def call(
        self, sender: bytes, to: bytes, data: bytes, value: int, gas: int | None, number: int | None
    ) -> bytes:
        """Run a call on top of block `number`; on top of the newest one, at the time that is now."""
        call = self._spoofed(sender, to, data, value, min(gas or _GAS_LIMIT, _GAS_LIMIT))
        return bytes(self._run(call, number).output)

    def estimate(self, sender: bytes, to: bytes, data: bytes, value: int) -> int:
        """Gas that a call needs, rounded up: two runs where py-evm's exact search takes twenty-five."""
        call = self._spoofed(sender, to, data, value, _GAS_LIMIT)
        enough = call.intrinsic_gas + self._run(call, None).get_gas_used()
        while enough < _GAS_LIMIT:
            try:
                self._run(self._spoofed(sender, to, data, value, enough), None)
            except Refused:
                enough = enough * 5 // 4  # an inner call gets at most 63/64 of what is left
            else:
                return int(enough)
        return _GAS_LIMIT

    def _state_above(self, number: int | None) -> Any:
        below = self.header(number)
        at = self.pending_time() if number is None else below.timestamp
        header = self._chain.create_header_from_parent(below).copy(timestamp=at, base_fee_per_gas=0)
        return self._chain.get_vm(at_header=header).state

    def _spoofed(self, sender: bytes, to: bytes, data: bytes, value: int, gas: int) -> SpoofTransaction:
        unsigned = self._chain.create_unsigned_transaction(
            nonce=self.nonce(sender), gas_price=0, gas=gas, to=to, value=value, data=data
        )
        return SpoofTransaction(unsigned, from_=sender)

    def _run(self, call: SpoofTransaction, number: int | None) -> ComputationAPI:
        try:
            computation = self._state_above(number).costless_execute_transaction(call)
            computation.raise_if_error()
        except Revert as error:
            data = error.args[0] if error.args and isinstance(error.args[0], bytes) else b""
            raise Refused("execution reverted", 3, data) from error
        except (VMError, ValidationError) as error:
            raise Refused(str(error) or type(error).__name__) from error
        return computation
