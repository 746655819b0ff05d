"""Memory for big messages (`jupyter_depin.protocol.room`): used again, and never while anybody looks at it."""

from __future__ import annotations

import os
import random

import pytest

from jupyter_depin.protocol.room import Rooms

BIG = 4 << 20


def test_what_nobody_looks_at_any_more_is_used_again():
    rooms = Rooms()
    first = rooms.room(BIG)
    first[:5] = b"there"
    del first
    assert bytes(rooms.room(BIG)[:5]) == b"there"


def test_a_slice_of_it_keeps_it_from_others():
    rooms = Rooms()
    first = rooms.room(BIG)
    seen = first[100:105]
    seen[:] = b"there"
    del first
    others = [rooms.room(BIG) for _ in range(10)]
    for other in others:
        other[:] = bytes(BIG)
    assert bytes(seen) == b"there"


def test_rooms_in_use_never_overlap():
    rooms, chance = Rooms(), random.Random(1)
    held: dict[int, memoryview] = {}
    for number in range(1, 200):
        size = chance.choice([1000, 1 << 20, 3 << 20, 5 << 20])
        held[number] = room = rooms.room(size)
        assert len(room) == size
        room[:4] = room[-4:] = number.to_bytes(4, "big")
        del room
        while len(held) > chance.randrange(1, 8):
            del held[chance.choice(list(held))]
        for mark, kept in held.items():
            assert bytes(kept[:4]) == bytes(kept[-4:]) == mark.to_bytes(4, "big")


def test_little_is_kept():
    rooms = Rooms()
    for _ in range(5):
        rooms.room(64 << 20)
    for _ in range(100):
        rooms.room(1 << 20)
    assert sum(map(len, rooms._kept)) <= 160 << 20
    assert len(rooms._kept) <= 4


def test_a_giant_length_takes_no_memory():
    """Sixty-four times a gibibyte would not fit on a small machine, if it took room before it is filled."""
    rooms = Rooms()
    giants = [rooms.room(1 << 30) for _ in range(64)]
    for giant in giants:
        giant[-1] = 1
    assert len(giants) == 64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that share their memory's begin are Unix'")
def test_a_process_that_this_one_forks_sees_nothing_of_it():
    room = Rooms().room(BIG)
    room[:5] = b"there"
    child = os.fork()
    if not child:
        room[:5] = b"other"
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(room[:5]) == b"there"
