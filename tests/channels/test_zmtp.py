"""The wire protocol of ZeroMQ (`jupyter_depin.channels.zmtp`), with whole, torn and lying peers."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.channels.zmtp import (
    NULL,
    Command,
    Decoder,
    Oversize,
    check_greeting,
    command,
    encode,
    greeting,
    introduced,
    properties,
    read_properties,
)
from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import MAX_PARTS


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


HEAD = greeting(NULL, server=False)


def short(flags: int, content: bytes) -> bytes:
    """A frame as written by hand."""
    return bytes((flags, len(content))) + content


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7e",
        b"\xff" + bytes(8) + b"\x7f\x01",
        b"\x01\x00",
    ],
)
def test_somebody_else_is_known_by_the_first_words_and_not_waited_for(data):
    with pytest.raises(RemoteProtocolError):
        fed(data, [])


@pytest.mark.parametrize("version", [0, 1, 9])
def test_a_greeting_of_any_later_version_is_taken_whole_or_in_pieces(version):
    later = HEAD[:11] + bytes((version,)) + HEAD[12:]
    assert check_greeting(later, NULL) is (version > 0)
    for cut in range(len(later)):
        assert fed(later + short(0, b"hello"), [cut]) == [[b"hello"]]


def test_nothing_is_understood_before_the_greeting():
    decoder = Decoder(memoryview(bytearray(1 << 15)))
    ready = command(b"READY", properties(b"DEALER"))
    space = decoder.space()
    space[: len(ready)] = ready
    decoder.filled(len(ready))
    assert decoder.next() is None
    with pytest.raises(RemoteProtocolError):
        decoder.greeting()


def test_commands_come_between_the_frames_of_a_message_and_do_not_tear_it():
    ping = command(b"PING", b"\0\0context")
    big = bytes(70_000)
    sent = [short(1, b"a"), ping, b"\x03" + len(big).to_bytes(8, "big") + big, ping, short(0, b"c")]
    wanted = [Command(b"PING", b"\0\0context")] * 2 + [[b"a", big, b"c"]]
    data = HEAD + b"".join(sent)
    for cut in (0, 64, 66, 67, 70, 90, 120, len(data) - 3, len(data) - 1):
        assert fed(data, [cut]) == wanted


@pytest.mark.parametrize(
    "frame",
    [
        short(5, b"\x04PING\0\0"),
        short(4, b""),
        short(4, b"\x09PING"),
        short(8, b"reserved"),
        b"\x06" + (1 << 20).to_bytes(8, "big"),
        b"\x02" + ((1 << 20) + 1).to_bytes(8, "big"),
        b"\x03" + b"\xff" * 8,
    ],
    ids=[
        "command with more",
        "no name",
        "name too long",
        "reserved flag",
        "long command",
        "too long",
        "endless",
    ],
)
def test_frames_that_nobody_may_send_end_the_connection_at_their_head(frame):
    with pytest.raises(RemoteProtocolError):
        fed(HEAD + frame, [])


@pytest.mark.parametrize("cuts", [[], [100], [5_000, 9_000]])
def test_more_than_is_carried_is_told_by_its_size_and_the_next_message_comes(cuts):
    parts = [bytes(200)] * 60
    data = HEAD + b"".join(bytes(piece) for piece in [*encode(parts), *encode([b"next"])])
    assert fed(data, cuts, longest=11_999) == [Oversize(12_000, 60), [b"next"]]
    assert fed(data, cuts, longest=12_000) == [parts, [b"next"]]


@pytest.mark.parametrize("cuts", [[], [1_000], [64 + 2 * MAX_PARTS]])
def test_a_message_of_too_many_parts_is_left_out(cuts):
    data = HEAD + short(1, b"") * MAX_PARTS + short(0, b"") + short(0, b"next")
    assert fed(data, cuts) == [Oversize(0, MAX_PARTS + 1), [b"next"]]


def test_what_is_left_of_a_read_outlives_the_reads_of_others():
    """Loops ask where to read to, and then may find nothing to read: another connection is next."""
    shared = memoryview(bytearray(1 << 15))

    def read(decoder: Decoder, data: bytes) -> None:
        decoder.space()[: len(data)] = data
        decoder.filled(len(data))
        decoder.greeting()

    mine, theirs = Decoder(shared), Decoder(shared)
    for cut in (1, 5, 200):
        whole = HEAD if cut == 1 else b""
        message = short(0, bytes(range(200)))
        read(mine, whole + message[:cut])
        assert mine.next() is None
        mine.park()
        mine.space()
        read(theirs, (HEAD if cut == 1 else b"") + short(0, b"x" * 250))
        assert theirs.next() == [b"x" * 250]
        theirs.park()
        read(mine, message[cut:])
        assert mine.next() == [bytes(range(200))]
        mine.park()


def test_properties_are_read_whatever_the_case_of_their_names():
    said = properties(b"DEALER", b"me").replace(b"Identity", b"IDENTITY")
    assert read_properties(said) == {b"socket-type": b"DEALER", b"identity": b"me"}
    assert read_properties(b"") == {}


@pytest.mark.parametrize("data", [b"\x05", b"\x01a\0\0\0", b"\x01a\0\0\0\x02b", b"\x01a\xff\xff\xff\xffb"])
def test_properties_that_end_early_are_refused(data):
    with pytest.raises(RemoteProtocolError):
        read_properties(data)


def test_who_is_introduced():
    assert introduced(properties(b"DEALER", b"me"), b"ROUTER") == b"me"
    assert introduced(properties(b"REQ"), b"ROUTER") == b""
    assert introduced(properties(b"XSUB", b"me"), b"XPUB") == b"", "subscribers may be called as they like"
    lies = [
        properties(b"PUB"),
        properties(b"DEALER", b"\0one of ours"),
        properties(b"DEALER", bytes([65]) * 256),
        properties(b""),
        b"",
    ]
    for lie in lies:
        with pytest.raises(RemoteProtocolError):
            introduced(lie, b"ROUTER")
