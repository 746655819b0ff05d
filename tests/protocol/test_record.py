"""What each party writes down of a lease."""

from __future__ import annotations

import dataclasses

from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.record import LeaseRecord


def test_both_sides_name_the_same_machine_and_only_the_payer_has_a_key(terms, offer):
    key = Wallet(b"\x01" * 32)
    address = NodeAddress(offer.node, (), ("192.0.2.1:1",))
    payer = LeaseRecord.of_payer(b"\x01" * 32, terms, offer, Amount(5), address, key, "kernel", 100, 7)
    payee = LeaseRecord.of_payee(b"\x01" * 32, terms, offer, Amount(5), NodeId(b"\x0f" * 32), 100, 7)
    for record in (payer, payee):
        assert (record.title, record.asset, record.node) == (offer.title, offer.asset, offer.node)
        assert "voucher_key" not in repr(record)
    assert Wallet(payer.voucher_key).address == key.address
    assert payee.voucher_key == b""
    assert payee.address.node == b"\x0f" * 32


def test_a_kernel_that_never_became_ready_started_when_it_was_agreed(terms, offer):
    agreed = LeaseRecord.of_payee(b"\x01" * 32, terms, offer, Amount(5), NodeId(bytes(32)), 100, 7)
    assert (agreed.started_ns, agreed.ended) == (100, False)
    ready = dataclasses.replace(agreed, ready_ns=200, reason=EndReason.ARREARS)
    assert (ready.started_ns, ready.ended) == (200, True)
