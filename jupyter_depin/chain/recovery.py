"""Who signed a digest, and signatures in the form that the vault reads. Shared by both ledgers.

The rules are those of the contracts: 65 bytes r ‖ s ‖ v or 64 compact ones (EIP-2098), and only the lower of the two
possible s, so that nobody can turn one signature into a second one. `keys.recover` has the same rule for what comes from
the wire, and raises; `chain` and `keys` may not import each other, so that one test holds both to the same vectors.
"""

from __future__ import annotations

import coincurve

from jupyter_depin.protocol.eip712 import keccak256
from jupyter_depin.protocol.identity import Address
from jupyter_depin.protocol.voucher import split_signature

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_NO_SIGNATURE = (bytes(32), bytes(32))


def compact(signature: bytes) -> tuple[bytes, bytes]:
    """EIP-2098 (r, vs) for the vault; zeros, which no key ever signed, for bytes that are no signature."""
    if len(signature) != 64 and not (len(signature) == 65 and signature[64] in (27, 28)):
        return _NO_SIGNATURE
    if len(signature) == 65 and signature[32] >> 7:
        return _NO_SIGNATURE  # a high s would run into the bit of v
    return split_signature(signature)


def recover(digest: bytes, signature: bytes) -> Address | None:
    """The address that signed a 32-byte digest, or None if these bytes are no signature."""
    r, vs = compact(signature)
    s = int.from_bytes(vs, "big") & (2**255 - 1)
    if s > _HALF_ORDER:
        return None
    parity = vs[0] >> 7
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            r + s.to_bytes(32, "big") + bytes([parity]), digest, hasher=None
        )
    except ValueError:
        return None
    except Exception as error:  # coincurve raises a bare Exception for an r or s of zero
        if type(error) is not Exception:
            raise
        return None
    return Address(keccak256(key.format(compressed=False)[1:])[12:])
