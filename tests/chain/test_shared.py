"""A ledger that one process serves to another: the same answers, the same errors, and no call hurts the next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import anyio
import msgspec
import pytest

from jupyter_depin.chain.memory import MemoryLedger
from jupyter_depin.chain.shared import LedgerAddress, SharedLedger, serve
from jupyter_depin.errors import ChainUnreachable, EmptyWallet, TransactionFailed
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeId
from jupyter_depin.protocol.market import Opening, Terms, close_digest, open_digest
from jupyter_depin.protocol.money import MAX_AMOUNT, Amount, Rate
from jupyter_depin.protocol.voucher import Claim, Voucher

SECRET = "only the parent knows"
Served = Callable[[MemoryLedger], AbstractAsyncContextManager[LedgerAddress]]


@pytest.fixture
def served() -> Served:
    """`async with served(ledger) as address`: the ledger on a port of this machine."""

    @asynccontextmanager
    async def serving(ledger: MemoryLedger) -> AsyncIterator[LedgerAddress]:
        async def run(*, task_status: anyio.abc.TaskStatus[LedgerAddress]) -> None:
            await serve(ledger, SECRET, task_status=task_status)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                yield await tasks.start(run)
                tasks.cancel_scope.cancel()

    return serving


async def test_a_lease_lives_its_whole_life_over_the_socket(served):
    now = 1_000_000
    ledger = MemoryLedger(gift=10**9, clock=lambda: now)
    payer, key, provider = Wallet.generate(), Wallet.generate(), Wallet.generate()
    async with served(ledger) as address:
        shared = SharedLedger(address)
        assert shared.asset == ledger.asset
        await shared.check()
        assert await shared.now() == now
        assert await shared.balance(payer.address) == 10**9
        await shared.deposit(payer, Amount(5_000_000))
        await shared.withdraw(payer, Amount(1_000_000))
        assert await shared.escrow(payer.address) == 4_000_000
        assert await shared.provider(provider.address) is None
        await shared.register(provider, NodeId(b"\1" * 32), Amount(7))
        record = await shared.provider(provider.address)
        assert record == await ledger.provider(provider.address)
        domain = ledger.asset.domain
        terms = Terms(
            payer.address, key.address, provider.address, ledger.asset.token, Amount(0), Rate(10**9), 3600,
            bytes(32), bytes(32),
        )  # fmt: skip
        channel_id = terms.channel_id(domain)
        assert await shared.channel(channel_id) is None
        signature = payer.sign(open_digest(domain, channel_id, Amount(4_000_000), now + 5))
        await shared.open(provider, terms, Opening(Amount(4_000_000), now + 5, signature))
        assert await shared.channel(channel_id) == await ledger.channel(channel_id)
        assert await shared.closing(channel_id) is None
        await shared.request_close(payer, terms, key.sign(close_digest(domain, channel_id)))
        with pytest.raises(TransactionFailed):
            await shared.finalize(payer, terms)
        voucher = Voucher(channel_id, Amount(1_500_000))
        claim = Claim(terms, voucher.amount, key.sign(voucher.digest(domain)))
        transaction = await shared.settle(provider, [claim], close=True)
        closing = await shared.closing(channel_id)
        assert closing == await ledger.closing(channel_id)
        assert closing is not None
        assert (closing.settled, closing.refunded, closing.transaction) == (1_500_000, 2_500_000, transaction)
        await shared.close()
        assert await shared.escrow(payer.address) == 2_500_000
        await shared.close()


async def test_amounts_beyond_64_bits_cross_over(served):
    async with served(MemoryLedger(gift=MAX_AMOUNT)) as address:
        shared, wallet = SharedLedger(address), Wallet.generate()
        assert await shared.balance(wallet.address) == MAX_AMOUNT
        await shared.deposit(wallet, Amount(2**80))
        assert await shared.escrow(wallet.address) == 2**80
        await shared.close()


async def test_errors_cross_over_with_their_facts(served):
    ledger, wallet = MemoryLedger(gift=5), Wallet.generate()
    async with served(ledger) as address:
        shared = SharedLedger(address)
        with pytest.raises(EmptyWallet) as there:
            await shared.deposit(wallet, Amount(6))
        with pytest.raises(EmptyWallet) as here:
            await ledger.deposit(wallet, Amount(6))
        assert str(there.value) == str(here.value)
        with pytest.raises(TransactionFailed):
            await shared.withdraw(wallet, Amount(0))
        # The connection is none the worse for it.
        assert await shared.balance(wallet.address) == 5
        await shared.close()


@pytest.mark.parametrize(
    "secret", ["", "wrong", SECRET + "x", "é", "\udcff".encode("utf-8", "replace").decode()]
)
async def test_who_does_not_know_the_secret_is_told_nothing(served, secret):
    ledger, wallet = MemoryLedger(gift=5), Wallet.generate()
    async with served(ledger) as address:
        liar = SharedLedger(msgspec.structs.replace(address, secret=secret))
        for call in (liar.balance(wallet.address), liar.deposit(wallet, Amount(1))):
            with pytest.raises(ChainUnreachable):
                await call
        assert await ledger.escrow(wallet.address) == 0
        honest = SharedLedger(address)
        assert await honest.balance(wallet.address) == 5
        await honest.close()
        await liar.close()


@pytest.mark.parametrize(
    "noise", [b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\4null", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_noise_on_the_port_hurts_nobody(served, noise):
    ledger = MemoryLedger(gift=5)
    async with served(ledger) as address:
        stranger = await anyio.connect_tcp("127.0.0.1", address.port)
        await stranger.send(noise)
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stranger.receive()
        shared = SharedLedger(address)
        assert await shared.balance(Wallet.generate().address) == 5
        await shared.close()


async def test_a_call_that_was_given_up_does_not_poison_the_next(served):
    class Slow(MemoryLedger):
        async def escrow(self, payer):
            reached.set()
            await gate.wait()
            return await super().escrow(payer)

    reached, gate = anyio.Event(), anyio.Event()
    ledger, wallet = Slow(gift=5), Wallet.generate()
    async with served(ledger) as address:
        shared = SharedLedger(address)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.escrow, wallet.address)
            await reached.wait()
            tasks.cancel_scope.cancel()
        gate.set()
        assert await shared.balance(wallet.address) == 5
        assert await shared.escrow(wallet.address) == 0
        await shared.close()


async def test_half_an_answer_that_was_given_up_does_not_poison_the_next():
    """The peer stops in the middle of an answer; the next call, on a new connection, reads none of it."""
    ledger = MemoryLedger(gift=5)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = int(listener.extra(anyio.abc.SocketAttribute.local_port))
    calls = 0
    sent = anyio.Event()

    async def handle(stream) -> None:
        nonlocal calls
        calls += 1
        async with stream:
            await stream.receive()
            whole = b'\0\0\0\x1b{"type":"result","value":5}'
            if calls == 1:
                await stream.send(whole[:9])
                sent.set()
                await anyio.sleep_forever()
            if calls == 2:
                await stream.send(whole[:9])
                return
            await stream.send(whole)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            shared = SharedLedger(LedgerAddress(port, SECRET, ledger.asset))
            async with anyio.create_task_group() as giving_up:
                giving_up.start_soon(shared.now)
                await sent.wait()
                giving_up.cancel_scope.cancel()
            with pytest.raises(ChainUnreachable):
                await shared.now()
            assert await shared.now() == 5
            await shared.close()
            tasks.cancel_scope.cancel()


async def test_a_ledger_whose_process_is_gone_is_unreachable(served):
    async with served(MemoryLedger()) as address:
        shared = SharedLedger(address)
        await shared.check()
    with pytest.raises(ChainUnreachable):
        await shared.now()
    with pytest.raises(ChainUnreachable):
        await shared.now()


async def test_two_callers_at_once_get_their_own_answers(served):
    ledger = MemoryLedger(gift=0)
    wallets = [Wallet.generate() for _ in range(20)]
    for i, wallet in enumerate(wallets):
        ledger.mint(wallet.address, Amount(i))
    got: dict[int, int] = {}
    async with served(ledger) as address:
        shared = SharedLedger(address)

        async def ask(i: int) -> None:
            got[i] = await shared.balance(wallets[i].address)

        async with anyio.create_task_group() as tasks:
            for i in range(20):
                tasks.start_soon(ask, i)
        assert got == {i: i for i in range(20)}
        await shared.close()


def test_its_address_survives_a_line_of_json():
    address = LedgerAddress(1234, SECRET, replace(MemoryLedger().asset, decimals=18))
    assert msgspec.json.decode(msgspec.json.encode(address), type=LedgerAddress) == address
