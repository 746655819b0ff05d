"""The digests, against another encoder: what wallets show and sign must be what we hash."""

from __future__ import annotations

import msgspec
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.protocol import eip712
from jupyter_depin.protocol.eip712 import DOMAIN_NAME, DOMAIN_VERSION, Domain, keccak256, struct_hash, word
from jupyter_depin.protocol.identity import Address, Binding, NodeId
from jupyter_depin.protocol.market import Lease, close_digest, open_digest
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import Voucher, attach_digest

HERE = Domain(31337, b"\x0c" * 20)
LEASE = b"\x05" * 32
AMOUNTS = st.integers(0, 2**88 - 1).map(Amount)
WORDS = st.binary(min_size=32, max_size=32)
ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)


def theirs(declaration: str, *values: object, domain: Domain = HERE) -> bytes:
    """eth_account's digest of a struct, from its declaration as it stands in the contract."""
    name, members = declaration.rstrip(")").split("(")
    fields = [dict(zip(("type", "name"), member.split(), strict=True)) for member in members.split(",")]
    message = encode_typed_data(
        {
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": domain.chain_id,
            "verifyingContract": "0x" + domain.vault.hex(),
        },
        {name: fields},
        {each["name"]: value for each, value in zip(fields, values, strict=True)},
    )
    return bytes(_hash_eip191_message(message))


@given(st.binary(max_size=300))
def test_the_hash_is_the_evms(data):
    assert keccak256(data) == keccak(data)


def test_a_word_has_32_bytes():
    assert word(1) == bytes(31) + b"\x01"
    assert word(b"\x02" * 20) == bytes(12) + b"\x02" * 20
    assert word(b"\x03" * 32) == b"\x03" * 32
    assert struct_hash(b"\x01" * 32, 2) == keccak(b"\x01" * 32 + word(2))


def test_the_domain_is_hashed_once(monkeypatch):
    here = Domain(1, b"\x01" * 20)
    first = here.separator
    monkeypatch.setattr(eip712, "struct_hash", None)
    assert here.separator is first
    assert Domain(1, b"\x01" * 20) == here


@given(WORDS, AMOUNTS, st.integers(0, 2**64), st.binary(min_size=20, max_size=20))
def test_vouchers(channel_id, value, chain_id, vault):
    domain = Domain(chain_id, vault)
    assert Voucher(channel_id, value).digest(domain) == theirs(
        "Voucher(bytes32 channelId,uint128 maxClaimableAmount)", channel_id, value, domain=domain
    )


def test_terms(terms):
    assert terms.channel_id(HERE) == theirs(
        "Terms(address payer,address signer,address provider,address token,uint88 openFee,uint88 rate,"
        "uint32 maxSeconds,bytes32 grantId,bytes32 leaseHash)",
        terms.payer, terms.signer, terms.provider, terms.token, terms.open_fee, terms.rate, terms.max_seconds,
        terms.grant_id, terms.lease_hash,
    )  # fmt: skip


@given(WORDS, AMOUNTS, st.integers(0, 2**40 - 1))
def test_openings_and_closings(channel_id, deposit, until):
    assert open_digest(HERE, channel_id, deposit, until) == theirs(
        "Open(bytes32 channelId,uint88 deposit,uint40 openBy)", channel_id, deposit, until
    )
    assert close_digest(HERE, channel_id) == theirs("RequestClose(bytes32 channelId)", channel_id)


@given(WORDS, ADDRESSES, st.integers(0, 2**32 - 1), st.integers(0, 2**40 - 1))
def test_leases_and_bindings(some, wallet, seconds, until):
    assert Lease(some, wallet, LEASE, wallet, seconds, until, some).digest(HERE) == theirs(
        "Lease(bytes32 offer,address provider,bytes32 slot,address consumer,uint32 maxSeconds,uint40 acceptBy,"
        "bytes32 salt)",
        some, wallet, LEASE, wallet, seconds, until, some,
    )  # fmt: skip
    assert Binding(wallet, NodeId(some), until).digest(HERE) == theirs(
        "Binding(address wallet,bytes32 node,uint40 validUntil)", wallet, some, until
    )
    assert attach_digest(HERE, LEASE, some) == theirs("Attach(bytes32 channelId,bytes32 node)", LEASE, some)


def test_offers(offer):
    facts = keccak(msgspec.msgpack.encode((offer.title, offer.facts)))
    assert offer.digest() == theirs(
        "Offer(address provider,bytes32 node,bytes32 slot,address token,uint88 rate,uint88 openFee,uint32 maxSeconds,"
        "uint32 tickSeconds,uint32 arrearsSeconds,uint32 graceSeconds,uint64 sequence,uint40 expires,bytes32 facts)",
        offer.provider, offer.node, offer.slot, offer.asset.token, offer.rate, offer.open_fee, offer.max_seconds,
        offer.tick_s, offer.arrears_s, offer.grace_s, offer.sequence, offer.expires, facts,
        domain=offer.asset.domain,
    )  # fmt: skip
