"""Two ends over a wire that is cut again and again, and sometimes a liar in the middle.

What must hold, in words:
  1. Whatever is cut, each message arrives once and in the order of its lane.
  2. Once both ends hear each other, every window drains and nothing is held.
  3. An acknowledgement never waits longer than its delay.
  4. A lane that was reported full is reported drained before it is reported full again.
  5. Noise from a liar gives `RemoteProtocolError` and costs only the connection.
  6. A connection is doubtful, heard again, and doubtful again, in turns; no doubt outlives it.
  7. A peer that lost its memory gets everything that it had not acknowledged, in order, once.
"""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import Ack, Data, Frame, Lane, Ping, Pong, Resume
from jupyter_depin.tunnel.events import Doubtful, Heard, LaneDrained, LaneFull, Message, Silent
from jupyter_depin.tunnel.machine import ACK_DELAY_NS, Tunnel
from jupyter_depin.tunnel.states import State
from jupyter_depin.tunnel.window import Window

S = 10**9
LIMIT = 6 * Window.OVERHEAD

lanes = st.sampled_from(Lane)
ends = st.integers(0, 1)
counts = st.integers(-2, 40)
noise = st.one_of(
    st.builds(lambda lane, seq: Data(lane, seq, (b"liar",), 4), lanes, counts),
    st.builds(Ack, st.dictionaries(st.integers(-1, 7), counts, min_size=1)),
    st.builds(Resume, st.dictionaries(st.integers(-1, 7), counts, min_size=1)),
    st.builds(Ping, counts),
    st.builds(Pong, counts),
)


