"""Offers, leases, terms: whoever changes one word has another one."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from jupyter_depin.errors import ConfigError
from jupyter_depin.protocol.market import Lease, Offer, Terms


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bytes):
        return bytes(byte ^ 1 for byte in value)
    if isinstance(value, int):
        return value + 1
    return f"{value}!"


def test_every_word_of_an_offer_is_signed(offer):
    digests = {offer.digest()}
    names = [field.name for field in dataclasses.fields(offer) if field.name not in ("asset", "facts")]
    for name in names:
        digests.add(dataclasses.replace(offer, **{name: other(getattr(offer, name))}).digest())
    for facts in ((), (("gpu", "two"),), (("gpu", "one"), ("gpu", "one"))):
        digests.add(dataclasses.replace(offer, facts=facts).digest())
    for name in ("chain_id", "vault", "token"):
        asset = dataclasses.replace(offer.asset, **{name: other(getattr(offer.asset, name))})
        digests.add(dataclasses.replace(offer, asset=asset).digest())
    assert len(digests) == 1 + len(names) + 3 + 3


def test_every_word_of_the_terms_makes_another_lease(terms, asset):
    names = [field.name for field in dataclasses.fields(terms)]
    changed = [dataclasses.replace(terms, **{name: other(getattr(terms, name))}) for name in names]
    assert len({each.channel_id(asset.domain) for each in [terms, *changed]}) == 1 + len(names)


def test_every_word_of_a_lease_is_signed(asset):
    lease = Lease(b"\x01" * 32, b"\x02" * 20, b"\x03" * 32, b"\x04" * 20, 60, 2_000_000_000, b"\x05" * 32)
    names = [field.name for field in dataclasses.fields(lease)]
    changed = [dataclasses.replace(lease, **{name: other(getattr(lease, name))}) for name in names]
    assert len({each.digest(asset.domain) for each in [lease, *changed]}) == 1 + len(names)


@pytest.mark.parametrize(
    "change",
    [
        {"tick_s": 0},
        {"tick_s": 16},
        {"grace_s": 0},
        {"max_seconds": 0},
        {"max_seconds": 2**32},
        {"rate": -1},
        {"rate": 2**88},
        {"open_fee": -1},
        {"slot": bytes(31)},
    ],
    ids=str,
)
def test_an_offer_that_makes_no_sense_is_refused(offer, change):
    with pytest.raises(ConfigError):
        dataclasses.replace(offer, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"title": "A card\x1b[2J"},
        {"title": "A\ncard"},
        {"title": "A \u202edrac"},
        {"title": "x" * 201},
        {"facts": (("gpu\r", "one"),)},
        {"facts": (("gpu", "o\x00ne"),)},
        {"facts": (("gpu", "x" * 201),)},
        {"facts": (("gpu", "one"),) * 33},
    ],
    ids=ascii,
)
def test_an_offer_holds_only_what_can_be_printed_on_a_line(offer, change):
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(offer, **change)
    assert str(refused.value).isprintable()
    assert dataclasses.replace(offer, title="Ein “großer” Rechner — 24 GB, 日本 🚀" + "x" * 100)


def test_a_symbol_is_read_by_people_too(asset):
    with pytest.raises(ConfigError):
        dataclasses.replace(asset, symbol="\x1b]0;")


def test_values_are_the_same_after_the_wire(offer, terms):
    for value, kind in ((offer, Offer), (terms, Terms)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value
        assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value
