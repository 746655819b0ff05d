"""What a lane may hold follows the link (`jupyter_depin.tunnel.flow`), and never leaves its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.protocol.frames import Lane
from jupyter_depin.tunnel import flow as flow_module
from jupyter_depin.tunnel.events import LaneDrained, LaneFull, Message
from jupyter_depin.tunnel.flow import AHEAD_S, FIRST, LEAST, Flow
from jupyter_depin.tunnel.machine import Tunnel

S = 10**9
MOST = 64 << 20
MBIT = 125_000


class Link:
    """A tunnel's two ends and a link of some width between them; the kernel prints whenever it may."""

    def __init__(self, speed: int, *, delay_ns: int = 0) -> None:
        self.speed, self.delay_ns, self.now = speed, delay_ns, 0
        self.ends = [Tunnel(grace_ns=10**6 * S, now=0, limit=MOST) for _ in range(2)]
        for end in self.ends:
            end.attach(0)
        for a, b in ((0, 1), (1, 0)):
            for frame in self.ends[a].frames_to_send():
                self.ends[b].receive(frame, 0)
        self.queue: list[object] = []
        self.acks: list[tuple[int, object]] = []
        self.full = False
        self.most_held = 0
        self.carried = 0

    def run(self, seconds: float, *, prints: int = 10_000, every_ns: int = 0) -> None:
        """Time passes in steps of 10 ms; `prints` bytes a message, as many as there is room for or one `every_ns`."""
        provider, consumer = self.ends
        budget, until, next_ns = 0, self.now + round(seconds * S), self.now
        while self.now < until:
            self.now += S // 100
            while not self.full and self.now >= next_ns:
                provider.send(Lane.IOPUB, [bytes(prints)], self.now)
                next_ns = self.now + every_ns if every_ns else next_ns
                self.events()
            self.queue += provider.frames_to_send()
            self.most_held = max(self.most_held, provider.held)
            budget = min(budget + self.speed // 100, self.speed)
            while self.queue and budget >= prints:
                budget -= prints
                self.carried += prints
                consumer.receive(self.queue.pop(0), self.now)
            consumer.handle_timer(self.now)
            self.acks += [(self.now + self.delay_ns, frame) for frame in consumer.frames_to_send()]
            while self.acks and self.acks[0][0] <= self.now:
                provider.receive(self.acks.pop(0)[1], self.now)
            while isinstance(consumer.next_event(), Message):
                pass
            self.events()

    def events(self) -> None:
        while (event := self.ends[0].next_event()) is not None:
            if isinstance(event, LaneFull | LaneDrained):
                self.full = isinstance(event, LaneFull)


def test_on_a_slow_link_little_lies_in_front_of_an_interrupts_end():
    link = Link(MBIT, delay_ns=S * 6 // 10)
    link.run(60)
    link.most_held = 0
    link.run(30)
    assert link.most_held <= LEAST + 20_000, "about eight seconds of it"


@pytest.mark.parametrize("delay_ns", [0, S // 2])
@pytest.mark.parametrize("speed", [MBIT, 8 * MBIT, 100 * MBIT])
def test_the_link_is_never_left_idle(speed, delay_ns):
    link = Link(speed, delay_ns=delay_ns)
    link.run(5)
    link.carried = 0
    link.run(10)
    assert link.carried >= 0.95 * 10 * speed


def test_a_fast_link_is_known_at_once():
    link = Link(400 * MBIT)
    link.run(2, prints=100_000)
    assert link.ends[0]._flow.limit == MOST


def test_a_kernel_that_says_little_does_not_make_the_link_slow():
    link = Link(400 * MBIT)
    link.run(2, prints=100_000)
    link.run(60, prints=100, every_ns=S // 20)
    assert link.ends[0]._flow.limit == MOST


def test_a_link_that_becomes_slow_is_noticed_and_the_same_again_when_it_is_fast():
    link = Link(100 * MBIT)
    link.run(3)
    assert link.ends[0]._flow.limit > 4 * LEAST
    link.speed = MBIT
    link.run(300)
    assert link.ends[0]._flow.limit == LEAST
    link.speed = 100 * MBIT
    link.run(5)
    assert link.ends[0]._flow.limit > 4 * LEAST


def test_the_time_without_a_connection_is_no_measure():
    flow = Flow(MOST)
    flow.sent(0)
    flow.taken(FIRST, FIRST, S)
    limit = flow.limit
    flow.cut()
    flow.taken(FIRST, FIRST, 3600 * S)
    assert flow.limit == limit
    flow.sent(3600 * S)
    flow.taken(50 << 20, 0, 3601 * S)
    assert flow.limit == MOST


@given(
    most=st.integers(1, 1 << 30),
    steps=st.lists(st.tuples(st.integers(0, 1 << 28), st.integers(0, 1 << 28), st.integers(0, 5 * S))),
)
def test_the_bound_keeps_its_bounds(most, steps):
    flow, now = Flow(most), 0
    for size, waiting, passed in steps:
        flow.sent(now)
        now += passed
        flow.taken(size, waiting, now)
        assert min(most, LEAST) <= flow.limit <= most


def test_two_seconds_are_more_than_a_long_way_needs():
    assert AHEAD_S * S >= 2 * (S * 6 // 10 + flow_module.SAMPLE_NS)
