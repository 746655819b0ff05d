"""What only a real chain can do to a ledger: be wrong, be gone, be poor in fees, revert late."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import anyio
import pytest
from eth_abi.abi import encode
from web3 import AsyncHTTPProvider

from jupyter_depin.chain import ChannelState
from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.artifacts import artifact
from jupyter_depin.chain.deploy import deploy, fund
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.chain.memory import ASSET
from jupyter_depin.chain.reverts import from_revert
from jupyter_depin.chain.rpc import Rpc
from jupyter_depin.chain.transactions import Transactor
from jupyter_depin.errors import (
    ChainUnreachable,
    ConfigError,
    DamagedConfig,
    FeesMissing,
    TransactionFailed,
    WrongChain,
)
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.identity import Address, checksummed
from jupyter_depin.protocol.money import Amount


@pytest.fixture
def silent_port():
    """A port where nobody answers, and nobody else can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def rich(url: str) -> Wallet:
    wallet = Wallet.generate()
    await fund(url, wallet.address)
    return wallet


async def test_another_chain_than_the_book_says_is_refused_before_anything_is_sent(devchain):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    ledger = EvmLedger(replace(book, chain_id=8453))
    for attempt in (
        ledger.check(),
        ledger.escrow(owner.address),
        ledger.mint(owner, owner.address, Amount(5)),
    ):
        with pytest.raises(WrongChain, match="is chain 31337, not chain 8453"):
            await attempt
    await ledger.close()


async def test_a_chain_without_the_vault_is_a_wrong_chain(devchain):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    ledger = EvmLedger(replace(book, vault=Address(b"\x77" * 20)))
    with pytest.raises(WrongChain, match="without the vault 0x7777"):
        await ledger.check()
    await ledger.close()


async def test_nobody_there_is_said_with_the_address(silent_port):
    url = f"http://127.0.0.1:{silent_port}"
    none = Address(b"\x01" * 20)
    ledger = EvmLedger(AddressBook(31337, (url,), none, none, none, "DEMO", 6), timeout_s=5)
    with pytest.raises(ChainUnreachable, match=url):
        await ledger.check()
    with pytest.raises(ChainUnreachable, match=url):
        await ledger.balance(none)
    with pytest.raises(ChainUnreachable, match=url):
        await deploy(url, Wallet.generate())
    await ledger.close()


async def test_something_that_is_no_node_is_unreachable(devchain):
    ledger = EvmLedger(
        AddressBook(31337, (devchain.url + "/elsewhere",), *[Address(bytes(20))] * 3, "DEMO", 6)
    )
    with pytest.raises(ChainUnreachable):
        await ledger.check()
    await ledger.close()


@pytest.mark.parametrize(
    "answer",
    [{"error": {"code": -32005, "message": "too many requests"}}, {"result": None}, []],
)
async def test_a_node_that_answers_nonsense_is_unreachable(devchain, monkeypatch, answer):
    owner = await rich(devchain.url)
    ledger = EvmLedger(await deploy(devchain.url, owner))

    async def strange(*_):
        return answer

    monkeypatch.setattr(AsyncHTTPProvider, "make_request", strange)
    for attempt in (
        ledger.check(),
        ledger.now(),
        ledger.escrow(owner.address),
        ledger.withdraw(owner, Amount(1)),
    ):
        with pytest.raises(ChainUnreachable):
            await attempt
    with pytest.raises(ChainUnreachable):
        await deploy(devchain.url, owner)
    await ledger.close()


@pytest.mark.parametrize("odd", [None, {}, [], "", "0xzz", 7, {"timestamp": None}, [{}]], ids=repr)
@pytest.mark.parametrize(
    "method",
    [
        "eth_getBlockByNumber",
        "eth_call",
        "eth_getTransactionCount",
        "eth_estimateGas",
        "eth_getTransactionReceipt",
    ],
)
async def test_one_odd_answer_is_a_node_that_does_not_answer(devchain, monkeypatch, method, odd):
    """Public nodes answer null for a block they have not seen yet; that may not end a program."""
    owner = await rich(devchain.url)
    ledger = EvmLedger(await deploy(devchain.url, owner), deadline_s=0.1)
    await ledger.check()
    ask = AsyncHTTPProvider.make_request

    async def strange(self, asked, params):
        return {"result": odd} if asked == method else await ask(self, asked, params)

    monkeypatch.setattr(AsyncHTTPProvider, "make_request", strange)
    for attempt in (
        ledger.now,
        lambda: ledger.channel(bytes(32)),
        lambda: ledger.mint(owner, owner.address, Amount(1)),
    ):
        with contextlib.suppress(ChainUnreachable):
            await attempt()
    await ledger.close()


@pytest.mark.parametrize("method", ["eth_blockNumber", "eth_getLogs", "eth_getBlockByNumber"])
@pytest.mark.parametrize("odd", [None, {}, [{}], "0xzz", 7], ids=repr)
async def test_the_end_of_a_lease_is_not_read_from_odd_answers(devchain, monkeypatch, method, odd):
    owner = await rich(devchain.url)
    ledger = EvmLedger(await deploy(devchain.url, owner))

    async def closed(_):
        return ChannelState(Amount(5), Amount(2), 1, None, True)

    async def strange(_, asked, *__):
        return odd if asked == method else {"eth_getLogs": [], "eth_blockNumber": "0x9"}.get(asked)

    monkeypatch.setattr(ledger, "channel", closed)
    monkeypatch.setattr(Rpc, "call", strange)
    with pytest.raises(ChainUnreachable):
        await ledger.closing(bytes(32))
    await ledger.close()


