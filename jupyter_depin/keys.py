"""Keys: where they live, what they sign, how signatures are checked. The one door to coincurve, but for the chain's own check.

A key file is one line of 64 hex digits, readable by its owner only. It appears whole or not at all, and is never
written again: two programs that start at once get the same key, for a second wallet in the same file would be a lost
one. Secrets never appear in `repr`, errors or logs.

Rejected: eth_account for signing (250 µs a voucher instead of 40, and a heavy import for the provisioner). Rejected:
encrypted key files. The key must open without anybody typing; a wallet that holds more than pocket money belongs
elsewhere and signs a grant.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import coincurve

from jupyter_depin.errors import ConfigError, DamagedKey, RemoteProtocolError, VoucherRefused
from jupyter_depin.protocol.eip712 import Domain, keccak256
from jupyter_depin.protocol.identity import Address
from jupyter_depin.protocol.money import MAX_AMOUNT
from jupyter_depin.protocol.voucher import SignedVoucher, VerifiedVoucher

_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
"""The order of secp256k1: signatures and keys are numbers below it, and s is low up to half of it."""


class Wallet:
    """A secp256k1 key that signs for its address. The real `Signer` of `protocol.identity`."""

    __slots__ = ("_address", "_key")

    def __init__(self, secret: bytes) -> None:
        """Take a 32-byte secret, as `secret` gave it. Raises `ConfigError` if it is no key."""
        try:
            if len(secret) != 32:
                raise ValueError
            self._key = coincurve.PrivateKey(secret)
        except ValueError:
            # `from None`: the library's message is not ours to vouch for, and the secret is near.
            raise ConfigError(detail="these bytes are not a secp256k1 key") from None
        self._address = _address_of(self._key.public_key)

    @classmethod
    def generate(cls) -> Wallet:
        """A new random wallet, e.g. the voucher key of one rental."""
        return cls(coincurve.PrivateKey().secret)

    @classmethod
    def load_or_create(cls, path: Path) -> Wallet:
        """The wallet in the file, made now if there is none. Raises `DamagedKey`, `ConfigError` if it can't be made."""
        secret = _load_or_create(path, lambda: coincurve.PrivateKey().secret)
        try:
            return cls(secret)
        except ConfigError:
            raise DamagedKey(path=path, reason="the number is not a secp256k1 key") from None

    @property
    def address(self) -> Address:
        """The wallet's address."""
        return self._address

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes. Only the journal asks, to settle a rental after a restart."""
        return self._key.secret

    def sign(self, digest: bytes) -> bytes:
        """65 bytes r ‖ s ‖ v (v is 27 or 28, s low) over a 32-byte digest. The same digest gives the same bytes."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    def __repr__(self) -> str:
        return f"Wallet(0x{self._address.hex()})"


def load_or_create_node_secret(path: Path) -> bytes:
    """The 32-byte ed25519 seed of this machine's node, made now if the file is missing. Raises as `Wallet`'s does."""
    return _load_or_create(path, lambda: secrets.token_bytes(32))


def recover(digest: bytes, signature: bytes) -> Address:
    """Who signed the digest. Called by whoever takes something signed from the other side.

    Takes 65 bytes (r ‖ s ‖ v, v 27 or 28) or EIP-2098's 64. Raises `RemoteProtocolError` for every other form, zeros and
    high s included: each signature has one form, so that nobody can send a second one for the same statement.
    """
    if len(signature) == 65:
        parity = signature[64] - 27
        rs = signature[:64]
    elif len(signature) == 64:
        parity = signature[32] >> 7
        rs = signature[:32] + bytes((signature[32] & 0x7F,)) + signature[33:]
    else:
        raise RemoteProtocolError(detail=f"a signature of {len(signature)} bytes")
    r, s = int.from_bytes(rs[:32], "big"), int.from_bytes(rs[32:], "big")
    if parity not in (0, 1) or not 0 < r < _ORDER or not 0 < s <= _ORDER // 2:
        raise RemoteProtocolError(detail="a signature in a forbidden form")
    try:
        key = coincurve.PublicKey.from_signature_and_message(rs + bytes((parity,)), digest, hasher=None)
    except ValueError as error:
        raise RemoteProtocolError(detail="a signature of nobody") from error
    return _address_of(key)


def verify_voucher(signed: SignedVoucher, signer: Address, domain: Domain) -> VerifiedVoucher:
    """Check a voucher that came from the wire against the lease's `terms.signer` and asset domain.

    Called by the provider's driver before the meter sees it. Raises `VoucherRefused`. That it is for the right lease,
    rises and can be collected is the meter's affair.
    """
    voucher = signed.voucher
    if len(voucher.channel_id) != 32 or not 0 < voucher.amount <= MAX_AMOUNT:
        raise VoucherRefused(reason="it is not a voucher")
    try:
        found = recover(voucher.digest(domain), signed.signature)
    except RemoteProtocolError as error:
        raise VoucherRefused(reason="its signature is malformed") from error
    if found != signer:
        raise VoucherRefused(reason="it is signed by another key")
    return VerifiedVoucher(voucher, signed.signature)


def _address_of(key: coincurve.PublicKey) -> Address:
    return Address(keccak256(key.format(compressed=False)[1:])[12:])


def _load_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    if not os.path.lexists(path):
        _write_once(path, make().hex().encode() + b"\n")
    try:
        text = path.read_bytes().strip()
    except OSError as error:
        raise DamagedKey(path=path, reason=error.strerror) from error
    if len(text) != 64:
        raise DamagedKey(path=path, reason=f"it holds {len(text)} characters, not 64")
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise DamagedKey(path=path, reason="it holds something else than hex digits") from None


def _write_once(path: Path, content: bytes) -> None:
    """Put a whole, private, durable file in place, unless another program was faster."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes files that only their owner can read. A hard link, unlike a rename, never replaces a key.
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            detail=f"the key file {path} cannot be made ({error.strerror}); check who may write in its folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable. Windows does that by itself and cannot open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
