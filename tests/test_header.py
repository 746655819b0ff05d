"""What is read of a Jupyter message, and what a message that is none says."""

from __future__ import annotations

import pytest

from jupyter_depin.channels.header import header, is_reply_to_cell, is_stream, parent


def message(kind, parent=b"{}", *identities):
    return [*identities, b"<IDS|MSG>", b"signature", b'{"msg_type": "%s"}' % kind, parent, b"{}", b"{}"]


@pytest.mark.parametrize("identities", [(), (b"kernel.stream.stdout",), (b"one", b"<IDS", b"")])
def test_the_header_and_its_parents_are_found_behind_any_identities(identities):
    parts = message(b"stream", b'{"msg_id": "7"}', *identities)
    assert header(parts) == b'{"msg_type": "stream"}'
    assert parent(parts) == b'{"msg_id": "7"}'
    assert is_stream(parts)
    assert not is_reply_to_cell(parts)
    assert is_reply_to_cell(message(b"execute_reply", b"{}", *identities))


@pytest.mark.parametrize(
    "parts", [[], [b"x"], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"", b"h"[:0]], [b"a", b"b", b"c", b"d", b"e"]]
)
def test_what_is_no_message_has_none(parts):
    assert header(parts) == parent(parts) == b""
    assert not is_stream(parts)


def test_a_header_beyond_all_measure_is_not_read():
    parts = message(b"stream")
    parts[2] = b'"stream"' + bytes(5000)
    assert header(parts) == b""
