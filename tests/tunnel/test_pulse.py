"""When an end asks, whatever its peer and its clock do.

What must hold, in words:
  1. A connection is given up only after a question that stayed unanswered for several times the patience.
  2. Once something is owed, or something went over the lanes, it is asked within two seconds of silence.
  3. The time of an answer that an outage held up is not taken for the round trip.
  4. What is kept does not grow.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.tunnel.pulse import GIVE_UP, PATIENCE_NS, Finding, Pulse

S = 10**9
MS = 10**6
IDLE = 3 * S


def ring(pulse: Pulse, **options: bool) -> tuple[Finding | None, int]:
    """Let it ring on time; what it found, and when."""
    now = pulse.at
    assert now is not None
    found = pulse.ring(now, **{"owed": False, "moved": 0, **options})
    if found in (Finding.ASK, Finding.DOUBTFUL):
        pulse.question(now)
    return found, now


@given(st.lists(st.tuples(st.integers(0, 5 * S), st.booleans(), st.booleans()), max_size=60))
def test_only_a_question_that_stayed_open_gives_a_connection_up(steps):
    pulse = Pulse(IDLE)
    pulse.begin(0)
    heard = now = 0
    for pause, hears, owed in steps:
        until = now + pause
        while pulse.at is not None and pulse.at <= until:
            found, now = ring(pulse, owed=owed)
            if found is Finding.SILENT:
                assert now - heard >= GIVE_UP * PATIENCE_NS
                return
            assert now - heard < IDLE + (GIVE_UP + 1) * PATIENCE_NS
        now = until
        if hears:
            heard = now
            assert pulse.heard(now) in (True, False)
            assert not pulse.doubtful
        elif owed:
            pulse.owe(now)
            assert pulse.at is not None
            assert pulse.at <= now + S


@given(st.integers(0, 20 * S), st.booleans())
def test_whoever_is_at_work_is_asked_within_two_seconds_of_silence(quiet, ours):
    pulse = Pulse(IDLE)
    pulse.begin(0)
    pulse.heard(0)
    moved = now = 0
    while now < quiet + 10 * S:
        found, now = ring(pulse, moved=moved)
        pulse.heard(now + MS)
        moved += 1
        if ours:
            pulse.owe(now + 2 * MS)
    last = now + MS
    while found is None or now <= last:
        found, now = ring(pulse, moved=moved, owed=ours)
    assert now - last <= (2 * S if not ours else S)


def test_the_time_of_an_outage_is_no_round_trip():
    pulse = Pulse(IDLE)
    pulse.begin(0)
    pulse.heard(5)
    asked: dict[int, int] = {}
    while not pulse.doubtful:
        _, now = ring(pulse)
        asked[pulse.nonce] = now
    assert pulse.heard(now + 7)
    for nonce in asked:
        pulse.answered(nonce, now + 7)
    assert pulse.rtt_ns == 7


def test_a_peer_that_talks_and_never_answers_fills_no_memory():
    pulse = Pulse(IDLE)
    pulse.begin(0)
    for _ in range(1000):
        _, now = ring(pulse)
        pulse.heard(now + 1)
    assert len(pulse._asked) < 100
