"""The JSON-RPC methods of the embedded chain: hex text to Python values and back, nothing else.

What wallets and web3 ask for when they send transactions and read contracts; filters and subscriptions are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rlp
from eth.abc import BlockAPI

from jupyter_depin.chain.engine import CHAIN_ID, Engine, Mined, Refused
from jupyter_depin.protocol.eip712 import keccak256

_TIP = 10**9


def answer(engine: Engine, request: Any) -> dict[str, Any]:
    """The reply to one decoded request. Called by the server; never raises."""
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id") if isinstance(request, dict) else None}
    try:
        method = METHODS.get(request["method"])
        if method is None:
            raise Refused(f"the method {request['method']} does not exist", -32601)
        reply["result"] = method(engine, *request.get("params") or [])
    except Refused as error:
        reply["error"] = {"code": error.code, "message": str(error)}
        if error.data is not None:
            reply["error"]["data"] = _hex(error.data)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        reply["error"] = {"code": -32602, "message": f"malformed request: {error}"}
    return reply


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(text: str | None) -> bytes:
    return bytes.fromhex((text or "").removeprefix("0x"))


def _int(value: str | int) -> int:
    return value if isinstance(value, int) else int(value, 16)


def _number(engine: Engine, tag: str | dict[str, str] | None) -> int | None:
    # Blocks follow each other without a queue, so that what is pending, safe and final is the newest block.
    if tag is None or tag in ("latest", "pending", "safe", "finalized"):
        return None
    if isinstance(tag, dict):
        return (
            engine.block_by_hash(_bytes(tag["blockHash"])).number
            if "blockHash" in tag
            else _int(tag["blockNumber"])
        )
    return 0 if tag == "earliest" else _int(tag)


def _call(engine: Engine, call: dict[str, str], tag: str | None = None, *_: object) -> str:
    sender, to, data, value, gas = _parts(call)
    return _hex(engine.call(sender, to, data, value, gas, _number(engine, tag)))


def _estimate(engine: Engine, call: dict[str, str], *_: object) -> str:
    sender, to, data, value, _gas = _parts(call)
    return hex(engine.estimate(sender, to, data, value))


def _parts(call: dict[str, str]) -> tuple[bytes, bytes, bytes, int, int | None]:
    data = _bytes(call.get("input") or call.get("data"))
    gas = _int(call["gas"]) if call.get("gas") else None
    sender = _bytes(call.get("from")) or bytes(20)
    return sender, _bytes(call.get("to")), data, _int(call.get("value") or "0x0"), gas


def _block(engine: Engine, tag: str, full: bool = False) -> dict[str, Any] | None:
    number = _number(engine, tag)
    number = engine.head.block_number if number is None else number
    if number > engine.head.block_number:
        return None
    shown = _shown_block(engine, engine.block(number), full)
    if tag == "pending":
        shown["timestamp"] = hex(engine.pending_time())
        shown["number"] = hex(number + 1)
        shown["hash"] = shown["nonce"] = None
    return shown


def _block_by_hash(engine: Engine, block_hash: str, full: bool = False) -> dict[str, Any] | None:
    try:
        return _shown_block(engine, engine.block_by_hash(_bytes(block_hash)), full)
    except Refused:
        return None


def _shown_block(engine: Engine, block: BlockAPI, full: bool) -> dict[str, Any]:
    header = block.header
    hashes = [transaction.hash for transaction in block.transactions]
    return {
        "number": hex(header.block_number),
        "hash": _hex(header.hash),
        "parentHash": _hex(header.parent_hash),
        "nonce": _hex(header.nonce),
        "mixHash": _hex(header.mix_hash),
        "sha3Uncles": _hex(header.uncles_hash),
        "logsBloom": _hex(header.bloom.to_bytes(256, "big")),
        "transactionsRoot": _hex(header.transaction_root),
        "stateRoot": _hex(header.state_root),
        "receiptsRoot": _hex(header.receipt_root),
        "miner": _hex(header.coinbase),
        "difficulty": "0x0",
        "extraData": _hex(header.extra_data),
        "size": hex(len(rlp.encode(header))),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "transactions": [_transaction(engine, _hex(h)) for h in hashes]
        if full
        else [_hex(h) for h in hashes],
        "uncles": [],
    }


def _transaction(engine: Engine, transaction_hash: str) -> dict[str, Any] | None:
    mined = engine.mined.get(_bytes(transaction_hash))
    if mined is None:
        return None
    it = mined.transaction
    shown: dict[str, Any] = {
        **_place(mined),
        "hash": _hex(it.hash),
        "from": _hex(it.sender),
        "to": _hex(it.to) if it.to else None,
        "nonce": hex(it.nonce),
        "gas": hex(it.gas),
        "value": hex(it.value),
        "input": _hex(it.data),
        "type": hex(it.type_id or 0),
        "chainId": hex(CHAIN_ID),
        "r": hex(it.r),
        "s": hex(it.s),
        "v": hex(it.y_parity),
        "gasPrice": hex(_price(mined)),
    }
    if it.type_id == 2:
        shown["maxFeePerGas"] = hex(it.max_fee_per_gas)
        shown["maxPriorityFeePerGas"] = hex(it.max_priority_fee_per_gas)
        shown["yParity"] = hex(it.y_parity)
        shown["accessList"] = []
    return shown


def _price(mined: Mined) -> int:
    it, base = mined.transaction, mined.block.header.base_fee_per_gas
    return int(min(it.max_fee_per_gas, base + it.max_priority_fee_per_gas))


def _place(mined: Mined) -> dict[str, str]:
    return {
        "blockHash": _hex(mined.block.hash),
        "blockNumber": hex(mined.block.number),
        "transactionIndex": "0x0",
    }


def _receipt(engine: Engine, transaction_hash: str) -> dict[str, Any] | None:
    mined = engine.mined.get(_bytes(transaction_hash))
    if mined is None:
        return None
    it = mined.transaction
    created = None if it.to else _hex(mined.computation.msg.storage_address)
    return {
        **_place(mined),
        "transactionHash": _hex(it.hash),
        "from": _hex(it.sender),
        "to": _hex(it.to) if it.to else None,
        "contractAddress": created,
        "gasUsed": hex(mined.gas_used),
        "cumulativeGasUsed": hex(mined.gas_used),
        "effectiveGasPrice": hex(_price(mined)),
        "status": "0x0" if mined.computation.is_error else "0x1",
        "type": hex(it.type_id or 0),
        "logs": _logs_of(mined),
        "logsBloom": _hex(mined.block.header.bloom.to_bytes(256, "big")),
    }


def _logs_of(mined: Mined) -> list[dict[str, Any]]:
    return [
        {
            **_place(mined),
            "transactionHash": _hex(mined.transaction.hash),
            "logIndex": hex(index),
            "address": _hex(address),
            "topics": [_hex(topic) for topic in topics],
            "data": _hex(data),
            "removed": False,
        }
        for index, (address, topics, data) in enumerate(mined.logs)
    ]


def _logs(engine: Engine, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    newest = engine.head.block_number
    if "blockHash" in wanted:
        first = last = engine.block_by_hash(_bytes(wanted["blockHash"])).number
    else:
        first, last = (_number(engine, wanted.get(end)) for end in ("fromBlock", "toBlock"))
    first = newest if first is None else first
    last = newest if last is None else last
    addresses = wanted.get("address") or []
    addresses = {a.lower() for a in ([addresses] if isinstance(addresses, str) else addresses)}
    return [
        log
        for mined in engine.mined.values()
        if first <= mined.block.number <= last
        for log in _logs_of(mined)
        if (not addresses or log["address"] in addresses)
        and _matches(log["topics"], wanted.get("topics") or [])
    ]


def _matches(topics: list[str], wanted: list[Any]) -> bool:
    if len(wanted) > len(topics):
        return False
    for topic, choice in zip(topics, wanted, strict=False):
        choices = [choice] if isinstance(choice, str) else choice
        if choices and topic not in [c.lower() for c in choices]:
            return False
    return True


def _fund(engine: Engine, address: str) -> bool:
    raw = _bytes(address)
    if len(raw) != 20:
        raise Refused("an address has 20 bytes", -32602)
    engine.fund(raw)
    return True


def _mine(engine: Engine, *_: object) -> str:
    engine.mine()
    return "0x0"


def _skip(engine: Engine, seconds: str | int) -> str:
    engine.skip(_int(seconds))
    return hex(_int(seconds))


def _revert(engine: Engine, snapshot: str) -> bool:
    engine.revert(_int(snapshot))
    return True


METHODS: dict[str, Callable[..., Any]] = {
    "web3_clientVersion": lambda _: "jupyter-depin devchain",
    "web3_sha3": lambda _, data: _hex(keccak256(_bytes(data))),
    "net_version": lambda _: str(CHAIN_ID),
    "eth_chainId": lambda _: hex(CHAIN_ID),
    "eth_syncing": lambda _: False,
    "eth_accounts": lambda _: [],
    "eth_blockNumber": lambda engine: hex(engine.head.block_number),
    "eth_gasPrice": lambda engine: hex(2 * engine.head.base_fee_per_gas + _TIP),
    "eth_maxPriorityFeePerGas": lambda _: hex(_TIP),
    "eth_getBalance": lambda e, address, tag=None: hex(e.balance(_bytes(address), _number(e, tag))),
    "eth_getTransactionCount": lambda e, address, tag=None: hex(e.nonce(_bytes(address), _number(e, tag))),
    "eth_getCode": lambda e, address, tag=None: _hex(e.code(_bytes(address), _number(e, tag))),
    "eth_getStorageAt": lambda e, address, slot, tag=None: _hex(
        e.storage(_bytes(address), _int(slot), _number(e, tag)).to_bytes(32, "big")
    ),
    "eth_call": _call,
    "eth_estimateGas": _estimate,
    "eth_sendRawTransaction": lambda engine, raw: _hex(engine.send(_bytes(raw))),
    "eth_getBlockByNumber": _block,
    "eth_getBlockByHash": _block_by_hash,
    "eth_getTransactionByHash": _transaction,
    "eth_getTransactionReceipt": _receipt,
    "eth_getLogs": _logs,
    "evm_fund": _fund,
    "evm_mine": _mine,
    "evm_increaseTime": _skip,
    "evm_snapshot": lambda engine: hex(len(engine.changes)),
    "evm_revert": _revert,
}
