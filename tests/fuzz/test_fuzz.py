"""A short run of the fuzzer; `python -m tests.fuzz` is the long one. Each kind of thing it looks for is also seen."""

from __future__ import annotations

import random

import pytest

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol import frames, messages
from tests.fuzz.doors import Door, plain_doors
from tests.fuzz.run import Outcome, knock, plain
from tests.fuzz.words import Speaker, unions, words

ROOM = 48 << 20


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_a_peer_says_raises_anything_but_its_own_blame(seed):
    outcome = plain(10_000, seed)
    assert outcome.wrong == {}
    assert outcome.grown < ROOM
    # A door where all is refused, or nothing, was not tried.
    for name, knocks in outcome.knocks.items():
        if name != "error from the other side":
            assert knocks // 50 < outcome.refused[name] < knocks * 49 // 50, name


def test_every_word_is_found():
    found = unions()
    for name in ("Control", "Request", "Answer", "LeaseOrder", "LeaseFact", "ToPayer", "VoucherGiven"):
        assert found[name] is getattr(frames, name, None) or found[name] is getattr(messages, name)
    assert {messages.Launch, messages.Settled, frames.Ping} <= set(words())
    names = {door.name for door in plain_doors(Speaker(random.Random(0)))}
    assert {"stream of Control", "stream of Request", "decode_order", "IOPUB stream", "ticket"} <= names


def test_what_should_not_be_raised_is_told_with_its_place():
    class Trap(Door):
        name = "trap"

        def knock(self):
            raise self.speaker.rng.choice((RemoteProtocolError(detail="a lie"), KeyError("lane")))

    outcome = Outcome()
    trap = Trap(Speaker(random.Random(0)))
    for _ in range(50):
        knock(trap, outcome)
    assert outcome.knocks["trap"] == 50
    assert 0 < outcome.refused["trap"] < 50
    ((what, where),) = outcome.wrong.items()
    assert what == "trap: KeyError: 'lane'"
    assert "def knock" in where or "test_fuzz" in where
