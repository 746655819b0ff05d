"""Vouchers and the forms of a signature."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.protocol.eip712 import Domain
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import Voucher, attach_digest, split_signature

HERE = Domain(1, b"\x01" * 20)
LEASE = b"\x05" * 32
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def test_a_voucher_is_for_one_lease_one_amount_one_chain_one_vault():
    digests = {
        Voucher(LEASE, Amount(5)).digest(HERE),
        Voucher(b"\x06" * 32, Amount(5)).digest(HERE),
        Voucher(LEASE, Amount(6)).digest(HERE),
        Voucher(LEASE, Amount(5)).digest(Domain(2, b"\x01" * 20)),
        Voucher(LEASE, Amount(5)).digest(Domain(1, b"\x02" * 20)),
        attach_digest(HERE, LEASE, Amount(5).to_bytes(32, "big")),
    }
    assert len(digests) == 6


@given(st.binary(min_size=32, max_size=32), st.integers(1, HALF_ORDER), st.sampled_from([27, 28]))
def test_the_compact_form_keeps_every_bit(r, s, v):
    short = split_signature(r + s.to_bytes(32, "big") + bytes((v,)))
    number = int.from_bytes(short[1], "big")
    assert (short[0], number & ((1 << 255) - 1), 27 + (number >> 255)) == (r, s, v)
    assert split_signature(b"".join(short)) == short
