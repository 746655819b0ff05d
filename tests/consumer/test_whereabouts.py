"""Whom a renter asks how it is seen: those that it was told of, and nobody by default."""

from __future__ import annotations

import re

import pytest

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.whereabouts import MOST, observers
from jupyter_depin.errors import DamagedConfig
from jupyter_depin.protocol.identity import Address, NodeAddress, NodeId, Ticket, observer_text
from provider_kernel.config import ProviderConfig


def _node(number: int, *direct: str, relays: tuple[str, ...] = ()) -> NodeAddress:
    return NodeAddress(NodeId(bytes(31) + bytes([number])), relays, direct)


def _ticket(address: NodeAddress, *more: NodeAddress) -> str:
    return str(Ticket(address, Address(bytes(20)), more))


def test_nobody_is_asked_and_no_relay_used_by_default(tmp_path):
    config = ConsumerConfig.load(tmp_path)
    assert (config.relays, config.announce, observers(config)) == ((), (), ())
    lending = ProviderConfig.load(tmp_path)
    assert (lending.relays, lending.announce, lending.observing) == ((), (), ())


def test_the_settings_and_the_tickets_name_them_each_once(tmp_path):
    own, named, provider = _node(1, "192.0.2.1:1"), _node(2, "192.0.2.2:2"), _node(3, "192.0.2.3:3")
    hidden = _node(4, relays=("https://relay.example",))
    config = ConsumerConfig(
        home=tmp_path,
        observers=(observer_text(own),),
        tickets=(_ticket(provider, named, own), "depin1nonsense", _ticket(hidden, named)),
    )
    assert observers(config) == (own, named, provider)


def test_a_ticket_that_names_a_crowd_makes_nobody_ask_it(tmp_path):
    crowd = [_node(number, f"192.0.2.{number}:1") for number in range(1, 30)]
    config = ConsumerConfig(home=tmp_path, tickets=(_ticket(crowd[0], *crowd),))
    assert len(observers(config)) == MOST


@pytest.mark.parametrize(
    ("kind", "name"), [(ConsumerConfig, "config.toml"), (ProviderConfig, "provider.toml")]
)
def test_an_observer_that_is_none_is_named(tmp_path, kind, name):
    (tmp_path / name).write_text('observers = ["nobody"]\n')
    with pytest.raises(DamagedConfig, match="'nobody' is no observer"):
        kind.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"), [(ConsumerConfig, "config.toml"), (ProviderConfig, "provider.toml")]
)
@pytest.mark.parametrize(
    "text", ["my.host.example:7979", "192.0.2.1", "192.0.2.1:0", "::1:7979", "[fe80::1%a]:7979"]
)
def test_an_announced_place_that_nobody_can_dial_is_named(tmp_path, kind, name, text):
    """It would go into the ticket, and a ticket with it cannot be dialled at all."""
    (tmp_path / name).write_text(f'announce = ["192.0.2.7:7979", "{text}"]\n')
    with pytest.raises(
        DamagedConfig, match=f"in announce, '{re.escape(text)}' is no address of the form ip:port"
    ):
        kind.load(tmp_path)
    (tmp_path / name).write_text('announce = ["192.0.2.7:7979", "[2001:db8::7]:7979"]\n')
    assert len(kind.load(tmp_path).announce) == 2
