"""What is said while nobody is there: kept in order within bounds, and never lost without a word.

What must hold, in words:
  1. What is pulled is what was put, in order; only a marker stands for messages that are missing, and it says how many
     messages and bytes they are.
  2. While the peer is away no more than the limit is taken, and never more than is allowed together.
  3. What is dropped is the oldest.
  4. A lane with a backlog is never full while its peer is away.
  5. A peer that comes back is told exactly how much was kept for it, whatever becomes of it on the way.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from jupyter_depin.protocol.frames import MAX_PARTS, Ack, Lane, Resume
from jupyter_depin.tunnel.backlog import Allowance, Backlog
from jupyter_depin.tunnel.events import Opened
from jupyter_depin.tunnel.machine import Tunnel
from jupyter_depin.tunnel.store import MemoryStore
from jupyter_depin.tunnel.window import Window
from tests.tunnel.test_two_tunnels import S, TwoTunnels

HOUR = 3600 * S
MARK = b"missing "


def marker(messages, size):
    return [MARK + b"%d %d" % (messages, size)]


def backlog(store=None, *, limit=16_000, age_ns=24 * HOUR, memory=1000, together=None):
    return Backlog(
        store or MemoryStore(), limit=limit, age_ns=age_ns, memory=memory, marker=marker, together=together
    )


def put(kept, body, now=0, *, away=True):
    kept.put([body], len(body), now, away=away)


def pulled(kept):
    out = []
    while kept.waiting:
        (body,) = kept.pull()
        out.append(bytes(body))
    return out


class FlakyStore(MemoryStore):
    """A disk that is full now and then, and one whose files are damaged."""

    def __init__(self):
        super().__init__()
        self.full = False
        self.attempts = 0
        self.damaged = set()

    def append(self, piece, parts):
        self.attempts += 1
        return not self.full and super().append(piece, parts)

    def read(self, piece):
        return None if piece in self.damaged else super().read(piece)

    def damage(self):
        self.damaged |= set(self._pieces)


# -- alone


def test_what_is_put_is_pulled_in_order():
    kept = backlog()
    bodies = [b"%d" % i for i in range(100)]
    for body in bodies:
        put(kept, body)
    assert kept.messages == 100
    assert pulled(kept) == bodies
    assert kept.taken == kept.messages == 0
    assert not kept.waiting


def test_the_oldest_goes_first_and_a_marker_says_how_much():
    kept = backlog(limit=16_000)
    bodies = [b"%04d" % i + bytes(96) for i in range(1000)]
    for body in bodies:
        put(kept, body)
        assert kept.taken <= 16_000
    first, *rest = pulled(kept)
    assert len(rest) > 80, "most of what fits is there"
    assert rest == bodies[-len(rest) :]
    assert first == MARK + b"%d %d" % (1000 - len(rest), (1000 - len(rest)) * 100)


def test_nothing_is_dropped_while_the_peer_is_there_and_the_source_can_be_stopped():
    kept = backlog(limit=16_000)
    bodies = [b"%04d" % i + bytes(896) for i in range(30)]
    for body in bodies[:15]:
        put(kept, body)
    assert kept.low
    for body in bodies[15:25]:
        put(kept, body, away=False)
    assert kept.high
    assert not kept.low
    for body in bodies[25:]:
        put(kept, body, away=False)
    assert not kept.brimful
    assert pulled(kept) == bodies


def test_who_does_not_stop_is_bounded_all_the_same():
    kept = backlog(limit=16_000)
    for _ in range(1000):
        put(kept, bytes(900), away=False)
        assert kept.taken <= 32_000
    assert kept.brimful or kept.taken > 30_000
    first, *rest = pulled(kept)
    assert first == MARK + b"%d %d" % (1000 - len(rest), 900 * (1000 - len(rest)))


def test_a_message_beyond_the_limit_is_missing_and_drops_nothing_else():
    kept = backlog(limit=16_000)
    put(kept, b"before")
    put(kept, bytes(20_000))
    put(kept, bytes(30_000))
    put(kept, b"after")
    assert kept.messages == 4
    assert pulled(kept) == [b"before", MARK + b"2 50000", b"after"]


def test_what_is_too_old_goes():
    kept = backlog(limit=1600, age_ns=24 * HOUR)
    put(kept, b"old" + bytes(97), 0)
    put(kept, b"young", 20 * HOUR)
    kept.expire(24 * HOUR)
    assert kept.messages == 2
    kept.expire(25 * HOUR)
    assert pulled(kept) == [MARK + b"1 100", b"young"]
    put(kept, b"x", 30 * HOUR)
    kept.expire(99 * HOUR)
    kept.expire(199 * HOUR)
    assert pulled(kept) == [MARK + b"1 1"]


def test_a_full_disk_costs_what_it_costs_and_is_not_asked_for_each_message():
    store = FlakyStore()
    kept = backlog(store)
    put(kept, b"first")
    store.full = True
    for _ in range(100):
        put(kept, b"lost", S // 2)
    assert store.attempts == 2
    store.full = False
    put(kept, b"lost too", S)
    put(kept, b"last", 2 * S)
    assert pulled(kept) == [b"first", MARK + b"101 408", b"last"]
    assert kept.taken == 0


def test_a_damaged_piece_is_missing_and_the_next_is_there():
    store = FlakyStore()
    kept = backlog(store, limit=16 * 200)
    put(kept, b"a" * 100)
    put(kept, b"b" * 100)
    put(kept, b"c" * 100)
    assert pulled_one(kept) == b"a" * 100
    store.damage()
    put(kept, b"d" * 100)
    put(kept, b"e" * 100)
    assert pulled(kept) == [MARK + b"1 100", MARK + b"2 200", b"e" * 100]


def pulled_one(kept):
    return bytes(kept.pull()[0])


def test_what_is_allowed_together_binds_each_but_only_its_own_is_dropped():
    together = Allowance(20_000)
    one, other = (backlog(limit=16_000, together=together) for _ in range(2))
    for _ in range(15):
        put(one, bytes(900))
    for _ in range(15):
        put(other, b"%0900d" % 1)
        assert together.taken <= 20_000
    assert one.messages == other.messages == 15
    assert len(pulled(one)) == 15
    first, *rest = pulled(other)
    assert first.startswith(MARK)
    assert len(rest) == 5
    assert together.taken == 0


def test_discarding_says_what_was_there():
    together = Allowance(99_999)
    kept = backlog(limit=2000, together=together)
    for _ in range(20):
        put(kept, bytes(100))
    assert kept.discard() == (20, 2000)
    assert together.taken == kept.taken == kept.messages == 0
    assert not kept.waiting
    put(kept, b"next")
    assert pulled(kept) == [b"next"]


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 1200), st.booleans()),
            st.tuples(st.just("pull"), st.integers(1, 10)),
            st.tuples(st.just("wait"), st.integers(0, 20)),
            st.tuples(st.sampled_from(["full", "empty", "damage"])),
        ),
        max_size=80,
    ),
    limit=st.integers(100, 6000),
)
def test_nothing_is_lost_without_a_word(steps, limit):
    store, now, sent, got, number = FlakyStore(), 0, [], 0, 0
    kept = backlog(store, limit=limit, age_ns=30 * S)

    def take():
        nonlocal got
        body = pulled_one(kept)
        if body.startswith(MARK):
            messages, size = map(int, body[len(MARK) :].split())
            assert messages > 0
            assert size == sum(map(len, sent[got : got + messages]))
            got += messages
        else:
            assert body == sent[got]
            got += 1

    for step in steps:
        match step:
            case ("put", size, away):
                number += 1
                sent.append(b"%d:" % number + bytes(size))
                put(kept, sent[-1], now, away=away)
                kept_here = away and len(sent[-1]) + 64 <= limit
                assert kept.taken <= (limit if kept_here else 2 * limit)
            case ("pull", count):
                for _ in range(count):
                    if kept.waiting:
                        take()
            case ("wait", seconds):
                now += seconds * S
                kept.expire(now)
            case ("damage",):
                store.damage()
            case (what,):
                store.full = what == "full"
        assert kept.messages == len(sent) - got
    while kept.waiting:
        take()
    assert got == len(sent)
    assert kept.taken == 0


# -- behind a window, with a peer that is cut off anywhere


class KeptOutput(TwoTunnels):
    """End 1 is a provider whose output is kept while end 0 is away."""

    LIMIT = 3000

    def __init__(self):
        super().__init__()
        self.store = FlakyStore()
        self.kept = backlog(self.store, limit=self.LIMIT, memory=3 * Window.OVERHEAD)
        self.ends[1] = Tunnel(
            grace_ns=10**9 * S, now=0, limit=6 * Window.OVERHEAD, backlogs={Lane.IOPUB: self.kept}
        )
        self.before = self.frames = self.messages = 0

    def take(self, i, lane, body):
        weight = 1
        if i == 0 and lane is Lane.IOPUB and body.startswith(MARK):
            weight, size = map(int, body[len(MARK) :].split())
            got = self.got[0][lane]
            lost = self.sent[0][lane][len(got) : len(got) + weight]
            assert len(lost) == weight > 0
            assert sum(map(len, lost)) == size
            got.extend(lost)
        else:
            super().take(i, lane, body)
        if i == 0 and lane is Lane.IOPUB and (self.frames or self.messages):
            if self.frames:
                self.frames -= 1
            else:
                self.messages -= min(weight, self.messages)
            came = len(self.got[0][lane])
            assert came >= self.before if not (self.frames or self.messages) else came < self.before

    def flush(self, i):
        if i == 0:
            # Only the first end is told by its peer what was kept.
            for event in self.ends[0]._events:
                if isinstance(event, Opened):
                    kept = event.kept[Lane.IOPUB]
                    self.frames, self.messages = kept.frames, kept.messages
                    if not (self.frames or self.messages):
                        assert len(self.got[0][Lane.IOPUB]) == self.before
        super().flush(i)

    @precondition(lambda self: not self.up)
    @rule()
    def connect(self):
        self.before = len(self.sent[0][Lane.IOPUB])
        super().connect()

    @rule(full=st.booleans())
    def fill_disk(self, full):
        self.store.full = full

    @rule()
    def damage(self):
        self.store.damage()

    @initialize(count=st.integers(0, 40))
    def say_much(self, count):
        for _ in range(count):
            self.send(1, Lane.IOPUB, 100)

    def settle(self):
        super().settle()
        while not self.ends[1].drained(Lane.IOPUB):
            super().settle()

    @invariant()
    def bounded(self):
        assert self.kept.taken <= 2 * self.LIMIT
        if not self.up:
            assert not self.ends[1].full(Lane.IOPUB)


TestKeptOutput = KeptOutput.TestCase
TestKeptOutput.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_a_peer_that_is_there_hears_at_once():
    kept = backlog()
    tunnel, peer = (Tunnel(grace_ns=S, now=0, backlogs=backlogs) for backlogs in ({Lane.IOPUB: kept}, None))
    for end in (tunnel, peer):
        end.attach(0)
    hello, answer = tunnel.frames_to_send(), peer.frames_to_send()
    peer.receive(hello[0], 0)
    tunnel.receive(answer[0], 0)
    tunnel.send(Lane.IOPUB, [bytes(10_000)], 0)
    assert len(tunnel.frames_to_send()) == 1
    assert not kept.waiting


def test_a_closed_tunnel_leaves_nothing_behind():
    kept = backlog()
    tunnel = Tunnel(grace_ns=S, now=0, backlogs={Lane.IOPUB: kept})
    for _ in range(10):
        tunnel.send(Lane.IOPUB, [bytes(1000)], 0)
    assert kept.waiting
    tunnel.handle_timer(S)
    assert not kept.waiting
    assert kept.taken == 0


def test_a_peer_that_lost_its_memory_gets_what_is_kept_too():
    kept = backlog(memory=600)
    tunnel = Tunnel(grace_ns=S, now=0, backlogs={Lane.IOPUB: kept})
    for i in range(10):
        tunnel.send(Lane.IOPUB, [b"%d" % i], 0)
    assert kept.messages == 8
    tunnel, peer = tunnel.renewed(0), Tunnel(grace_ns=S, now=0)
    for end in (tunnel, peer):
        end.attach(0)
    peer.receive(tunnel.frames_to_send()[0], 0)
    assert next_opened(peer).kept[Lane.IOPUB].messages == 8
    tunnel.receive(peer.frames_to_send()[0], 0)
    got, now = [], 0
    while frames := tunnel.frames_to_send():
        for frame in frames:
            peer.receive(frame, now)
            got.append(bytes(frame.parts[0]))
        now += S
        peer.handle_timer(now)
        for ack in peer.frames_to_send():
            tunnel.receive(ack, now)
    assert got == [b"%d" % i for i in range(10)]


def next_opened(end):
    while not isinstance(event := end.next_event(), Opened):
        assert event is not None
    return event


# -- in a window


def test_what_was_kept_goes_to_the_peer_while_the_kernel_runs_on():
    """On a slow link more is kept than a lane may hold, and reading it all may take minutes, each of them paid."""
    kept = backlog(limit=1 << 20, memory=50_000)
    tunnel = Tunnel(grace_ns=10**9 * S, now=0, limit=10_000, backlogs={Lane.IOPUB: kept})
    for i in range(500):
        tunnel.send(Lane.IOPUB, [b"%04d" % i, bytes(1000)], 0)
    tunnel.attach(S)
    tunnel.receive(Resume(dict.fromkeys(Lane, 0)), S)
    assert tunnel.held >= 50_000
    assert not tunnel.full(Lane.IOPUB)
    for count in range(1, 501):
        tunnel.receive(Ack({Lane.IOPUB: count}), 2 * S)
        if kept.waiting:
            assert not tunnel.full(Lane.IOPUB), f"full after {count}"
    # From here on it is a lane like others.
    while not tunnel.full(Lane.IOPUB):
        tunnel.send(Lane.IOPUB, [bytes(1000)], 3 * S)
    assert tunnel.held < 12_000


def test_many_empty_parts_count_too():
    """Thirty thousand of them are a megabyte in memory, and a hundred kilobytes on disk."""
    kept = backlog(limit=1 << 20, memory=1000)
    tunnel = Tunnel(grace_ns=10**9 * S, now=0, limit=4 << 20, backlogs={Lane.IOPUB: kept})
    for _ in range(100):
        tunnel.send(Lane.IOPUB, [b""] * MAX_PARTS, 0)
    assert kept.taken <= 1 << 20
    assert kept.messages == 100
    plain = Tunnel(grace_ns=10**9 * S, now=0, limit=4 << 20)
    for _ in range(3):
        plain.send(Lane.IOPUB, [b""] * MAX_PARTS, 0)
    assert plain.full(Lane.IOPUB)
