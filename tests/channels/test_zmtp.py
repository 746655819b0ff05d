"""The wire protocol of ZeroMQ (`jupyter_depin.channels.zmtp`), with whole, torn and lying peers."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.channels.zmtp import NULL, Decoder, check_greeting, encode, greeting
from jupyter_depin.errors import RemoteProtocolError


def fed(data: bytes, cuts: list[int], longest: int = 1 << 20) -> list[object]:
    """What a decoder makes of bytes that come in pieces."""
    decoder = Decoder(memoryview(bytearray(1 << 15)), longest)
    got: list[object] = []
    at = 0
    greeted = False
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        while at < cut:
            space = decoder.space()
            count = min(len(space), cut - at)
            space[:count] = data[at : at + count]
            at += count
            decoder.filled(count)
            greeted = greeted or decoder.greeting() is not None
            while (item := decoder.next()) is not None:
                got.append(item)
            decoder.park()
    return got


sizes = st.one_of(st.integers(0, 300), st.sampled_from([255, 256, 16383, 16384, 70_000]))


@given(st.lists(st.lists(sizes, min_size=1, max_size=5), max_size=5), st.randoms(use_true_random=False))
def test_messages_come_whole_wherever_their_bytes_are_torn(messages, chance):
    sent = [[random.Random(size).randbytes(size) for size in parts] for parts in messages]
    data = greeting(NULL, server=False) + b"".join(bytes(p) for parts in sent for p in encode(parts))
    cuts = [chance.randrange(len(data) + 1) for _ in range(chance.randrange(6))]
    got = fed(data, cuts)
    assert [[bytes(part) for part in parts] for parts in got] == sent


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_whatever_a_peer_says_only_ends_its_connection(data, cuts):
    for head in (b"", greeting(NULL, server=False)):
        with suppress(RemoteProtocolError):
            fed(head + data, cuts)


def test_somebody_who_speaks_another_protocol_is_refused():
    for data in (b"GET / HTTP/1.1\r\n".ljust(64), greeting(b"PLAIN", server=False), bytes(64)):
        with pytest.raises(RemoteProtocolError):
            check_greeting(data, NULL)
