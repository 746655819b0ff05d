"""The words of the handshake, the lease lane and the payment lane: they survive the wire, or are refused there."""

from __future__ import annotations

import contextlib
import random
import struct
from dataclasses import replace

import msgspec
import pytest

from jupyter_depin.errors import (
    ConfigError,
    DepinError,
    LeaseRefused,
    NoFreeSlot,
    RemoteProtocolError,
    TransactionFailed,
)
from jupyter_depin.protocol.frames import MAX_MESSAGE, MessageDecoder, encode_message
from jupyter_depin.protocol.market import Lease, Opening
from jupyter_depin.protocol.messages import (
    Answer,
    AskLease,
    AskOffers,
    Attached,
    AttachTunnel,
    End,
    Ended,
    Joined,
    KernelExited,
    Launch,
    Launched,
    LaunchFailed,
    LeaseGiven,
    LeaseOpened,
    OffersGiven,
    OpenLease,
    Paused,
    Refused,
    Request,
    ServedClaim,
    Settled,
    SettleFailed,
    Signal,
    SignedOffer,
    Spare,
    Standing,
    Unpaused,
    VoucherGiven,
    VoucherNotTaken,
    VoucherTaken,
    decode_fact,
    decode_order,
    decode_to_payee,
    decode_to_payer,
    encode,
)
from jupyter_depin.protocol.money import MAX_AMOUNT, Amount, Rate

LEASE = Lease(b"\1" * 32, b"\2" * 20, b"\3" * 32, b"\4" * 20, 3600, 2_000_000_000, b"\5" * 32)

ORDERS = [
    Launch(1, b"key", "hmac-sha256", {"LANG": "fr_FR.UTF-8", "é": "✓"}, ("python", "-m", "x"), "/home"),
    Launch(2, b"\0\xff", "hmac-sha256"),
    Signal(3, 2),
    Spare("on"),
    End("stopped_by_user"),
]
FACTS = [
    Launched(1),
    LaunchFailed(1, "KernelStartFailed", {"reason": "no"}),
    Joined(4711),
    KernelExited(1, -9, "Traceback …"),
    Paused("arrears"),
    Unpaused(),
    Standing(2, runs=True, paused=False),
    Ended("arrears", 10**18),
    Settled(Amount(MAX_AMOUNT), "0xab"),
    SettleFailed("ChainUnreachable", {"url": "x"}),
]
TO_PAYER = [
    ServedClaim(5),
    ServedClaim(6, final=True),
    VoucherTaken(Amount(7)),
    VoucherNotTaken(Amount(8), "no"),
]
TO_PAYEE = [VoucherGiven(Amount(MAX_AMOUNT), bytes(65)), VoucherGiven(Amount(0), b"", final=True)]


@pytest.mark.parametrize(
    ("words", "decode"),
    [(ORDERS, decode_order), (FACTS, decode_fact), (TO_PAYER, decode_to_payer), (TO_PAYEE, decode_to_payee)],
    ids=["orders", "facts", "to payer", "to payee"],
)
def test_words_survive_the_wire_and_no_other_lane_takes_them(words, decode):
    for word in words:
        assert decode(encode(word)) == word
        for other in (decode_order, decode_fact, decode_to_payer, decode_to_payee):
            if other is not decode:
                with pytest.raises(RemoteProtocolError):
                    other(encode(word))


def test_requests_and_answers_survive_the_wire(offer, terms):
    # Amounts have 88 bits: a rate of 20 tokens of 18 decimals is beyond 64.
    dear = replace(offer, rate=Rate(MAX_AMOUNT), open_fee=Amount(2**64))
    requests = [
        AskOffers(1),
        AskLease(b"\1" * 32, b"\2" * 20, 60, b"\3" * 32),
        OpenLease(
            replace(terms, rate=Rate(MAX_AMOUNT)), Opening(Amount(MAX_AMOUNT), 2_000_000_000, bytes(65))
        ),
        AttachTunnel(b"\1" * 32, bytes(65), memory=b"m"),
    ]
    answers = [
        OffersGiven((SignedOffer(dear, bytes(65)), SignedOffer(offer, b""))),
        OffersGiven(()),
        LeaseGiven(LEASE, bytes(65)),
        LeaseOpened("0x12"),
        Attached(),
        Refused("NoFreeSlot", {"slots": "1"}),
    ]
    for kinds, words in ((Request, requests), (Answer, answers)):
        decoder = MessageDecoder(kinds)
        assert decoder.feed(b"".join(map(encode_message, words))) == words


