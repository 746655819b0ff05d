"""The tunnel as a play: what happens to one end, what it sends, what it says."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_depin.errors import LocalProtocolError, MessageTooBig, RemoteProtocolError
from jupyter_depin.protocol.frames import MAX_PARTS, Ack, Data, Frame, Lane, Ping, Pong, Resume, longest
from jupyter_depin.tunnel.events import (
    Closed,
    Doubtful,
    Heard,
    LaneDrained,
    LaneFull,
    Message,
    Opened,
    Silent,
)
from jupyter_depin.tunnel.machine import ACK_BYTES, ACK_DELAY_NS, AFTER_SLEEP_NS, Tunnel, is_control
from jupyter_depin.tunnel.states import TRANSITIONS, State
from jupyter_depin.tunnel.window import Window

S = 10**9
GRACE = 600 * S
PING = 3 * S
NOTHING = dict.fromkeys(Lane, 0)


def data(lane: Lane, seq: int, *parts: bytes) -> Data:
    return Data(lane, seq, parts, sum(map(len, parts)))


class Play:
    """`>>` is what happens, `<<` what must follow: an event, or a frame. Nothing may be left over at the next `>>`."""

    def __init__(self, **options: Any) -> None:
        self.tunnel = Tunnel(**{"grace_ns": GRACE, "now": 0, **options})
        self.script: list[str] = []
        self.frames: list[Frame] = []

    def __rshift__(self, line: tuple[Any, ...]) -> Play:
        self.over()
        now, verb, *arguments = line
        self.script.append(f">> {line}")
        getattr(self.tunnel, verb)(*arguments, *([] if verb == "close" else [now]))
        self.frames += self.tunnel.frames_to_send()
        return self

    def __lshift__(self, expected: object) -> Play:
        got = self.tunnel.next_event() or (self.frames.pop(0) if self.frames else None)
        self.script.append(f"<< {got}")
        if isinstance(got, Data):
            got = data(got.lane, got.seq, *got.parts)
        assert got == expected, "\n".join(["", *self.script, f"-- expected {expected}"])
        return self

    def over(self) -> None:
        left = self.tunnel.next_event() or (self.frames[0] if self.frames else None)
        assert left is None, "\n".join(["", *self.script, f"<< {left}", "-- expected nothing more"])


def opened(now: int = 0, **options: Any) -> Play:
    play = Play(**options)
    play >> (now, "attach") << Resume(NOTHING)
    play >> (now, "receive", Resume(NOTHING)) << Opened(0)
    return play


# -- the ordinary life


@pytest.mark.parametrize("lane", [Lane.LEASE, Lane.IOPUB])
def test_what_the_peer_would_refuse_is_not_sent(lane):
    tunnel = Tunnel(grace_ns=10**9, now=0)

    class Giant(bytes):
        def __len__(self) -> int:
            return longest(lane) + 1

    for parts in ([b""] * (MAX_PARTS + 1), [Giant()]):
        with pytest.raises(MessageTooBig, match="was left out"):
            tunnel.send(lane, parts, 0)
    assert tunnel.held == 0
    tunnel.send(lane, [b""] * MAX_PARTS, 0)


def test_messages_pass_in_both_directions_and_are_acknowledged_together():
    play = opened()
    play >> (1, "send", Lane.SHELL, (b"a", b"b")) << data(Lane.SHELL, 0, b"a", b"b")
    play >> (1, "send", Lane.IOPUB, (b"c",)) << data(Lane.IOPUB, 0, b"c")
    play >> (2, "receive", data(Lane.SHELL, 0, b"x")) << Message(Lane.SHELL, (b"x",))
    play >> (3, "receive", data(Lane.STDIN, 0, b"y")) << Message(Lane.STDIN, (b"y",))
    assert play.tunnel.get_timer() == 2 + ACK_DELAY_NS
    play >> (1 + ACK_DELAY_NS, "handle_timer")
    play >> (2 + ACK_DELAY_NS, "handle_timer") << Ack({Lane.SHELL: 1, Lane.STDIN: 1})
    play >> (3 + ACK_DELAY_NS, "handle_timer")
    play >> (9 * S, "receive", Ack({Lane.SHELL: 1}))
    assert play.tunnel.drained(Lane.SHELL)
    assert not play.tunnel.drained(Lane.IOPUB)
    play.over()


def test_what_is_sent_while_there_is_no_link_waits_for_it():
    play = Play()
    play >> (0, "send", Lane.CONTROL, (b"1",))
    play >> (1, "attach") << Resume(NOTHING)
    play >> (1, "send", Lane.CONTROL, (b"2",))
    play >> (2, "receive", Resume(NOTHING)) << Opened(2)
    play << data(Lane.CONTROL, 0, b"1") << data(Lane.CONTROL, 1, b"2")
    play.over()


def test_after_a_cut_only_what_the_peer_lacks_is_sent_again():
    play = opened()
    for i in range(3):
        play >> (i, "send", Lane.IOPUB, (bytes([i]),)) << data(Lane.IOPUB, i, bytes([i]))
    play >> (5, "receive", data(Lane.SHELL, 0, b"x")) << Message(Lane.SHELL, (b"x",))
    play >> (6, "detach")
    assert play.tunnel.get_timer() == 6 + GRACE
    play >> (7, "attach") << Resume(NOTHING | {Lane.SHELL: 1})
    play >> (8, "receive", Resume(NOTHING | {Lane.IOPUB: 2})) << Opened(1) << data(Lane.IOPUB, 2, b"\2")
    # The peer knows from our Resume that its message was taken: no acknowledgement is due any more.
    assert play.tunnel.get_timer() is None
    play >> (9, "receive", data(Lane.STDIN, 0, b"y")) << Message(Lane.STDIN, (b"y",))
    play >> (9 + ACK_DELAY_NS, "handle_timer") << Ack({Lane.STDIN: 1})
    play.over()


def test_a_big_message_is_acknowledged_at_once():
    play = opened()
    big = bytes(ACK_BYTES)
    play >> (1, "receive", data(Lane.IOPUB, 0, big)) << Message(Lane.IOPUB, (big,)) << Ack({Lane.IOPUB: 1})
    play >> (2, "receive", data(Lane.IOPUB, 1, b"-")) << Message(Lane.IOPUB, (b"-",))
    play.over()


def test_a_message_without_parts_is_our_own_mistake():
    with pytest.raises(LocalProtocolError):
        opened().tunnel.send(Lane.SHELL, (), 0)


def test_control_frames_are_told_from_data():
    assert all(is_control(frame) for frame in (Resume({}), Ack({}), Ping(1), Pong(1)))
    assert not is_control(data(Lane.SHELL, 0, b""))


# -- fullness


def test_a_lane_says_when_it_is_full_and_when_it_has_room_again():
    play = opened(limit=4 * (Window.OVERHEAD + 1))
    for i in range(3):
        play >> (0, "send", Lane.IOPUB, (b"x",)) << data(Lane.IOPUB, i, b"x")
    play >> (0, "send", Lane.IOPUB, (b"x",)) << LaneFull(Lane.IOPUB) << data(Lane.IOPUB, 3, b"x")
    play >> (0, "send", Lane.IOPUB, (b"x",)) << data(Lane.IOPUB, 4, b"x")
    assert play.tunnel.full(Lane.IOPUB)
    assert play.tunnel.held == 5 * (Window.OVERHEAD + 1)
    play >> (1, "receive", Ack({Lane.IOPUB: 2}))
    play >> (1, "receive", Ack({Lane.IOPUB: 3})) << LaneDrained(Lane.IOPUB)
    assert not play.tunnel.full(Lane.IOPUB)
    play >> (1, "receive", Ack({Lane.IOPUB: 5}))
    assert play.tunnel.held == 0
    play.over()


# -- the clock


def test_silence_is_asked_about_doubted_and_then_given_up():
    play = opened(ping_ns=PING)
    play >> (S, "handle_timer") << Ping(1)
    play >> (S + 1, "receive", Pong(1))
    # Nothing goes on: the next questions come later and later, up to the idle pace.
    play >> (S + S // 2, "handle_timer")
    play >> (3 * S, "handle_timer")
    play >> (3 * S + 1, "handle_timer") << Ping(2)
    play >> (3 * S + 2, "receive", Pong(2))
    play >> (4 * S, "handle_timer")
    play >> (6 * S + 2, "handle_timer") << Ping(3)
    play >> (6 * S + S // 2 + 2, "handle_timer") << Ping(4)
    play >> (7 * S + 2, "handle_timer") << Doubtful() << Ping(5)
    for i in range(5):
        play >> (7 * S + S // 2 * (i + 1) + 2, "handle_timer") << Ping(6 + i)
    play >> (10 * S + 2, "handle_timer") << Silent()
    assert play.tunnel.get_timer() is None
    play.over()


def test_a_message_that_is_not_acknowledged_is_asked_about_soon():
    play = opened(ping_ns=PING)
    play >> (10, "send", Lane.SHELL, (b"x",)) << data(Lane.SHELL, 0, b"x")
    assert play.tunnel.get_timer() == 10 + S // 2
    play >> (10 + S // 2, "handle_timer") << Ping(1)
    play >> (20 + S // 2, "receive", Ack({Lane.SHELL: 1}))
    play >> (10 + S, "handle_timer")
    # It is taken, but somebody is at work.
    assert play.tunnel.get_timer() == 20 + S + S // 2
    play.over()


def test_a_doubtful_connection_on_which_something_comes_is_heard():
    play = opened(ping_ns=PING)
    play >> (S, "handle_timer") << Ping(1)
    play >> (S + S // 2, "handle_timer") << Ping(2)
    play >> (2 * S, "handle_timer") << Doubtful() << Ping(3)
    play >> (2 * S + 5, "heard") << Heard()
    play >> (2 * S + 6, "heard")
    # The answers that the outage had held up say nothing of the round trip; the newest question's does.
    play >> (2 * S + 7, "receive", Pong(1))
    play >> (2 * S + 7, "receive", Pong(2))
    assert play.tunnel.rtt_ns is None
    play >> (2 * S + 7, "receive", Pong(3))
    assert play.tunnel.rtt_ns == 7
    play.over()


def asked(play: Play, number: int) -> int:
    """Let the clock ring until a question is asked; when that was."""
    while not play.frames:
        now = play.tunnel.get_timer()
        play.tunnel.handle_timer(now)
        play.frames += play.tunnel.frames_to_send()
    play << Ping(number)
    return now


def test_the_round_trip_is_measured():
    play = opened(ping_ns=PING)
    rtts = []
    for number, took in enumerate((800, 1600, 100), 1):
        now = asked(play, number)
        play >> (now + took, "receive", Pong(number))
        rtts.append(play.tunnel.rtt_ns)
    # Downward is believed sooner: a question that was lost once was late, and none is early.
    assert rtts == [800, 900, 500]


def test_a_question_that_was_asked_again_measures_nothing():
    play = opened(ping_ns=PING)
    now = asked(play, 1)
    assert asked(play, 2) == now + S // 2
    play >> (now + S // 2 + 800, "receive", Pong(1))
    assert play.tunnel.rtt_ns is None
    play >> (now + S // 2 + 800, "receive", Pong(2))
    assert play.tunnel.rtt_ns == 800


def test_a_long_way_is_waited_for():
    play = opened(ping_ns=PING)
    ms = S // 1000
    play >> (asked(play, 1) + 450 * ms, "receive", Pong(1))
    now = asked(play, 2)
    assert asked(play, 3) == now + 675 * ms
    assert play.tunnel.next_event() is None
    assert asked(play, 4) == now + 1350 * ms
    assert play.tunnel.next_event() is None
    play >> (now + 2025 * ms, "handle_timer") << Doubtful() << Ping(5)
    play.over()


def test_a_link_on_which_the_peer_never_greets_is_doubted_and_given_up_without_a_question():
    play = Play(ping_ns=PING)
    play >> (0, "attach") << Resume(NOTHING)
    play >> (S, "handle_timer") << Doubtful()
    for i in range(3, 8):
        play >> (i * S // 2, "handle_timer")
    play >> (4 * S, "handle_timer") << Silent()
    play.over()


def test_after_a_sleep_the_link_is_asked_about_and_doubted_at_once_but_not_given_up():
    play = opened(ping_ns=PING)
    play >> (5000 * S, "handle_timer") << Doubtful() << Ping(1)
    play >> (5000 * S + 1, "receive", Pong(1)) << Heard()
    play >> (5000 * S + S, "handle_timer")
    # The same in the middle of a question.
    play >> (5002 * S + 1, "handle_timer") << Ping(2)
    play >> (9000 * S, "handle_timer") << Doubtful() << Ping(3)
    play >> (9000 * S + S // 2, "handle_timer") << Ping(4)
    play.over()


def test_a_grace_that_ended_in_a_sleep_leaves_time_for_one_more_try():
    """Whether the lease still lives is the peer's to say; it may have slept too."""
    play = opened()
    play >> (0, "detach")
    play >> (9 * GRACE, "handle_timer")
    assert play.tunnel.get_timer() == 9 * GRACE + AFTER_SLEEP_NS
    play >> (9 * GRACE + AFTER_SLEEP_NS - 1, "handle_timer")
    play >> (19 * GRACE, "handle_timer") << Closed(expired=True)
    play.over()


