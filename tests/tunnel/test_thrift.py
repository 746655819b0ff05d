"""A slow link is found slow, whatever its round trip; a fast one, a cut one and a peer that does not read are not."""

from __future__ import annotations

import itertools

import pytest

from jupyter_depin.protocol.compressed import MAX_COMPRESSED
from jupyter_depin.tunnel.thrift import (
    BUSY_BYTES,
    FAR_BYTES,
    FAR_MS,
    IN_A_ROW,
    LONGEST_NS,
    STAY_NS,
    Count,
    Thrift,
)

S = 10**9
MBIT = 125_000


class Link:
    """A link with a clock: messages wait for it, and are acknowledged as it carries them."""

    def __init__(self, rate: int, wish: str = "auto") -> None:
        self.rate, self.thrift = rate, Thrift(wish)
        self.now = self.taken = self.written = self.spared = self.waiting = 0
        self.squeeze = 5

    def count(self) -> Count:
        return Count(self.now, self.taken, self.written, self.spared)

    def send(self, size: int) -> None:
        wire = size // self.squeeze if self.thrift.on else size
        self.waiting += size
        self.written += wire
        self.spared += size - wire
        if size >= BUSY_BYTES:
            self.thrift.moved(self.count(), self.waiting)

    def carry(self, seconds: float, *, acks_per_s: int = 10) -> None:
        """Let time pass; the peer acknowledges what came."""
        for _ in range(round(seconds * acks_per_s)):
            self.now += S // acks_per_s
            carried = self.rate * (self.squeeze if self.thrift.on else 1) // acks_per_s
            if took := min(self.waiting, carried):
                self.taken, self.waiting = self.taken + took, self.waiting - took
                self.thrift.moved(self.count(), self.waiting)

    def busy(self, seconds: int) -> None:
        for _ in range(seconds):
            self.send(1 << 22 if self.rate > MBIT * 8 else 1 << 19)
            self.carry(1)


@pytest.mark.parametrize(("mbit", "slow"), [(0.1, True), (1, True), (1.8, True), (3, False), (100, False)])
def test_a_busy_link_is_judged_within_seconds(mbit, slow):
    link = Link(round(mbit * MBIT))
    link.busy(8)
    assert link.thrift.on is slow


def test_pictures_with_pauses_on_a_slow_link_are_enough():
    link = Link(MBIT // 2)
    for _ in range(4):
        link.send(100_000)
        # One message is acknowledged as a whole.
        link.carry(2, acks_per_s=1)
        link.carry(30)
    assert link.thrift.on


def test_small_words_on_a_long_way_are_no_sign():
    link = Link(10 * MBIT)
    for _ in range(100):
        link.send(300)
        link.carry(3, acks_per_s=1)
    assert not link.thrift.on


def test_a_peer_that_does_not_read_is_not_slow():
    link = Link(100 * MBIT)
    for _ in range(10):
        link.send(1 << 20)
        link.now += 60 * S
        link.send(1 << 20)
        link.carry(1)
    assert not link.thrift.on


def test_a_cut_is_not_slow():
    link = Link(100 * MBIT)
    for _ in range(10):
        link.send(1 << 20)
        link.now += 60 * S
        link.thrift.cut()
        link.carry(1, acks_per_s=100)
    assert not link.thrift.on


def test_a_link_that_is_fast_again_is_tried_after_minutes_and_stays_plain():
    link = Link(MBIT)
    link.busy(10)
    assert link.thrift.on
    link.rate = 100 * MBIT
    link.busy(60)
    assert link.thrift.on
    link.busy(STAY_NS // S)
    assert not link.thrift.on
    link.busy(100)
    assert not link.thrift.on


def test_each_failed_trial_makes_the_next_one_wait_longer():
    link = Link(MBIT)
    link.busy(10)
    plain = []
    for _ in range(5000):
        was = link.thrift.on
        # Compression makes the rest small, so that nothing is measured: only a trial can tell.
        link.send(1 << 18 if not was else 1 << 10)
        link.carry(1)
        if was and not link.thrift.on:
            plain.append(link.now)
    waits = [b - a for a, b in itertools.pairwise(plain)]
    assert len(waits) >= 3
    assert waits == sorted(waits)
    assert STAY_NS < waits[0] < waits[-1] < LONGEST_NS + 60 * S


def test_compression_does_not_make_a_link_look_fast():
    link = Link(MBIT)
    link.busy(10)
    link.squeeze = 50
    for _ in range(400):
        link.send(1 << 23)
        link.carry(1)
        assert link.thrift.on


def test_one_slow_second_is_no_slow_link():
    link = Link(MBIT)
    link.busy(IN_A_ROW - 1)
    link.rate = 100 * MBIT
    link.busy(5)
    assert not link.thrift.on


@pytest.mark.parametrize(
    ("own", "asked", "on"),
    [
        ("auto", "auto", False),
        ("on", "off", True),
        ("off", "on", False),
        ("auto", "on", True),
        ("auto", "off", False),
    ],
)
def test_this_ends_wish_goes_before_the_peers_and_both_before_the_measure(own, asked, on):
    link = Link(100 * MBIT, own)
    link.thrift.asked = asked
    assert link.thrift.on is on
    link.rate = MBIT // 4
    link.busy(20)
    assert link.thrift.on is (on or own == asked == "auto")


@pytest.mark.parametrize(
    ("wish", "asked", "rtt_ms", "most"),
    [
        ("auto", "auto", FAR_MS - 1, 0),
        ("auto", "auto", FAR_MS, FAR_BYTES),
        ("auto", "off", FAR_MS, 0),
        ("off", "auto", FAR_MS, 0),
        ("on", "auto", 0.0, MAX_COMPRESSED),
        ("auto", "on", FAR_MS, MAX_COMPRESSED),
    ],
)
def test_on_a_long_way_small_messages_are_compressed_unless_anybody_minds(wish, asked, rtt_ms, most):
    thrift = Thrift(wish)
    thrift.asked = asked
    thrift.way(rtt_ms)
    assert thrift.most == most


def test_a_way_that_became_short_again_is_left_alone():
    thrift = Thrift()
    thrift.way(200.0)
    thrift.way(10.0)
    assert thrift.most == 0