class TwoTunnels(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.up = False
        # The consumer's end asks after silence, the provider's does not; the grace is another test's matter.
        self.ends = [Tunnel(grace_ns=10**9 * S, now=0, ping_ns=ping, limit=LIMIT) for ping in (3 * S, None)]
        self.flight: list[dict[object, deque[Frame]]] = [defaultdict(deque), defaultdict(deque)]
        self.sent: list[dict[Lane, list[bytes]]] = [defaultdict(list), defaultdict(list)]
        self.got: list[dict[Lane, list[bytes]]] = [defaultdict(list), defaultdict(list)]
        self.full: list[set[Lane]] = [set(), set()]
        self.untold: list[int | None] = [None, None]
        self.doubted = False
        self.number = 0

    # -- the wire: a stream for each lane and one for control, each in order, none ordered against another

    def flush(self, i: int) -> None:
        for frame in self.ends[i].frames_to_send():
            assert self.up
            stream = frame.lane if isinstance(frame, Data) else "control"
            self.flight[1 - i][stream].append(frame)
            if isinstance(frame, Ack | Resume):
                self.untold[i] = None
        while (event := self.ends[i].next_event()) is not None:
            match event:
                case Message(lane, parts):
                    self.take(i, lane, bytes(parts[0]))
                    if self.untold[i] is None:
                        self.untold[i] = self.now
                case LaneFull(lane):
                    assert lane not in self.full[i]
                    self.full[i].add(lane)
                case LaneDrained(lane):
                    assert lane in self.full[i]
                    self.full[i].remove(lane)
                case Doubtful():
                    assert i == 0
                    assert not self.doubted
                    self.doubted = True
                case Heard():
                    assert self.doubted
                    self.doubted = False
                case Silent():
                    assert self.doubted
                    self.cut()

    def take(self, i: int, lane: Lane, body: bytes) -> None:
        self.got[i][lane].append(body)

    def receive(self, i: int, stream: object) -> None:
        self.ends[i].receive(self.flight[i][stream].popleft(), self.now)
        self.flush(i)

    def ready(self, i: int) -> list[object]:
        """Streams with something on them. The driver holds lanes back until the peer's Resume is there."""
        found = [stream for stream, frames in self.flight[i].items() if frames]
        return found if self.ends[i].state is State.OPEN else [s for s in found if s == "control"]

    # -- what happens

    @rule(i=ends, lane=lanes, size=st.integers(0, 3 * Window.OVERHEAD))
    def send(self, i, lane, size):
        self.number += 1
        body = b"%d:" % self.number + bytes(size)
        self.sent[1 - i][lane].append(body)
        self.ends[i].send(lane, (body,), self.now)
        self.flush(i)

    @precondition(lambda self: not self.up)
    @rule()
    def connect(self):
        self.up = True
        for i in (0, 1):
            self.ends[i].attach(self.now)
            self.flush(i)

    @precondition(lambda self: self.up)
    @rule()
    def cut(self):
        self.up = self.doubted = False
        for i in (0, 1):
            self.flight[i].clear()
            self.untold[i] = None
            self.ends[i].detach(self.now)
        for i in (0, 1):
            self.flush(i)

    @precondition(lambda self: self.up)
    @rule(i=ends, count=st.integers(1, 8), choice=st.randoms(use_true_random=False))
    def deliver(self, i, count, choice):
        for _ in range(count):
            streams = self.ready(i)
            if self.up and streams:
                self.receive(i, choice.choice(streams))

    @rule(ns=st.integers(0, 2 * S))
    def wait(self, ns):
        until = self.now + ns
        while True:
            due = [t for end in self.ends if (t := end.get_timer()) is not None and t <= until]
            if not due:
                break
            assert min(due) >= self.now
            self.now = min(due)
            for i in (0, 1):
                self.ends[i].handle_timer(self.now)
                self.flush(i)
        self.now = until

    @precondition(lambda self: self.up)
    @rule(i=ends, frame=noise)
    def hear_noise(self, i, frame):
        """A liar's frame that happens to be right would be taken, so such a one is not sent."""
        end = self.ends[i]
        if isinstance(frame, Ping | Pong) or end.state is not State.OPEN:
            return
        if isinstance(frame, Data):
            if frame.seq == len(self.got[i][frame.lane]):
                return
        elif isinstance(frame, Ack):
            # Each lane's count alone could be true; one that cannot be must be among them.
            sent = {lane: len(self.sent[1 - i][lane]) for lane in Lane}
            if all(0 <= count <= sent.get(lane, -1) for lane, count in frame.received.items()):
                return
            frame = Ack({k: v for k, v in frame.received.items() if k not in sent or v < 0 or v > sent[k]})
        try:
            end.receive(frame, self.now)
        except RemoteProtocolError:
            # What it told before the bad word was true of the connection that ends now.
            self.flush(i)
            if self.up:
                self.cut()
        else:
            raise AssertionError(f"{frame} was believed")

    # -- what must hold

    @invariant()
    def in_order_exactly_once(self):
        for i in (0, 1):
            for lane in Lane:
                got = self.got[i][lane]
                assert got == self.sent[i][lane][: len(got)]

    @invariant()
    def acknowledgements_are_not_late(self):
        for since in self.untold:
            assert since is None or not self.up or self.now - since <= ACK_DELAY_NS

    @invariant()
    def fullness_is_told_rightly(self):
        for i in (0, 1):
            assert self.full[i] == {lane for lane in Lane if self.ends[i].full(lane)}

    def settle(self):
        if not self.up:
            self.connect()
        self.deliver_all()
        self.wait(ACK_DELAY_NS)
        self.deliver_all()

    def deliver_all(self):
        while any(self.ready(i) for i in (0, 1)):
            for i in (0, 1):
                while streams := self.ready(i):
                    self.receive(i, streams[0])

    def teardown(self):
        self.settle()
        assert self.got == self.sent
        for end in self.ends:
            assert end.held == 0
            assert all(end.drained(lane) for lane in Lane)
        assert self.full == [set(), set()]


TestTwoTunnels = TwoTunnels.TestCase
TestTwoTunnels.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class Forgetful(TwoTunnels):
    """End 0, the consumer, dies now and then; its memory goes, the provider's end is renewed."""

    @precondition(lambda self: not self.up)
    @rule()
    def forget(self):
        pending = {
            lane: [bytes(frame.parts[0]) for frame in self.ends[1]._windows[lane].unacked] for lane in Lane
        }
        self.ends[0] = Tunnel(grace_ns=10**9 * S, now=self.now, ping_ns=3 * S, limit=LIMIT)
        self.ends[1] = self.ends[1].renewed(self.now)
        # What end 0 had said and end 1 not heard died with it; what end 1 holds will be said again.
        for lane in Lane:
            self.sent[0][lane], self.got[0][lane] = pending[lane], []
            self.sent[1][lane], self.got[1][lane] = [], []
        self.full[0] = set()
        self.flush(1)


TestForgetful = Forgetful.TestCase
TestForgetful.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