def test_the_bytes_of_a_message_under_way_are_no_silence():
    play = opened(ping_ns=PING)
    for tenth in range(1, 1000):
        play >> (tenth * S // 10, "heard")
        play >> (tenth * S // 10, "handle_timer")
    play.over()


def test_an_end_that_does_not_ask_is_never_told_of_silence():
    play = opened()
    assert play.tunnel.get_timer() is None
    play >> (10**6 * S, "handle_timer")
    play.over()


def test_a_ping_is_answered():
    opened() >> (1, "receive", Ping(7)) << Pong(7)


@pytest.mark.parametrize("attached", [False, True])
def test_the_grace_ends_a_tunnel_whose_peer_stays_away(attached):
    start = 0
    play = Play()
    if attached:
        play = opened()
        start = 50 * S
        play >> (start, "send", Lane.SHELL, (b"x",)) << data(Lane.SHELL, 0, b"x")
        play >> (start, "detach")
        play >> (start + S, "detach")
    assert play.tunnel.get_timer() == start + GRACE
    play >> (start + GRACE - 1, "handle_timer")
    play >> (start + GRACE, "handle_timer") << Closed(expired=True)
    assert play.tunnel.held == 0
    assert play.tunnel.get_timer() is None
    play.over()


def test_attempts_to_come_back_count_only_when_the_peer_answers():
    play = opened()
    play >> (0, "detach")
    play >> (GRACE, "attach") << Resume(NOTHING)
    # Attached, the grace does not run; but a link on which no Resume came gives no new grace for free.
    play >> (GRACE + 5, "handle_timer")
    play >> (GRACE + 5, "detach")
    assert play.tunnel.get_timer() == 2 * GRACE + 5
    play.over()


def test_closing_says_so_once_and_forgets():
    play = opened()
    play >> (0, "send", Lane.SHELL, (b"x",)) << data(Lane.SHELL, 0, b"x")
    play >> (0, "close") << Closed(expired=False)
    play >> (0, "close")
    play >> (0, "detach")
    assert play.tunnel.held == 0
    assert play.tunnel.drained(Lane.SHELL)
    with pytest.raises(LocalProtocolError):
        play.tunnel.send(Lane.SHELL, (b"x",), 0)
    play.over()


# -- a peer that lost its memory


def test_a_renewed_tunnel_begins_at_zero_with_what_was_not_taken():
    play = opened()
    for i in range(3):
        play >> (0, "send", Lane.LEASE, (bytes([i]),)) << data(Lane.LEASE, i, bytes([i]))
    play >> (0, "receive", data(Lane.SHELL, 0, b"x")) << Message(Lane.SHELL, (b"x",))
    play >> (0, "receive", Ack({Lane.LEASE: 1}))
    play >> (1, "detach")
    play.tunnel = play.tunnel.renewed(2)
    assert play.tunnel.get_timer() == 2 + GRACE
    play >> (3, "attach") << Resume(NOTHING)
    play >> (3, "receive", Resume(NOTHING)) << Opened(2)
    play << data(Lane.LEASE, 0, b"\1") << data(Lane.LEASE, 1, b"\2")
    play >> (4, "receive", data(Lane.SHELL, 0, b"y")) << Message(Lane.SHELL, (b"y",))
    play.over()


def test_a_renewed_tunnel_says_that_a_full_lane_drained():
    """Else its source, which was stopped before, would stand still for good."""
    play = opened(limit=4 * (Window.OVERHEAD + 1))
    for i in range(4):
        play >> (0, "send", Lane.IOPUB, (b"x",))
        if i == 3:
            play << LaneFull(Lane.IOPUB)
        play << data(Lane.IOPUB, i, b"x")
    play >> (0, "receive", Ack({Lane.IOPUB: 1}))
    play >> (1, "detach")
    play.tunnel = play.tunnel.renewed(2)
    assert play.tunnel.full(Lane.IOPUB)
    play >> (3, "attach") << Resume(NOTHING)
    play >> (3, "receive", Resume(NOTHING)) << Opened(3)
    for i in range(3):
        play << data(Lane.IOPUB, i, b"x")
    play >> (4, "receive", Ack({Lane.IOPUB: 2})) << LaneDrained(Lane.IOPUB)
    play.over()


# -- a peer that lies


def busy() -> Play:
    """An end that has sent two messages, one of them acknowledged, and taken one."""
    play = opened()
    for i in range(2):
        play >> (0, "send", Lane.SHELL, (b"s",)) << data(Lane.SHELL, i, b"s")
    play >> (0, "receive", data(Lane.IOPUB, 0, b"r")) << Message(Lane.IOPUB, (b"r",))
    play >> (0, "receive", Ack({Lane.SHELL: 1}))
    return play


LIES = [
    data(Lane.IOPUB, 0, b"again"),
    data(Lane.IOPUB, 2, b"too early"),
    data(Lane.SHELL, 5, b"x"),
    Ack({Lane.SHELL: 3}),
    Ack({Lane.SHELL: 0}),
    Ack({Lane.SHELL: -1}),
    Ack({Lane.IOPUB: 1}),
    Ack({77: 0}),
    Ack({-1: 0}),
    Ack({}),
    Pong(1),
    Resume(NOTHING),
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_lie_breaks_the_connection_and_nothing_else(lie):
    play = busy()
    with pytest.raises(RemoteProtocolError):
        play.tunnel.receive(lie, 1)
    play.over()
    play >> (2, "detach")
    play >> (3, "attach") << Resume(NOTHING | {Lane.IOPUB: 1})
    play >> (3, "receive", Resume({Lane.SHELL: 1})) << Opened(1) << data(Lane.SHELL, 1, b"s")
    play >> (4, "receive", data(Lane.IOPUB, 1, b"next")) << Message(Lane.IOPUB, (b"next",))
    play.over()


@pytest.mark.parametrize(
    "lie",
    [Resume({Lane.SHELL: 3}), Resume({Lane.SHELL: 0}), Resume({99: 0}), Resume({Lane.SHELL: -5})],
    ids=str,
)
def test_a_lie_about_what_was_taken_breaks_the_connection(lie):
    play = busy()
    play >> (1, "detach")
    play >> (2, "attach") << Resume(NOTHING | {Lane.IOPUB: 1})
    with pytest.raises(RemoteProtocolError):
        play.tunnel.receive(lie, 3)
    play.over()
    assert play.tunnel.state is State.RESUMING


def test_endless_pings_hold_no_memory():
    play = opened()
    for i in range(1000):
        play >> (i, "receive", Ping(i)) << Pong(i)
    assert play.tunnel.held == 0
    assert play.tunnel.get_timer() is None


# -- the table

FRAMES: dict[str, Frame] = {
    "Data": data(Lane.SHELL, 0, b"x"),
    "Resume": Resume(NOTHING),
    "Ack": Ack({Lane.SHELL: 1}),
    "Ping": Ping(0),
    "Pong": Pong(0),
}


def in_state(state: State) -> Tunnel:
    if state is State.DETACHED:
        return Play().tunnel
    if state is State.RESUMING:
        play = Play()
        play >> (0, "attach") << Resume(NOTHING)
        return play.tunnel
    tunnel = opened().tunnel
    if state is State.CLOSED:
        tunnel.close()
    return tunnel


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", [*FRAMES, "attach", "detach", "close", "grace over"])
def test_every_step_does_what_the_table_says(state, step):
    tunnel = in_state(state)
    after = TRANSITIONS.get((state, step))
    if step == "Ack" and state is State.OPEN:
        # Only of something new: whoever says the same for ever is let go.
        tunnel.send(Lane.SHELL, [b"x"], 0)
    if step in FRAMES:
        if after is None:
            with pytest.raises(RemoteProtocolError):
                tunnel.receive(FRAMES[step], 0)
        else:
            tunnel.receive(FRAMES[step], 0)
    elif step == "grace over":
        # A clock that rings is nobody's fault: outside the table it does nothing.
        tunnel.handle_timer(GRACE)
    elif step == "attach" and after is None:
        with pytest.raises(LocalProtocolError):
            tunnel.attach(0)
    elif step == "close":
        tunnel.close()
    else:
        getattr(tunnel, step)(0)
    assert tunnel.state is (after or state)


def test_the_table_names_only_steps_that_are_tried_here():
    assert {step for _, step in TRANSITIONS} <= {*FRAMES, "attach", "detach", "close", "grace over"}
