"""Compressed stretches come and go between frames; a peer that lies in them gets one kind of error and little memory."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.compressed import MAX_COMPRESSED, Compressor, LaneDecoder
from jupyter_depin.protocol.frames import COMPRESSED, Data, Lane, encode_data

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEAD = struct.Struct(">QH")

frames = st.lists(
    st.builds(
        lambda seq, parts: Data(Lane.IOPUB, seq, parts, sum(map(len, parts))),
        st.integers(0, 2**64 - 1),
        st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    ),
    max_size=5,
)
stretches = st.lists(st.tuples(st.booleans(), frames), max_size=5)


def written(stretches: list[tuple[bool, list[Data]]]) -> bytes:
    out = b""
    for compressed, inside in stretches:
        pieces = [piece for frame in inside for piece in encode_data(frame)]
        if compressed:
            compressor = Compressor()
            out += (
                b"".join(compressor.pack([piece]) for piece in pieces)
                + compressor.pack([])
                + compressor.end()
            )
        else:
            out += b"".join(pieces)
    return out


def read(decoder: LaneDecoder, data: bytes) -> list[Data]:
    got = decoder.feed(data)
    while decoder.more:
        got += decoder.feed(b"")
    return got


def bare(frames: list[Data]) -> list[tuple[int, list[bytes]]]:
    return [(frame.seq, [bytes(part) for part in frame.parts]) for frame in frames]


@pytest.mark.parametrize("small", [False, True])
def test_little_and_much_memory_are_read_alike(small):
    compressor, decoder = Compressor(small=small), LaneDecoder(Lane.PAYMENT)
    for seq in range(100):
        word = os.urandom(1000)
        (frame,) = read(decoder, compressor.pack(encode_data(Data(Lane.PAYMENT, seq, [word], 1000))))
        assert bytes(frame.parts[0]) == word


@given(stretches, st.integers(1, 60))
def test_plain_and_compressed_stretches_arrive_however_their_bytes_are_cut(stretches, step):
    decoder, whole, got = LaneDecoder(Lane.IOPUB), written(stretches), []
    for at in range(0, len(whole), step):
        got += read(decoder, whole[at : at + step])
    assert bare(got) == bare([frame for _, inside in stretches for frame in inside])


def test_a_batch_is_readable_before_the_next_one_is_written():
    compressor, decoder = Compressor(), LaneDecoder(Lane.IOPUB)
    for seq in range(3):
        packed = compressor.pack(encode_data(Data(Lane.IOPUB, seq, [b"the same words"], 14)))
        assert [frame.seq for frame in read(decoder, packed)] == [seq]


def test_what_repeats_itself_costs_little_and_the_sparing_is_counted():
    compressor, decoder = Compressor(), LaneDecoder(Lane.IOPUB)
    bar = os.urandom(400).hex().encode()
    raw = wire = 0
    for seq in range(50):
        pieces = encode_data(Data(Lane.IOPUB, seq, [bar, b"%d" % seq], len(bar) + len(b"%d" % seq)))
        packed = compressor.pack(pieces)
        raw, wire = raw + sum(map(len, pieces)), wire + len(packed)
        read(decoder, packed)
    assert wire < raw / 20
    assert decoder.spared == raw - wire + len(COMPRESSED)


def lie(body: bytes, lane: Lane = Lane.IOPUB) -> None:
    with pytest.raises(RemoteProtocolError):
        read(LaneDecoder(lane), COMPRESSED + body)


@given(st.binary(min_size=5, max_size=200))
def test_noise_is_the_peers_fault(noise):
    decoder = LaneDecoder(Lane.IOPUB)
    try:
        read(decoder, COMPRESSED + noise + bytes(64))
    except RemoteProtocolError:
        return
    assert not decoder.more


def test_a_bomb_ends_the_connection_before_it_is_unpacked():
    bomb = zstd.compress(bytes(1 << 28), 3)
    assert len(bomb) < 1 << 16
    tracemalloc.start()
    try:
        lie(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_few_bytes_cannot_promise_a_giant_message():
    head = HEAD.pack(0, 1) + struct.pack(">I", MAX_COMPRESSED + 1)
    lie(Compressor().pack([head])[len(COMPRESSED) :])
    lie(Compressor().pack([HEAD.pack(0, 1) + struct.pack(">I", 2 << 20)])[len(COMPRESSED) :], Lane.LEASE)


def test_many_messages_in_few_bytes_come_in_bounded_steps():
    frame = encode_data(Data(Lane.IOPUB, 0, [bytes(1000)], 1000))[0]
    packed = Compressor().pack([frame * 20_000])
    assert len(packed) < 1 << 14
    decoder = LaneDecoder(Lane.IOPUB)
    counts = [len(decoder.feed(packed))]
    while decoder.more:
        counts.append(len(decoder.feed(b"")))
    assert sum(counts) == 20_000
    assert max(counts) <= (1 << 20) // 1000 + 1


def test_a_window_beyond_the_bound_is_refused():
    big = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    lie(big.compress(os.urandom(1 << 16), big.FLUSH_BLOCK))


def test_a_stretch_neither_nests_nor_ends_within_a_message():
    lie(zstd.compress(COMPRESSED))
    lie(zstd.compress(encode_data(Data(Lane.IOPUB, 0, [b"words"], 5))[0][:-1]))


def test_the_plain_bounds_hold_again_after_a_stretch():
    decoder = LaneDecoder(Lane.IOPUB)
    read(decoder, written([(True, [])]) + HEAD.pack(0, 1) + struct.pack(">I", MAX_COMPRESSED + 1))
    assert not decoder.more
