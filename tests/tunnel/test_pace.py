"""The pace of a replay, judged by jupyter_server's own code: it lets every message through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_server.services.kernels.connection import channels
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection as Connection

from jupyter_depin.tunnel.pace import Pace, Span

MS = 10**6
S = 10**9


class Limiter:
    """What jupyter_server does with a kernel's output, on a clock of ours."""

    _limit_rate, get_part = Connection._limit_rate, Connection.get_part
    limit_rate = True
    log = SimpleNamespace(warning=lambda *_: None)

    def __init__(self):
        for name in ("iopub_msg_rate_limit", "iopub_data_rate_limit", "rate_limit_window"):
            setattr(self, name, Connection.class_traits()[name].default_value)
        self._iopub_window_msg_count = self._iopub_window_byte_count = 0
        self._iopub_msgs_exceeded = self._iopub_data_exceeded = False
        self._iopub_window_byte_queue = []
        self.dropped = 0
        self.now = 0

    def write_stderr(self, text, parent):
        pass

    def hear(self, size, now):
        self.now = now
        msg = {"header": {"msg_type": "stream"}, "parent_header": {}, "content": None}
        self.dropped += bool(self._limit_rate("iopub", msg, [bytes(size)]))


@pytest.fixture
def limiter(monkeypatch):
    limiter = Limiter()
    loop = SimpleNamespace(time=lambda: limiter.now / 1e9)
    monkeypatch.setattr(channels, "IOLoop", SimpleNamespace(current=lambda: loop))
    return limiter


def replay(limiter, sizes, pace=None):
    """Give out messages as early as the pace lets them; when the last one went."""
    pace, now = pace or Pace(), 5 * S
    for size in sizes:
        now += pace.wait(size, now)
        assert pace.wait(size, now) == 0
        pace.went(size, now)
        limiter.hear(size, now)
    return now - 5 * S


def test_the_bounds_are_those_of_the_server_here():
    traits = Connection.class_traits()
    window = traits["rate_limit_window"].default_value
    assert window * S == Pace.WINDOW_NS
    assert traits["iopub_msg_rate_limit"].default_value * window == Pace.MESSAGES
    assert traits["iopub_data_rate_limit"].default_value * window == Pace.BYTES


def test_a_server_drops_what_has_no_pace(limiter):
    for _ in range(8000):
        limiter.hear(100, 5 * S)
    assert limiter.dropped > 4000


@pytest.mark.parametrize(
    ("count", "size"), [(10_000, 0), (10_000, 300), (2000, 5000), (64, 1_000_000), (20, 2_900_000)]
)
def test_a_server_drops_nothing_of_a_replay_and_it_takes_no_longer_than_it_must(limiter, count, size):
    took = replay(limiter, [size] * count)
    assert limiter.dropped == 0
    least = max(count / 1000, count * size / 1e6)
    assert took / S <= 1.3 * least if size < 1_000_000 else took / S <= 3.1 * count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2_900_000), st.integers(1, 400)), min_size=1, max_size=12))
def test_a_server_drops_nothing_of_any_replay(runs):
    with pytest.MonkeyPatch.context() as patch:
        limiter = Limiter()
        loop = SimpleNamespace(time=lambda: limiter.now / 1e9)
        patch.setattr(channels, "IOLoop", SimpleNamespace(current=lambda: loop))
        replay(limiter, [size for size, count in runs for _ in range(count if size < 10_000 else 3)])
        assert limiter.dropped == 0


def test_there_is_room_for_what_is_said_live(limiter):
    pace, now = Pace(), 5 * S
    for i in range(20_000):
        now += pace.wait(100, now)
        pace.went(100, now)
        limiter.hear(100, now)
        if i % 8 == 0:
            limiter.hear(100, now)
    assert limiter.dropped == 0


def test_a_few_messages_do_not_wait():
    pace = Pace()
    for _ in range(40):
        assert pace.wait(1000, 0) == 0
        pace.went(1000, 0)
    assert 0 < pace.wait(1000, 0) <= 50 * MS


def test_a_message_beyond_the_bounds_goes_alone():
    span = Span(10, 100, 3 * S)
    assert span.wait(1000, 0) == 0
    span.went(1000, 0)
    assert span.wait(1, 1 * S) == 2 * S
    span.went(1, 3 * S)
    assert span.wait(1000, 4 * S) == 2 * S
