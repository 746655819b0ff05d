"""Frames survive any chunking; whatever a hostile peer writes gives one kind of error and bounded memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import (
    MAX_FRAME,
    MAX_MESSAGE,
    MAX_PARTS,
    MOST_AT_ONCE,
    Ack,
    Control,
    Data,
    DataDecoder,
    Lane,
    MessageDecoder,
    Ping,
    Pong,
    Resume,
    encode_data,
    encode_message,
)

HEAD = struct.Struct(">QH")

parts = st.lists(st.binary(max_size=40), min_size=1, max_size=6)
data_frames = st.builds(
    lambda seq, bodies: Data(Lane.SHELL, seq, bodies, sum(map(len, bodies))), st.integers(0, 2**64 - 1), parts
)
counts = st.dictionaries(st.integers(0, 5), st.integers(0, 2**64 - 1))
controls = st.one_of(
    st.builds(Resume, counts),
    st.builds(Ack, counts),
    st.builds(Ping, st.integers(0, 2**63)),
    st.builds(Pong, st.integers(0, 2**63)),
)


def joined(frame: Data) -> bytes:
    return b"".join(bytes(piece) for piece in encode_data(frame))


def chunks(whole: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(edges)]


def plain(frame: Data) -> tuple[Lane, int, list[bytes], int]:
    return frame.lane, frame.seq, [bytes(part) for part in frame.parts], frame.size


@given(st.lists(data_frames, max_size=5), st.lists(st.integers(0, 10**6), max_size=12))
def test_data_arrives_however_its_bytes_are_cut(frames, cuts):
    decoder = DataDecoder(Lane.SHELL)
    got = [frame for piece in chunks(b"".join(map(joined, frames)), cuts) for frame in decoder.feed(piece)]
    assert list(map(plain, got)) == list(map(plain, frames))


@given(st.lists(data_frames, min_size=1, max_size=3))
def test_data_arrives_byte_by_byte(frames):
    decoder = DataDecoder(Lane.SHELL)
    whole = b"".join(map(joined, frames))
    got = [frame for i in range(len(whole)) for frame in decoder.feed(whole[i : i + 1])]
    assert list(map(plain, got)) == list(map(plain, frames))


@given(st.lists(controls, max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_messages_arrive_however_their_bytes_are_cut(messages, cuts):
    decoder: MessageDecoder[Control] = MessageDecoder(Control)
    got = [m for piece in chunks(b"".join(map(encode_message, messages)), cuts) for m in decoder.feed(piece)]
    assert got == messages


@given(controls, st.integers(0, 100))
def test_missing_never_reaches_beyond_the_message(message, cut):
    """The handshake reads by it: a byte too much would be taken from the tunnel that follows."""
    whole = encode_message(message)
    decoder: MessageDecoder[Control] = MessageDecoder(Control)
    fed = 0
    while fed < len(whole):
        assert 0 < decoder.missing <= len(whole) - fed
        step = min(decoder.missing, 1 + cut)
        decoder.feed(whole[fed : fed + step])
        fed += step
    assert decoder.missing == 4


def test_a_buffer_crosses_the_encoder_and_the_decoder_uncopied():
    body = bytearray(10 << 20)
    view = memoryview(body)
    pieces = encode_data(Data(Lane.IOPUB, 0, [b"head", view, b""], len(body) + 4))
    assert pieces[2] is view
    assert len(pieces) == 3
    tracemalloc.start()
    encode_data(Data(Lane.IOPUB, 1, [b"head", view], len(body) + 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16


def test_small_frames_are_one_piece_each():
    assert len(encode_data(Data(Lane.SHELL, 0, [b"a", b"", b"b"], 2))) == 1


def test_empty_parts_are_kept():
    big = bytes(1 << 17)
    for bodies in ([b""], [b"", b"", b""], [b"", big, b""]):
        frame = Data(Lane.SHELL, 1, bodies, sum(map(len, bodies)))
        assert [plain(f) for f in DataDecoder(Lane.SHELL).feed(joined(frame))] == [plain(frame)]


@pytest.mark.parametrize(
    "head",
    [
        HEAD.pack(0, 1) + struct.pack(">I", 2**32 - 1),
        HEAD.pack(0, 1) + struct.pack(">I", MAX_FRAME + 1),
        HEAD.pack(0, 2) + struct.pack(">2I", MAX_FRAME, 1),
        HEAD.pack(0, MAX_PARTS) + struct.pack(">I", 2**20) * MAX_PARTS,
        HEAD.pack(0, MAX_PARTS + 1),
        HEAD.pack(0, 2**16 - 1),
        HEAD.pack(0, 0),
    ],
    ids=["4 GiB", "just too long", "too long in all", "many long parts", "many parts", "most parts", "none"],
)
def test_giant_frames_are_refused_before_a_byte_of_them_is_kept(head):
    decoder = DataDecoder(Lane.SHELL)
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_giant_message_is_refused_before_a_byte_of_it_is_kept():
    decoder: MessageDecoder[Control] = MessageDecoder(Control)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(struct.pack(">I", MAX_MESSAGE + 1))
    assert MessageDecoder[Control](Control).feed(struct.pack(">I", MAX_MESSAGE)) == []


def test_a_frame_that_is_announced_but_never_comes_holds_no_memory():
    decoder = DataDecoder(Lane.SHELL)
    tracemalloc.start()
    assert decoder.feed(HEAD.pack(0, 1) + struct.pack(">I", MAX_FRAME) + b"only this") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16


EVIL = [
    b'{"type":"ping","nonce":' + b"9" * 5000 + b"}",
    b'{"type":"ping","nonce":1e999}',
    b'{"type":"ping","nonce":"1"}',
    b'{"type":"ping"}',
    b'{"type":"pang","nonce":1}',
    b'{"type":"ping","nonce":1,"x":' + b"[" * 200_000,
    b"[" * 200_000,
    b'{"type":"resume","received":{"x":1}}',
    b'{"type":"resume","received":{"1":-0.5}}',
    b'{"type":"resume","received":[1]}',
    b"\xff\xfe",
    b"null",
    b"",
]


@pytest.mark.parametrize("body", EVIL, ids=lambda body: body[:40].decode(errors="replace"))
def test_an_unreadable_message_is_the_peers_fault(body):
    with pytest.raises(RemoteProtocolError):
        MessageDecoder[Control](Control).feed(struct.pack(">I", len(body)) + body)


def test_an_older_peer_may_lack_fields_and_a_newer_one_may_bring_more():
    body = msgspec.json.encode({"type": "ping", "nonce": 4, "colour": "blue"})
    assert MessageDecoder[Control](Control).feed(struct.pack(">I", len(body)) + body) == [Ping(4)]


def mutated(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        match rng.randrange(4):
            case 0 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1 if data:
                del data[rng.randrange(len(data)) :]
            case 2:
                at = rng.randint(0, len(data))
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                data += rng.randbytes(rng.randint(0, 30))
    return bytes(data)


def feed_hostile(decoder: DataDecoder | MessageDecoder[Control], data: bytes, rng: random.Random) -> int:
    """Feed in two pieces; 1 if it was refused. Anything but the one error fails the test."""
    cut = rng.randint(0, len(data))
    try:
        decoder.feed(data[:cut])
        decoder.feed(data[cut:])
    except RemoteProtocolError:
        return 1
    return 0


def test_a_hundred_thousand_hostile_streams_give_one_kind_of_error():
    rng = random.Random(20)
    good_data = joined(Data(Lane.SHELL, 3, [b"abc", b"", b"defgh"], 8))
    good_message = encode_message(Resume({0: 5, 3: 9})) + encode_message(Pong(3))
    refused = 0
    tracemalloc.start()
    for i in range(25_000):
        for decoder, data in (
            (DataDecoder(Lane.SHELL), mutated(rng, good_data)),
            (MessageDecoder[Control](Control), mutated(rng, good_message)),
            (DataDecoder(Lane.SHELL), rng.randbytes(i % 90)),
            (MessageDecoder[Control](Control), rng.randbytes(i % 90)),
        ):
            refused += feed_hostile(decoder, data, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 40_000
    assert peak < 4 << 20


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_what_was_understood_can_be_said_again(noise):
    decoder = DataDecoder(Lane.SHELL)
    try:
        frames = decoder.feed(noise)
    except RemoteProtocolError:
        return
    assert noise.startswith(b"".join(map(joined, frames)))


def test_so_many_frames_come_at_a_time_and_none_is_lost():
    wire = b"".join(struct.pack(">QHI", seq, 1, 1) + b"x" for seq in range(3 * MOST_AT_ONCE + 7))
    decoder = DataDecoder(Lane.SHELL)
    for middle in (0, 20_000, 20_003):
        decoder = DataDecoder(Lane.SHELL)
        got = []
        for piece in (wire[:middle], wire[middle:]):
            batch = decoder.feed(piece)
            got += batch
            while decoder.more:
                assert len(batch) == MOST_AT_ONCE
                batch = decoder.feed(b"")
                got += batch
        assert [frame.seq for frame in got] == list(range(3 * MOST_AT_ONCE + 7))
        assert decoder.between
