"""Keys: files that appear whole and private, signatures in one form only."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import pickle
import stat

import coincurve
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.errors import ConfigError, DamagedKey, RemoteProtocolError, VoucherRefused
from jupyter_depin.keys import Wallet, load_or_create_node_secret, recover, verify_voucher
from jupyter_depin.protocol.eip712 import DOMAIN_NAME, DOMAIN_VERSION, Domain
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import SignedVoucher, Voucher, split_signature

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DOMAIN = Domain(31337, b"\x0a" * 20)
WALLET = Wallet(b"\x01" * 32)
LEASE = b"\x05" * 32


def signed(amount: int = 123, *, domain: Domain = DOMAIN, wallet: Wallet = WALLET) -> SignedVoucher:
    voucher = Voucher(LEASE, Amount(amount))
    return SignedVoucher(voucher, wallet.sign(voucher.digest(domain)))


# -- files


def test_a_wallet_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "new" / "folder" / "wallet"
    first = Wallet.load_or_create(path)
    assert Wallet.load_or_create(path).address == first.address
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["wallet"]
    assert bytes.fromhex(path.read_text()) == first.secret


def test_programs_that_start_at_once_get_the_same_key(tmp_path):
    path = tmp_path / "wallet"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: Wallet.load_or_create(path).address, range(16)))
    assert len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_that_another_program_made_a_moment_ago_is_kept(tmp_path, monkeypatch):
    first = Wallet.load_or_create(tmp_path / "wallet")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    assert Wallet.load_or_create(tmp_path / "wallet").address == first.address


def test_a_node_secret_is_32_bytes_and_stays(tmp_path):
    first = load_or_create_node_secret(tmp_path / "node")
    assert len(first) == 32
    assert load_or_create_node_secret(tmp_path / "node") == first
    assert load_or_create_node_secret(tmp_path / "other") != first


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"00" * 31, b"0x" + b"11" * 32, b"zz" * 32, b"\xff" * 64, b"00" * 32, b"ff" * 32],
    ids=["empty", "newline", "short", "prefixed", "no hex", "no text", "zero", "above the order"],
)
def test_a_damaged_wallet_is_named_and_left_untouched(tmp_path, content):
    path = tmp_path / "wallet"
    path.write_bytes(content)
    with pytest.raises(DamagedKey) as caught:
        Wallet.load_or_create(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_what_cannot_be_a_key_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "dangling"):
        with pytest.raises(DamagedKey):
            load_or_create_node_secret(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        load_or_create_node_secret(tmp_path / "file" / "node")


def test_secrets_do_not_leak(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "wallet"
    path.write_bytes(b"ab" * 31 + b"a")
    with pytest.raises(DamagedKey) as damaged:
        Wallet.load_or_create(path)
    with pytest.raises(ConfigError) as refused:
        Wallet(b"\xff" * 32)
    shown = (
        repr(WALLET)
        + str(WALLET)
        + str(damaged.value)
        + str(refused.value)
        + repr(refused.value)
        + caplog.text
    )
    assert "01" * 16 not in shown
    assert "abab" not in shown
    assert "ffff" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(WALLET)


# -- signatures


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_what_a_wallet_signs_is_its_own(secret, digest):
    if not 0 < int.from_bytes(secret, "big") < ORDER:
        return
    wallet = Wallet(secret)
    signature = wallet.sign(digest)
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert 0 < int.from_bytes(signature[32:64], "big") <= ORDER // 2
    assert recover(digest, signature) == wallet.address
    assert recover(digest, b"".join(split_signature(signature))) == wallet.address
    assert wallet.sign(digest) == signature


def test_another_library_makes_the_same_signature():
    account = Account.from_key(WALLET.secret)
    assert checksummed(WALLET.address) == account.address
    message = encode_typed_data(
        {
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": DOMAIN.chain_id,
            "verifyingContract": "0x" + DOMAIN.vault.hex(),
        },
        {
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "maxClaimableAmount", "type": "uint128"},
            ]
        },
        {"channelId": LEASE, "maxClaimableAmount": 123},
    )
    assert account.sign_message(message).signature == signed(123).signature


def other_forms(signature: bytes) -> dict[str, bytes]:
    r, s, v = signature[:32], signature[32:64], signature[64]
    high = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
    order = ORDER.to_bytes(32, "big")
    return {
        "high s": r + high + bytes((55 - v,)),
        "high s, same v": r + high + bytes((v,)),
        "v 0 or 1": r + s + bytes((v - 27,)),
        "v 29": r + s + b"\x1d",
        "v with chain": r + s + bytes((v + 10,)),
        "zero": bytes(65),
        "zero with v": bytes(64) + b"\x1b",
        "zero s": r + bytes(32) + bytes((v,)),
        "zero r": bytes(32) + s + bytes((v,)),
        "r at the order": order + s + bytes((v,)),
        "short": signature[:63],
        "long": signature + b"\0",
        "empty": b"",
        "compact zero": bytes(64),
        "no point": b"\x00" * 31 + b"\x05" + s + bytes((v,)),
    }


@pytest.mark.parametrize("form", other_forms(bytes(32) + bytes(32) + b"\x1b"))
def test_a_signature_has_one_form(form):
    good = signed()
    bad = SignedVoucher(good.voucher, other_forms(good.signature)[form])
    with pytest.raises(RemoteProtocolError):
        recover(good.voucher.digest(DOMAIN), bad.signature)
    with pytest.raises(VoucherRefused):
        verify_voucher(bad, WALLET.address, DOMAIN)


def test_the_rare_recovery_numbers_that_no_contract_takes_are_refused():
    """For tiny r a signature may carry v 29 or 30 and be somebody's; the EVM's ecrecover knows only 27 and 28."""
    digest, s = b"\x11" * 32, (1).to_bytes(32, "big")
    rare = [r.to_bytes(32, "big") + s for r in range(1, 20)]
    recoverable = []
    for rs in rare:
        with contextlib.suppress(ValueError):
            coincurve.PublicKey.from_signature_and_message(rs + b"\x02", digest, hasher=None)
            recoverable.append(rs)
    assert recoverable
    for rs in recoverable:
        with pytest.raises(RemoteProtocolError):
            recover(digest, rs + b"\x1d")


@given(st.binary(max_size=70))
def test_random_bytes_are_refused_or_somebody_elses(signature):
    with pytest.raises(VoucherRefused):
        verify_voucher(SignedVoucher(signed().voucher, signature), WALLET.address, DOMAIN)


# -- vouchers


def test_a_true_voucher_is_verified():
    good = signed()
    verified = verify_voucher(good, WALLET.address, DOMAIN)
    assert (verified.voucher, verified.signature) == (good.voucher, good.signature)


def test_a_voucher_holds_for_one_key_one_chain_one_vault_one_lease_one_amount():
    good = signed()
    changed = [
        (good, Wallet(b"\x02" * 32).address, DOMAIN),
        (good, WALLET.address, Domain(31338, DOMAIN.vault)),
        (good, WALLET.address, Domain(31337, b"\x0b" * 20)),
        (SignedVoucher(Voucher(b"\x06" * 32, Amount(123)), good.signature), WALLET.address, DOMAIN),
        (SignedVoucher(Voucher(LEASE, Amount(124)), good.signature), WALLET.address, DOMAIN),
    ]
    for voucher, signer, domain in changed:
        with pytest.raises(VoucherRefused):
            verify_voucher(voucher, signer, domain)


@pytest.mark.parametrize(
    "voucher",
    [
        Voucher(b"\x05" * 31, Amount(1)),
        Voucher(LEASE, Amount(-1)),
        Voucher(LEASE, Amount(0)),
        Voucher(LEASE, Amount(2**88)),
        Voucher(LEASE, Amount(2**300)),
    ],
)
def test_what_is_no_voucher_is_refused(voucher):
    with pytest.raises(VoucherRefused):
        verify_voucher(SignedVoucher(voucher, bytes(65)), WALLET.address, DOMAIN)
