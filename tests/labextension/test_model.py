"""What the browser believes when requests and events cross."""

from __future__ import annotations


def test_a_reply_that_an_event_overtook_does_not_turn_the_meter_back(front_end, wire):
    old, new, newest = wire(spent="1"), wire(spent="2"), wire(spent="3")
    play = [
        ["ask", None],
        ["reply", [old]],
        ["ask", None],
        ["event", new],
        ["reply", [old]],
        ["event", newest],
    ]
    assert front_end("play", play) == [[], ["1"], ["1"], ["2"], ["2"], ["3"]]


def test_a_rental_that_the_server_no_longer_knows_goes(front_end, wire):
    assert front_end("play", [["event", wire(spent="1")], ["ask", None], ["reply", []]]) == [["1"], ["1"], []]


def test_an_ended_rental_is_no_longer_live(front_end, wire):
    assert front_end("play", [["event", wire()], ["event", wire(state="ended")]]) == [["8300"], []]
