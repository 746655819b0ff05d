"""A rental's states: what may follow what."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.errors import LocalProtocolError
from jupyter_depin.lifecycle import TRANSITIONS, EndReason, Lifecycle, State, StateChanged

ENDS = (State.ENDING, State.ENDED)


def at(state: State) -> Lifecycle:
    return Lifecycle(0, state)


def test_a_rental_with_a_cut_and_a_pause():
    life = Lifecycle(10)
    steps = [State.RUNNING, State.PAUSED, State.RECONNECTING, State.PAUSED, State.RUNNING, State.RECONNECTING]
    for now, state in enumerate(steps, 11):
        life.to(state, None, now)
    life.to(State.ENDING, EndReason.UNREACHABLE, 20)
    life.to(State.ENDED, None, 21)
    seen = []
    while (event := life.next_event()) is not None:
        seen.append(event)
    assert [event.after for event in seen] == [*steps, State.ENDING, State.ENDED]
    assert seen[0] == StateChanged(State.STARTING, State.RUNNING, None, 11)
    assert seen[-1] == StateChanged(State.ENDING, State.ENDED, EndReason.UNREACHABLE, 21)
    assert (life.state, life.reason, life.since) == (State.ENDED, EndReason.UNREACHABLE, 21)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_only_what_the_table_allows(before, after):
    life = at(before)
    reason = EndReason.STOPPED_BY_USER if after in ENDS else None
    assert life.may(after) == (after in TRANSITIONS[before])
    if life.may(after):
        life.to(after, reason, 1)
        assert life.state is after
    else:
        with pytest.raises(LocalProtocolError):
            life.to(after, reason, 1)
        assert (life.state, life.next_event()) == (before, None)


def test_the_end_is_final_and_every_state_leads_to_it():
    assert TRANSITIONS[State.ENDED] == frozenset()
    for state in set(State) - {State.ENDED}:
        assert State.ENDED in TRANSITIONS[state]


def test_the_first_reason_stays():
    life = at(State.PAUSED)
    life.to(State.ENDING, EndReason.STOPPED_BY_USER, 1)
    life.to(State.ENDED, EndReason.ARREARS, 2)
    assert life.reason is EndReason.STOPPED_BY_USER


def test_an_end_needs_a_reason_and_nothing_else_has_one():
    with pytest.raises(LocalProtocolError):
        at(State.RUNNING).to(State.ENDED, None, 1)
    with pytest.raises(LocalProtocolError):
        at(State.RUNNING).to(State.PAUSED, EndReason.ARREARS, 1)


@given(st.lists(st.tuples(st.sampled_from(State), st.none() | st.sampled_from(EndReason))))
def test_whatever_is_tried_an_ended_rental_has_a_reason(tries):
    life = Lifecycle(0)
    for now, (state, reason) in enumerate(tries):
        try:
            life.to(state, reason, now)
        except LocalProtocolError:
            continue
    assert (life.state in ENDS) == (life.reason is not None)


def test_the_words_on_the_wire_stay():
    assert [str(state) for state in State] == [
        "starting",
        "running",
        "paused",
        "reconnecting",
        "ending",
        "ended",
    ]
    assert {str(reason) for reason in EndReason} == {
        "stopped_by_user", "kernel_shutdown", "provider_stopped", "arrears", "cap_reached", "lease_over",
        "unreachable", "start_failed", "provider_lost_kernel",
    }  # fmt: skip
