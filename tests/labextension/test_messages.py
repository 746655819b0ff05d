"""Each state is told truthfully, by a shape and a word; each reason has a sentence."""

from __future__ import annotations

import pytest

from jupyter_depin.protocol.reason import EndReason


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"state": "starting", "spent": "0"}, "◔ · CPU demo · starting · not charged yet"),
        ({"state": "paused"}, "‖ · CPU demo · paused · not charged · 0.0083 DEMO"),
        (
            {"state": "reconnecting", "state_age_s": 12.0},
            "◌ · CPU demo · reconnecting 12 s · still running · 0.0083 DEMO",
        ),
        ({"state": "ending"}, "◐ · CPU demo · stopping and settling · 0.0083 DEMO"),
        (
            {"state": "ended", "reason": {"code": "cap_reached", "facts": {}}, "receipt": {"paid": "9000"}},
            "■ · CPU demo · ended · limit reached · paid 0.009 DEMO",
        ),
        (
            {"state": "ended", "reason": {"code": "unreachable", "facts": {}}},
            "■ · CPU demo · ended · provider unreachable · 0.0083 DEMO, not settled yet",
        ),
    ],
    ids=lambda value: value["state"] if isinstance(value, dict) else "",
)
def test_the_bar_tells_the_state(front_end, wire, changes, shown):
    assert front_end("bar", [{"wire": wire(**changes), "at": 0, "now": 0}]) == [shown]


def test_the_way_of_the_data_is_told(front_end, wire):
    ways = [
        wire(relayed=False, via="198.51.100.7:7979", rtt_ms=12.4),
        wire(relayed=True, via="https://relay.example", rtt_ms=80),
        wire(),
    ]
    assert front_end("link", ways) == ["direct, 12 ms", "through a relay, 80 ms", "none now"]


def test_what_is_spared_is_told_while_it_is_and_afterwards(front_end, wire):
    rows = [
        wire(bytes_up=10, bytes_down=90),
        wire(bytes_up=10, bytes_down=90, saving=True),
        wire(bytes_up=10, bytes_down=90, saving=True, spared=900),
        wire(bytes_up=10, bytes_down=90, spared=100),
    ]
    assert front_end("saving", rows) == ["off", "on", "on, 90 % spared", "off, 50 % spared"]


def test_a_screen_reader_gets_full_sentences(front_end, wire):
    running = {"wire": wire(), "at": 0, "now": 0}
    assert front_end("label", [running]) == [
        "Rented kernel: “CPU demo” is running. It costs 0.36 DEMO/h, has run for 1 minute 23 seconds "
        "and cost 0.0083 DEMO so far. Press for details."
    ]


def test_every_reason_for_an_end_has_its_own_sentence(front_end, wire):
    codes = [str(reason) for reason in EndReason]
    sentences = front_end("reasons", codes)
    assert [sentence for code, sentence in zip(codes, sentences, strict=True) if code in sentence] == []
    ended = [
        {"wire": wire(state="ended", reason={"code": code, "facts": {}}), "at": 0, "now": 0} for code in codes
    ]
    assert [bar for bar in front_end("bar", ended) if "problem" in bar] == []
