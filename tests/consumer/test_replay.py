"""Output that was kept comes to the clients in order and at their pace, with what must not overtake it behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_depin.consumer import replay as replay_module
from jupyter_depin.consumer.replay import Replay
from jupyter_depin.tunnel.events import Kept

S = 10**9


class Desk:
    """A replay, its clock and its alarms."""

    def __init__(self):
        self.now = 0
        self.alarms: list[tuple[int, object]] = []
        self.got: list[object] = []
        self.held: list[bool] = []
        self.came: int | None = 0
        self.replay = Replay(self.later, self.held.append, lambda: self.came)

    def later(self, seconds, call):
        self.alarms.append((self.now + round(seconds * S), call))

    def say(self, what, size=100, *, counted=None, stands_for=1):
        self.replay.take(
            lambda: self.got.append(what), size, size if counted is None else counted, stands_for
        )

    def after(self, what):
        self.replay.after(lambda: self.got.append(what))

    def behind(self, what, size=100):
        self.replay.behind(lambda: self.got.append(what), size)

    def wait(self, seconds):
        until = self.now + round(seconds * S)
        while due := [alarm for alarm in self.alarms if alarm[0] <= until]:
            alarm = min(due, key=lambda alarm: alarm[0])
            self.alarms.remove(alarm)
            self.now = max(self.now, alarm[0])
            alarm[1]()
        self.now = until


@pytest.fixture
def desk(monkeypatch):
    desk = Desk()
    monkeypatch.setattr(replay_module, "steady_ns", lambda: desk.now)
    return desk


def test_without_anything_kept_it_stands_aside(desk):
    desk.after("fact")
    assert desk.got == ["fact"]
    desk.replay.expect(Kept(0, 0))
    assert not desk.replay.active


def test_what_was_kept_is_paced_and_what_is_live_waits_behind_it(desk):
    desk.replay.expect(Kept(1000, 4000))
    for i in range(5000):
        desk.say(i, 10)
    desk.say("live", 10)
    assert 0 < len(desk.got) < 100
    desk.wait(3)
    assert 2300 <= len(desk.got) <= 2500
    desk.wait(4)
    assert desk.got == [*range(5000), "live"]


def test_a_short_cut_costs_no_time(desk):
    desk.replay.expect(Kept(20, 0))
    for i in range(20):
        desk.say(i)
    desk.say("live")
    assert desk.got == [*range(20), "live"]


def test_afterwards_output_goes_past_it_again(desk):
    desk.replay.expect(Kept(1, 0))
    desk.say("kept")
    desk.wait(2)
    assert desk.replay.active
    desk.wait(2)
    assert not desk.replay.active


def test_a_reply_comes_behind_what_is_still_to_come(desk):
    desk.replay.expect(Kept(2, 3))
    desk.say("a")
    desk.behind("one")
    desk.behind("two")
    desk.say("b")
    desk.say("c")
    desk.wait(20)
    assert desk.got == ["a", "b", "c"]
    desk.say("marker", stands_for=2)
    assert desk.got == ["a", "b", "c", "marker", "one", "two"]


def test_an_end_that_is_told_early_does_not_wait_for_what_may_never_come(desk):
    desk.replay.expect(Kept(0, 50))
    desk.say("a")
    desk.after("ended")
    assert desk.got == ["a", "ended"]


def test_the_end_comes_behind_what_waits_here(desk):
    desk.replay.expect(Kept(200, 0))
    for i in range(200):
        desk.say(i)
    desk.after("exited")
    assert "exited" not in desk.got
    desk.wait(1)
    assert desk.got == [*range(200), "exited"]


def test_a_marker_may_stand_for_more_than_was_kept(desk):
    desk.replay.expect(Kept(0, 3))
    desk.behind("reply")
    desk.say("marker", stands_for=10)
    assert desk.got == ["marker", "reply"]


def test_a_cut_in_the_middle_begins_the_count_anew(desk):
    desk.replay.expect(Kept(10, 0))
    desk.say(0)
    desk.behind("reply")
    desk.replay.expect(Kept(2, 0))
    desk.say(1)
    assert desk.got == [0, 1]
    desk.say(2)
    assert desk.got == [0, 1, 2, "reply"]
    desk.replay.expect(Kept(5, 0))
    desk.behind("another")
    desk.replay.expect(Kept(0, 0))
    assert desk.got[-1] == "another"


def test_another_kernel_waits_for_nothing(desk):
    desk.replay.expect(Kept(500, 500))
    for i in range(500):
        desk.say(i)
    desk.behind("reply")
    desk.replay.release()
    assert desk.got == [*range(500), "reply"]
    assert not desk.replay.active


def test_much_stays_with_the_provider_until_there_is_room(desk):
    desk.replay.expect(Kept(0, 100))
    for i in range(20):
        desk.say(i, 1 << 20, counted=1 << 20)
    assert desk.held == [True]
    desk.wait(60)
    assert desk.held == [True, False]
    for i in range(20, 100):
        desk.say(i, 10)
    desk.wait(60)
    assert desk.got == [*range(100)]


def test_releasing_lets_it_come_again(desk):
    desk.replay.expect(Kept(0, 100))
    for i in range(20):
        desk.say(i, 1 << 20)
    desk.replay.release()
    assert desk.held == [True, False]


def test_output_that_was_promised_and_does_not_come_costs_no_memory(desk):
    desk.replay.expect(Kept(0, 1 << 60))
    for i in range(17):
        desk.behind(i, 1 << 20)
    assert desk.got == [*range(17)]


def test_what_was_announced_and_does_not_come_is_waited_for_for_a_minute(desk):
    desk.replay.expect(Kept(1 << 60, 1 << 60))
    desk.say("a")
    desk.behind("reply")
    desk.wait(29)
    assert desk.got == ["a"]
    desk.came += 3_000
    desk.wait(40)
    assert desk.got == ["a", "reply"]
    desk.wait(5)
    assert not desk.replay.active


@pytest.mark.parametrize("why", ["a big message", "a cut", "held back here"])
def test_what_is_late_for_a_reason_is_waited_for(desk, why):
    desk.replay.expect(Kept(0, 100))
    if why == "held back here":
        for i in range(40):
            desk.say(i, 1 << 20, counted=1 << 20)
    desk.behind("reply")
    for _ in range(10):
        desk.came = None if why == "a cut" else desk.came + (100_000 if why == "a big message" else 0)
        desk.wait(10 if why != "held back here" else 1)
        assert "reply" not in desk.got
    desk.replay.expect(Kept(0, 1))
    desk.say("last")
    desk.wait(100)
    assert desk.got[-2:] == ["last", "reply"]


def test_live_output_that_no_server_would_take_is_not_held_up(desk):
    desk.replay.expect(Kept(1, 0))
    desk.say("kept")
    for i in range(5000):
        desk.say(i) if desk.replay.active else desk.got.append(i)
    assert desk.got == ["kept", *range(5000)]


def test_what_does_not_count_is_not_held_up_by_its_bytes(desk):
    desk.replay.expect(Kept(30, 0))
    for i in range(30):
        desk.say(i, 1 << 20, counted=0)
    assert desk.got == [*range(30)]


def test_what_is_given_may_end_it_all(desk):
    desk.replay.expect(Kept(50, 0))
    desk.replay.take(desk.replay.release, 1, 1)
    for i in range(49):
        desk.say(i) if desk.replay.active else desk.got.append(i)
    desk.wait(10)
    assert desk.got == [*range(49)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 1 << 20), st.integers(1, 60)),
            st.tuples(st.sampled_from(["after", "behind"])),
            st.tuples(st.just("wait"), st.integers(0, 5000)),
            st.tuples(st.just("expect"), st.integers(0, 100), st.integers(0, 100)),
            st.tuples(st.just("release")),
        ),
        max_size=40,
    )
)
def test_everything_comes_once_and_in_order(steps):
    desk = Desk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "steady_ns", lambda: desk.now)
        said, facts = [], []
        for step in steps:
            match step:
                case ("say", size, count):
                    for _ in range(count):
                        said.append(len(said))
                        if desk.replay.active:
                            desk.say(said[-1], size)
                        else:
                            desk.got.append(said[-1])
                case ("after" | "behind" as how,):
                    facts.append(f"{how} {len(said)}")
                    (desk.after if how == "after" else desk.behind)(facts[-1])
                case ("wait", ms):
                    desk.wait(ms / 1000)
                case ("expect", frames, messages):
                    desk.replay.expect(Kept(frames, messages))
                case ("release",):
                    desk.replay.release()
            got = [what for what in desk.got if isinstance(what, int)]
            assert got == said[: len(got)]
            for place, what in enumerate(desk.got):
                if isinstance(what, str):
                    before = sum(isinstance(w, int) for w in desk.got[:place])
                    assert before >= int(what.split()[1])
        desk.replay.release()
        assert [what for what in desk.got if isinstance(what, int)] == said
        for how in ("after", "behind"):
            assert [what for what in desk.got if str(what).startswith(how)] == [
                fact for fact in facts if fact.startswith(how)
            ]
        assert desk.held[-1:] in ([], [False])
