"""What is signed and what is owed, the same everywhere: by hand, by eth_account, in the contract, in the files.

The files are shared: TypeScript reads `owed.json`, the contract's own suite reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data

from jupyter_depin import keys
from jupyter_depin.chain.artifacts import artifact
from jupyter_depin.chain.deploy import deploy, fund
from jupyter_depin.chain.recovery import recover
from jupyter_depin.chain.rpc import Rpc
from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.eip712 import Domain, keccak256, struct_hash
from jupyter_depin.protocol.identity import parse_address
from jupyter_depin.protocol.market import Terms, close_digest, open_digest
from jupyter_depin.protocol.money import Amount, Rate, owed
from jupyter_depin.protocol.voucher import Voucher, split_signature

VECTORS = Path(__file__).parent.parent / "vectors"
EIP712 = json.loads((VECTORS / "eip712.json").read_text())
ROWS = EIP712["rows"]
DOMAIN = Domain(EIP712["domain"]["chainId"], parse_address(EIP712["domain"]["verifyingContract"]))


def values(row: dict[str, Any]) -> list[Any]:
    """A message's members in order: integers, 20 bytes or 32 bytes."""
    found: list[Any] = []
    for member in EIP712["types"][row["type"]].split(","):
        kind, name = member.split()
        text = row["message"][name]
        found.append(int(text) if kind.startswith("uint") else bytes.fromhex(text[2:]))
    return found


def by_hand(row: dict[str, Any], domain: Domain) -> bytes:
    """The digest as this project computes it."""
    found = values(row)
    if row["type"] == "Terms":
        return Terms(*found).channel_id(domain)
    if row["type"] == "Open":
        return open_digest(domain, *found)
    if row["type"] == "Voucher":
        return Voucher(*found).digest(domain)
    if row["type"] == "RequestClose":
        return close_digest(domain, *found)
    kind = keccak256(f"{row['type']}({EIP712['types'][row['type']]})".encode())
    return domain.digest(struct_hash(kind, *found))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["type"])
def test_by_hand_is_what_the_file_says(row):
    assert "0x" + by_hand(row, DOMAIN).hex() == row["digest"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["type"])
def test_eth_account_agrees_with_the_file(row):
    members = [
        dict(zip(("type", "name"), m.split(), strict=True)) for m in EIP712["types"][row["type"]].split(",")
    ]
    message = {m["name"]: value for m, value in zip(members, values(row), strict=True)}
    typed = encode_typed_data(EIP712["domain"], {row["type"]: members}, message)
    assert "0x" + _hash_eip191_message(typed).hex() == row["digest"]
    if "signature" in row:
        assert Account.recover_message(typed, signature=row["signature"]) == row["signer"]


@pytest.mark.parametrize("row", [row for row in ROWS if "signature" in row], ids=lambda row: row["type"])
def test_our_signatures_are_those_of_the_file_and_name_their_signer(row):
    wallet = Wallet(bytes.fromhex(EIP712["keys"][row["signer"]][2:]))
    digest = bytes.fromhex(row["digest"][2:])
    assert "0x" + wallet.sign(digest).hex() == row["signature"]
    assert recover(digest, wallet.sign(digest)) == parse_address(row["signer"])


SIGNED = [row for row in ROWS if "signature" in row]
_LOW = bytes.fromhex(SIGNED[0]["signature"][2:])
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_HIGH = (_ORDER - int.from_bytes(_LOW[32:64], "big")).to_bytes(32, "big")


@pytest.mark.parametrize(
    "signature",
    [
        *(bytes.fromhex(row["signature"][2:]) for row in SIGNED),
        b"".join(split_signature(_LOW)),
        b"",
        bytes(64),
        bytes(65),
        _LOW[:63],
        _LOW + b"\0",
        _LOW[:64] + bytes([0]),
        _LOW[:64] + bytes([29]),
        _LOW[:64] + bytes([55 - _LOW[64]]),
        _LOW[:32] + _HIGH + bytes([55 - _LOW[64]]),
        _LOW[:32] + bytes(32) + b"\x1b",
        bytes(32) + _LOW[32:],
        _ORDER.to_bytes(32, "big") + _LOW[32:],
        b"\xff" * 64 + b"\x1b",
    ],
    ids=lambda signature: signature.hex()[-20:],
)
def test_the_wire_and_the_ledger_take_the_same_signatures_for_the_same_signers(signature):
    digest = bytes.fromhex(SIGNED[0]["digest"][2:])
    try:
        expected = keys.recover(digest, signature)
    except RemoteProtocolError:
        expected = None
    assert recover(digest, signature) == expected


async def test_a_deployed_vault_computes_the_same_digests(devchain):
    owner = Wallet.generate()
    await fund(devchain.url, owner.address)
    book = await deploy(devchain.url, owner)
    vault, rpc = artifact("SessionVault"), Rpc([devchain.url], 10)
    views = {
        "Grant": "grantId",
        "Terms": "channelId",
        "Open": "openDigest",
        "Voucher": "voucherDigest",
        "RequestClose": "closeDigest",
    }
    for row in ROWS:
        found = values(row)
        arguments = [tuple(found)] if row["type"] in ("Grant", "Terms") else found
        data = vault.call(views[row["type"]], *arguments)
        answer = await rpc.data(
            "eth_call", {"to": "0x" + book.vault.hex(), "data": "0x" + data.hex()}, "latest"
        )
        assert answer == by_hand(row, book.asset.domain), row["type"]
    await rpc.close()


def test_owed_is_what_the_file_says():
    cases = json.loads((VECTORS / "owed.json").read_text())
    assert len(cases) > 80
    for case in cases:
        assert owed(Rate(int(case["rate"])), int(case["served_ns"])) == Amount(int(case["owed"])), case