async def test_at_the_interpreters_exit_the_network_is_merely_away(devchain, monkeypatch):
    ledger = EvmLedger(await deploy(devchain.url, await rich(devchain.url)))

    async def exiting(*_):
        raise RuntimeError("cannot schedule new futures after shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncHTTPProvider, "make_request", exiting)
        with pytest.raises(ChainUnreachable):
            await ledger.check()
    await ledger.close()


async def test_the_next_address_is_asked_when_one_is_silent(devchain, silent_port):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    ledger = EvmLedger(replace(book, rpc_urls=(f"http://127.0.0.1:{silent_port}", devchain.url)))
    await ledger.check()
    await ledger.mint(owner, owner.address, Amount(5))
    assert await ledger.balance(owner.address) == 5
    await ledger.close()


async def test_a_wallet_without_coins_for_fees_is_told_so(devchain):
    owner, poor = await rich(devchain.url), Wallet.generate()
    ledger = EvmLedger(await deploy(devchain.url, owner))
    await ledger.mint(owner, poor.address, Amount(1000))
    with pytest.raises(FeesMissing, match="holds 0 of the network's own coin"):
        await ledger.deposit(poor, Amount(1000))
    assert await ledger.balance(poor.address) == 1000
    await ledger.close()


async def test_a_deposit_is_one_transaction_where_the_token_takes_permits(devchain):
    owner = await rich(devchain.url)
    ledger = EvmLedger(await deploy(devchain.url, owner))
    await ledger.mint(owner, owner.address, Amount(1000))
    rpc = Rpc([devchain.url], 10)
    sent = await rpc.number("eth_getTransactionCount", "0x" + owner.address.hex(), "latest")
    await ledger.deposit(owner, Amount(1000))
    assert await rpc.number("eth_getTransactionCount", "0x" + owner.address.hex(), "latest") == sent + 1
    await rpc.close()
    await ledger.close()


async def test_a_token_that_knows_no_permits_is_approved_first(devchain, monkeypatch):
    owner = await rich(devchain.url)
    ledger = EvmLedger(await deploy(devchain.url, owner))
    await ledger.mint(owner, owner.address, Amount(1000))

    async def without(*_):
        return None

    monkeypatch.setattr(ledger, "_permit", without)
    await ledger.deposit(owner, Amount(1000))
    assert await ledger.escrow(owner.address) == 1000
    await ledger.close()


async def test_two_ledgers_may_send_from_one_wallet_at_the_same_time(devchain):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    one, two = EvmLedger(book), EvmLedger(book)
    async with anyio.create_task_group() as tasks:
        for ledger in (one, two) * 3:
            tasks.start_soon(ledger.mint, owner, owner.address, Amount(10))
    assert await one.balance(owner.address) == 60
    await one.close()
    await two.close()


async def test_a_transaction_that_nobody_mines_ends_at_the_deadline(devchain, monkeypatch):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    ledger = EvmLedger(book, deadline_s=0.2)
    ask = Rpc.call

    async def deaf(self, method, *params):
        return None if method == "eth_getTransactionReceipt" else await ask(self, method, *params)

    monkeypatch.setattr(Rpc, "call", deaf)
    with anyio.fail_after(30):
        with pytest.raises(ChainUnreachable):
            await ledger.mint(owner, owner.address, Amount(10))
    await ledger.close()


async def test_a_refusal_that_only_the_block_brings_still_has_its_reason(devchain, monkeypatch):
    owner = await rich(devchain.url)
    book = await deploy(devchain.url, owner)
    ledger = EvmLedger(book)

    async def enough(*_):
        return 200_000

    monkeypatch.setattr(Transactor, "_gas", enough)
    with pytest.raises(TransactionFailed, match="at most 1000000000000 base units"):
        await ledger.mint(owner, owner.address, Amount(10**12 + 1))
    await ledger.close()


async def test_an_existing_token_can_be_used_and_a_wrong_one_is_told(devchain):
    owner = await rich(devchain.url)
    first = await deploy(devchain.url, owner)
    second = await deploy(devchain.url, owner, token=first.token)
    assert (second.token, second.symbol, second.decimals) == (first.token, "DEMO", 6)
    with pytest.raises(ConfigError, match="no ERC-20 token at 0x7777"):
        await deploy(devchain.url, owner, token=Address(b"\x77" * 20))


def test_an_address_book_survives_the_disk_and_damage_is_named(tmp_path):
    path = tmp_path / "book.json"
    one, two, three = (Address(bytes([n]) * 20) for n in (0xAB, 2, 3))
    book = AddressBook(8453, ("https://a.example", "https://b.example"), one, two, three, "USDC", 6)
    book.save(path)
    assert AddressBook.load(path) == book
    text = path.read_text()
    for damaged in (
        text[:-5],
        "[]",
        text.replace('"vault"', '"walt"'),
        text.replace(checksummed(one)[2:], checksummed(one)[2:].swapcase()),
        text.replace("8453", "-1"),
    ):
        path.write_text(damaged)
        with pytest.raises(DamagedConfig, match=r"book\.json"):
            AddressBook.load(path)
    with pytest.raises(DamagedConfig):
        AddressBook.load(tmp_path / "absent.json")


def test_every_custom_error_of_the_contracts_has_words_for_people():
    for contract in ("SessionVault", "ProviderRegistry", "DemoToken"):
        errors = [
            e for e in artifact(contract).abi if e["type"] == "error" and e["name"].startswith(contract)
        ]
        assert errors
        for error in errors:
            types = [p["type"] for p in error["inputs"]]
            values = [bytes(20) if t == "address" else bytes(32) if t == "bytes32" else 7 for t in types]
            data = keccak256(f"{error['name']}({','.join(types)})".encode())[:4] + encode(types, values)
            assert error["name"] not in str(from_revert("it", data, ASSET))
