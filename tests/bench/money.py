"""What paying costs the processor: a voucher signed, a voucher checked, and the meters of a hundred rentals."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data

from jupyter_depin.drivers.clock import steady_ns, unix_ns
from jupyter_depin.drivers.meter import PayeeDriver, PayerDriver
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet, recover, verify_voucher
from jupyter_depin.protocol.eip712 import DOMAIN_NAME, DOMAIN_VERSION
from jupyter_depin.protocol.identity import Address, NodeAddress, NodeId
from jupyter_depin.protocol.market import Asset, Offer, Terms
from jupyter_depin.protocol.messages import (
    ToPayer,
    VoucherGiven,
    VoucherTaken,
    decode_to_payee,
    decode_to_payer,
    encode,
)
from jupyter_depin.protocol.money import Amount, Rate
from jupyter_depin.protocol.record import LeaseRecord
from jupyter_depin.protocol.voucher import SignedVoucher, Voucher
from tests.bench.report import Benchmark, Line, in_turns, quantile

_ASSET = Asset(31337, Address(b"\x0a" * 20), Address(b"\x0b" * 20), "DEMO", 6)
_NODE = NodeId(b"\x04" * 32)
_PAYEE = Address(b"\x03" * 20)
_DEPOSIT = Amount(10**12)
_RENTALS = 100
_TICK_S = 1
_DESIGNED_TICK_S = 5
_TYPES = {
    "EIP712Domain": [
        {"name": "name", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "chainId", "type": "uint256"},
        {"name": "verifyingContract", "type": "address"},
    ],
    "Voucher": [
        {"name": "channelId", "type": "bytes32"},
        {"name": "maxClaimableAmount", "type": "uint128"},
    ],
}


def _typed(voucher: Voucher) -> Any:
    domain = _ASSET.domain
    return encode_typed_data(
        full_message={
            "types": _TYPES,
            "primaryType": "Voucher",
            "domain": {
                "name": DOMAIN_NAME,
                "version": DOMAIN_VERSION,
                "chainId": domain.chain_id,
                "verifyingContract": "0x" + domain.vault.hex(),
            },
            "message": {"channelId": voucher.channel_id, "maxClaimableAmount": voucher.amount},
        }
    )


def _us(calls: int, call: Callable[[], object]) -> list[float]:
    """Processor time of one call, in µs, averaged over some."""
    begun = time.process_time()
    for _ in range(calls):
        call()
    return [(time.process_time() - begun) / calls * 1e6]


def _voucher_us(quick: bool) -> tuple[list[float], list[float]]:
    """Ours and the peer's: signing, then checking."""
    wallet = Wallet.generate()
    account = Account.from_key(wallet.secret)
    voucher = Voucher(b"\x07" * 32, Amount(123_456))
    domain = _ASSET.domain

    def sign() -> bytes:
        return wallet.sign(voucher.digest(domain))

    def peer_signs() -> bytes:
        return bytes(account.sign_message(_typed(voucher)).signature)

    signature = sign()
    signed = SignedVoucher(voucher, signature)

    def verify() -> object:
        return verify_voucher(signed, wallet.address, domain)

    def peer_verifies() -> str:
        return str(Account.recover_message(_typed(voucher), signature=signature))

    # Both must do the same work.
    assert recover(voucher.digest(domain), peer_signs()) == wallet.address
    assert bytes.fromhex(peer_verifies()[2:]) == wallet.address
    blocks, calls = (3, 40) if quick else (10, 100)
    samples = in_turns(
        blocks,
        partial(_us, 4 * calls, sign),
        partial(_us, calls, peer_signs),
        partial(_us, 4 * calls, verify),
        partial(_us, calls, peer_verifies),
    )
    half = [quantile(each, 0.5) for each in samples]
    return half[:2], half[2:]


def _voucher(quick: bool) -> Iterator[Line]:
    signing, verifying = _voucher_us(quick)
    yield Line("voucher_sign_us", signing[0], "µs", "eth_account", signing[1])
    yield Line("voucher_verify_us", verifying[0], "µs", "eth_account", verifying[1])


class _Pair:
    """Both meters of one rental, joined by the words that the payment lane would carry."""

    def __init__(self, number: int, journals: tuple[Journal, Journal]) -> None:
        key = Wallet.generate()
        offer = Offer(
            _PAYEE, _NODE, bytes(32), _ASSET, Rate(360_000), Amount(0), 7200, _TICK_S, 60, 60, 1, 2**40 - 1, "A card"
        )  # fmt: skip
        terms = Terms(
            key.address, key.address, _PAYEE, _ASSET.token, Amount(0), offer.rate, 7200, bytes(32), bytes(32)
        )
        channel = number.to_bytes(32, "big")
        ours, theirs = journals
        ours.save_lease(
            LeaseRecord.of_payer(
                channel, terms, offer, _DEPOSIT, NodeAddress(_NODE), key, str(number), unix_ns(), 2**40 - 1
            )
        )
        theirs.save_lease(LeaseRecord.of_payee(channel, terms, offer, _DEPOSIT, _NODE, unix_ns(), 2**40 - 1))
        self.paid = 0
        self.payer = PayerDriver(
            offer=offer,
            cap=_DEPOSIT,
            channel_id=channel,
            key=key,
            journal=ours,
            send=self._to_payee,
            on_change=lambda: None,
        )
        self.payee = PayeeDriver(
            offer=offer,
            terms=terms,
            deposit=_DEPOSIT,
            channel_id=channel,
            journal=theirs,
            send=self._to_payer,
            on_pause=lambda: None,
            on_unpause=lambda: None,
            on_end=lambda reason: None,
        )

    def start(self) -> None:
        self.payer.start(steady_ns())
        self.payee.start()

    def _to_payee(self, word: VoucherGiven) -> None:
        self.payee.receive(decode_to_payee(encode(word)))

    def _to_payer(self, word: ToPayer) -> None:
        self.paid += isinstance(word, VoucherTaken)
        self.payer.receive(decode_to_payer(encode(word)))


async def _meter(seconds: float) -> float:
    """Processor time of one paid tick of one rental, in µs; both sides and both journals."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder, "payer.sqlite")) as ours,
        Journal(Path(folder, "payee.sqlite")) as theirs,
    ):
        pairs = [_Pair(number, (ours, theirs)) for number in range(1, _RENTALS + 1)]
        begun = time.process_time()
        for pair in pairs:
            pair.start()
        await asyncio.sleep(seconds)
        spent = time.process_time() - begun
        paid = sum(pair.paid for pair in pairs)
        for pair in pairs:
            pair.payee.stop()
    return spent / paid * 1e6


def _metering(quick: bool) -> Iterator[Line]:
    each_us = asyncio.run(_meter((1.5 if quick else 4.5) * _TICK_S))
    signing, verifying = _voucher_us(quick=True)
    # The payer signs and checks its own work, the payee checks it again.
    peer_us = signing[1] + 2 * verifying[1]
    ours, peer = (us * _RENTALS / _DESIGNED_TICK_S / 1e6 * 100 for us in (each_us, peer_us))
    yield Line("metering_100_rentals_core_percent", ours, "%", "eth_account's signatures alone", peer)


BENCHMARKS = (
    Benchmark(
        ("voucher_sign_us", "voucher_verify_us"),
        "lower",
        "processor time to hash and sign, or check, one voucher",
        _voucher,
    ),
    Benchmark(
        ("metering_100_rentals_core_percent",),
        "lower",
        "one core's share for both meters and journals of 100 rentals that pay every 5 s",
        _metering,
    ),
)
