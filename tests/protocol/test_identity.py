"""Nodes, wallets, tickets: checked at the door, the same after a round trip."""

from __future__ import annotations

import base64

import msgspec
import pytest
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.errors import BadTicket, ConfigError
from jupyter_depin.protocol.eip712 import Domain, keccak256
from jupyter_depin.protocol.identity import (
    Address,
    Binding,
    NodeAddress,
    NodeId,
    Ticket,
    address,
    checksummed,
    node_id,
    observer_text,
    parse_address,
    parse_observer,
)

ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
NODES = st.binary(min_size=32, max_size=32).map(NodeId)
TEXTS = st.lists(st.text(), max_size=4).map(tuple)
PLACES = st.builds(NodeAddress, NODES, TEXTS, TEXTS)
TICKETS = st.builds(Ticket, PLACES, ADDRESSES, st.lists(PLACES, max_size=2).map(tuple))


@pytest.mark.parametrize("length", [0, 19, 21, 31, 33])
def test_a_name_of_the_wrong_length_is_refused(length):
    for check in (node_id, address):
        with pytest.raises(ConfigError):
            check(bytes(length))


@given(ADDRESSES)
def test_the_text_of_an_address_is_everybodys(value):
    text = checksummed(value)
    assert text == to_checksum_address(value)
    for form in (text, text.lower(), "0x" + text[2:].upper(), text[2:]):
        assert parse_address(form) == value


def test_a_mistyped_address_is_noticed():
    good = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    assert checksummed(parse_address(good)) == good
    for bad in (good.replace("F", "f", 1), good[:-1], good + "0", "0x" + "zz" * 20, "", "0x"):
        with pytest.raises(ConfigError):
            parse_address(bad)


@given(TICKETS)
def test_a_ticket_survives_being_copied(ticket):
    text = str(ticket)
    assert "\n" not in text
    assert Ticket.parse(f"  {text}\n") == ticket


@given(st.text(max_size=40))
def test_any_other_text_is_a_bad_ticket(text):
    for attempt in (text, "depin1" + text):
        with pytest.raises(BadTicket):
            Ticket.parse(attempt)


@given(TICKETS, st.data())
def test_half_a_ticket_is_a_bad_ticket(ticket, data):
    text = str(ticket)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(BadTicket):
        Ticket.parse(text[:cut])


@given(TICKETS, st.data())
def test_a_mistyped_ticket_is_a_bad_ticket(ticket, data):
    text = str(ticket)
    at = data.draw(st.integers(len("depin1"), len(text) - 1))
    sign = data.draw(st.sampled_from("AZaz09-_"))
    mistyped = text[:at] + sign + text[at + 1 :]
    try:
        # The last sign has bits that mean nothing.
        assert Ticket.parse(mistyped) == ticket
    except BadTicket:
        assert mistyped != text


@pytest.mark.parametrize(
    "row",
    [
        (bytes(20), [(bytes(31), (), ())]),
        (bytes(19), [(bytes(32), (), ())]),
        (bytes(20), [(bytes(32), ())]),
        (bytes(20), []),
        {},
        "x" * 40,
    ],
)
def test_a_ticket_of_the_wrong_shape_is_refused(row):
    raw = msgspec.msgpack.encode(row)
    with pytest.raises(BadTicket):
        Ticket.parse("depin1" + base64.urlsafe_b64encode(raw + keccak256(raw)[:4]).decode())


@pytest.mark.parametrize("kind", ["relays", "direct", "observers"])
def test_a_ticket_that_sends_its_reader_everywhere_is_refused(kind):
    many = tuple(f"http://{number}.example" for number in range(33))
    places = {
        "relays": NodeAddress(NodeId(bytes(32)), many),
        "direct": NodeAddress(NodeId(bytes(32)), (), many),
        "observers": NodeAddress(NodeId(bytes(32))),
    }
    observers = (places[kind],) * (33 if kind == "observers" else 0)
    with pytest.raises(BadTicket, match="more than"):
        Ticket.parse(str(Ticket(places[kind], Address(bytes(20)), observers)))


@given(NODES, st.lists(st.ip_addresses(), min_size=1, max_size=3), st.integers(1, 65535))
def test_an_observer_survives_being_copied(node, ips, port):
    places = tuple(f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}" for ip in ips)
    observer = NodeAddress(node, (), places)
    assert parse_observer(f" {observer_text(observer)} ") == observer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "00",
        "00@127.0.0.1:1",
        f"{'0' * 64}@",
        f"{'0' * 64}@host:1",
        f"{'0' * 64}@127.0.0.1:0",
        "☃@127.0.0.1:1",
    ],
)
def test_any_other_text_is_no_observer(text):
    with pytest.raises(ConfigError, match="provider-kernel observe"):
        parse_observer(text)


def test_a_binding_binds_each_of_its_parts():
    wallet, node = Address(b"\x01" * 20), NodeId(b"\x02" * 32)
    here = Domain(1, b"\x03" * 20)
    digests = {
        Binding(wallet, node, 5).digest(here),
        Binding(Address(b"\x09" * 20), node, 5).digest(here),
        Binding(wallet, NodeId(b"\x09" * 32), 5).digest(here),
        Binding(wallet, node, 6).digest(here),
        Binding(wallet, node, 5).digest(Domain(2, b"\x03" * 20)),
        Binding(wallet, node, 5).digest(Domain(1, b"\x04" * 20)),
    }
    assert len(digests) == 6