LIES = {
    "negative length": {"type": "ask-lease", "max_seconds": -1},
    "endless": {"type": "ask-lease", "max_seconds": 2**32},
    "short wallet": {"type": "ask-lease", "consumer": ""},
    "no dict": ["ask-lease"],
    "answer as request": {"type": "attached"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_could_not_be_hashed_is_refused_on_arrival(lie):
    good = msgspec.to_builtins(AskLease(b"\1" * 32, b"\2" * 20, 60, b"\3" * 32))
    body = msgspec.json.encode(good | lie if isinstance(lie, dict) else lie)
    with pytest.raises(RemoteProtocolError):
        MessageDecoder(Request).feed(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("terms", {"payer": "AAAA"}),
        ("terms", {"rate": -1}),
        ("terms", {"rate": 2**88}),
        ("terms", {"max_seconds": -1}),
        ("terms", {"grant_id": ""}),
        ("terms", {"lease_hash": "AAAA"}),
        ("opening", {"deposit": -1}),
        ("opening", {"open_by": 2**40}),
        ("opening", {"open_by": -1}),
    ],
    ids=str,
)
def test_terms_that_could_not_be_hashed_are_refused_on_arrival(terms, part, change):
    whole = msgspec.to_builtins(OpenLease(terms, Opening(Amount(1), 2, bytes(65))))
    whole[part] |= change
    body = msgspec.json.encode(whole)
    with pytest.raises(RemoteProtocolError):
        MessageDecoder(Request).feed(struct.pack(">I", len(body)) + body)


def test_a_giant_word_is_refused():
    with pytest.raises(RemoteProtocolError):
        MessageDecoder(Request).feed(struct.pack(">I", MAX_MESSAGE + 1))


def test_mutated_words_give_one_kind_of_error():
    rng = random.Random(7)
    for decode, words in ((decode_order, ORDERS), (decode_fact, FACTS), (decode_to_payee, TO_PAYEE)):
        for word in words:
            whole = encode(word)
            for _ in range(1500):
                data = bytearray(whole)
                data[rng.randrange(len(data))] = rng.randrange(256)
                data[rng.randrange(len(data))] = rng.randrange(256)
                with contextlib.suppress(RemoteProtocolError):
                    decode(bytes(data))


def test_refusals_come_back_as_the_errors_they_were():
    for error in (NoFreeSlot(slots=3), TransactionFailed(action="x", reason="y"), LeaseRefused(reason="z")):
        back = DepinError.from_wire(error.code, error.facts)
        assert type(back) is type(error)
        assert str(back) == str(error)


@pytest.mark.parametrize("facts", [{}, {"self": "x"}, {"slots": "{}", "{": "}"}, {"error": "x", "code": "y"}])
def test_no_facts_of_a_liar_break_the_sentence(facts):
    assert "busy" in str(DepinError.from_wire("NoFreeSlot", facts))


def test_a_fact_that_was_left_out_shows_no_braces():
    assert str(DepinError.from_wire("NoFreeSlot", {})).startswith("The provider is busy: all ? of its places")


def test_facts_are_bounded_and_printed_only():
    facts = {"reason": "\x1b[2Jgone\n\u202eback" + "x" * 1000} | {f"more {i}": "y" for i in range(100)}
    for code in ("LeaseRefused", "FromTheFuture"):
        error = DepinError.from_wire(code, facts)
        assert str(error).isprintable()
        assert len(str(error)) < 300
        assert len(error.facts) <= 8


@pytest.mark.parametrize(
    "code",
    ["DamagedKey", "JournalUnavailable", "NoNetwork", "PeerUnreachable", "RemoteProtocolError", "PortInUse"],
)
def test_a_peer_cannot_speak_of_this_machine(code):
    error = DepinError.from_wire(code, {"path": "~/.ssh/id", "reason": "x"})
    assert isinstance(error, LeaseRefused)
    assert "not a valid key" not in str(error)


def test_an_unknown_refusal_is_a_refusal():
    assert isinstance(DepinError.from_wire("FromTheFuture", {"why": "because"}), LeaseRefused)


def test_a_peer_cannot_make_us_blame_ourselves():
    assert isinstance(DepinError.from_wire("LocalProtocolError", {"detail": "x"}), LeaseRefused)


@pytest.mark.parametrize(
    "name", ["x" * 201, "0xabc\x1b[2J", "0xé"], ids=["long", "moves the cursor", "not ascii"]
)
@pytest.mark.parametrize("word", [LeaseOpened, Settled])
def test_a_transactions_id_is_short_and_printed(word, name):
    with pytest.raises(ConfigError):
        word(*([Amount(1)] if word is Settled else []), name)
