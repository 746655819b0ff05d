"""docs/protocol.md says what the code does: its generated parts are up to date, and its vectors are read as they stand."""

from __future__ import annotations

import re
import typing

import pytest

from jupyter_depin.protocol.compressed import LaneDecoder
from jupyter_depin.protocol.frames import Control, Lane, MessageDecoder
from jupyter_depin.protocol.messages import Answer, Request
from tests.protocol import document

TEXT = document.FILE.read_text("utf-8")


def test_the_document_is_up_to_date():
    assert document.renewed(TEXT) == TEXT, "run: python -m tests.protocol.document --write"


def test_every_part_stands_in_the_document():
    assert set(re.findall(r"<!-- generated: (\w+) -->", TEXT)) == set(document.PARTS)


def test_every_word_of_the_wire_stands_in_it():
    kinds = [kind for union in document.GROUPS.values() for kind in typing.get_args(union) or (union,)]
    for kind in (*kinds, *document.unnamed()):
        assert f"#### {document.tagged(kind)}" in TEXT


@pytest.mark.parametrize("name", document.vectors())
def test_a_vector_is_read_as_it_stands(name):
    raw = document.vectors()[name]
    assert raw.hex() in TEXT
    if raw[4:5] == b"{":
        (word,) = MessageDecoder(Control | Request | Answer).feed(raw)
        assert f"({type(word).__name__})" in name
    elif name.startswith(("data frame", "the same data frame")):
        decoder = LaneDecoder(Lane.SHELL)
        frames = decoder.feed(raw)
        while decoder.more:
            frames += decoder.feed(b"")
        assert [(frame.seq, list(frame.parts)) for frame in frames] == [(5, [b"\0\0\0\1", b"", b"who"])]


def test_a_link_within_the_document_leads_somewhere():
    heads = {
        re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= heads
