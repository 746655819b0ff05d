"""Whatever a kernel says and wherever it is held up, a notebook shows the same, with fewer and valid messages."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session

from jupyter_depin.coalescing import coalescer as coalescer_module
from jupyter_depin.coalescing.coalescer import Coalescer
from jupyter_depin.coalescing.said import Writer, read
from jupyter_depin.coalescing.text import folded
from tests.coalescing.notebook import KEY, Notebook, terminal

SESSION = Session(key=KEY)
SESSION.digest_history_size = 0


def message(kind: str, content: dict[str, Any], cell: str = "a") -> list[bytes]:
    wire = SESSION.serialize(
        SESSION.msg(kind, content, parent={"msg_id": cell, "session": "s"}), ident=b"topic"
    )
    return [bytes(part) for part in wire]


def shown(messages: list[Any]) -> Notebook:
    """A notebook that got these messages; each must be signed with the kernel's key."""
    notebook, session = Notebook(), Session(key=KEY)
    for parts in messages:
        _, rest = session.feed_identities([bytes(part) for part in parts])
        notebook.take(session.deserialize(rest))
    return notebook


def coalesced(messages: list[list[bytes]], flush_at: frozenset[int] = frozenset()) -> list[Any]:
    out, coalescer = [], Coalescer(KEY, "hmac-sha256")
    for i, parts in enumerate(messages):
        if i in flush_at:
            out += coalescer.take()
        if not coalescer.put(parts):
            out += [*coalescer.take(), parts]
    return [*out, *coalescer.take()]


cells = st.sampled_from("ab")
texts = st.text("ab\r\n\b\té", max_size=6)
pictures = st.builds(lambda n: {"text/plain": f"figure {n}"}, st.integers(0, 9)) | st.builds(
    lambda n: {"application/javascript": f"run({n})"}, st.integers(0, 9)
)
streams = st.builds(
    lambda name, text, cell: ("stream", {"name": name, "text": text}, cell),
    st.sampled_from(["stdout", "stderr"]),
    texts,
    cells,
)
displays = st.builds(
    lambda kind, data, name, cell: (
        kind,
        {"data": data, "metadata": {}, "transient": {"display_id": name} if name else {}},
        cell,
    ),
    st.sampled_from(["display_data", "display_data", "update_display_data"]),
    pictures,
    st.sampled_from(["x", "y", ""]),
    cells,
).filter(lambda each: each[0] == "display_data" or each[1]["transient"])
clears = st.builds(lambda wait, cell: ("clear_output", {"wait": wait}, cell), st.booleans(), cells)
widgets = st.builds(
    lambda comm, state, method: (
        "comm_msg",
        {"comm_id": comm, "data": {"method": method, "state": state, "buffer_paths": []}},
        "a",
    ),
    st.sampled_from("vw"),
    st.dictionaries(st.sampled_from(["value", "max", "text"]), st.integers(0, 9), min_size=1, max_size=3),
    st.sampled_from(["update", "update", "update", "echo_update", "custom"]),
)
fences = st.builds(
    lambda kind, cell: (kind, {"execution_state": "idle", "data": {}, "metadata": {}}, cell),
    st.sampled_from(["status", "execute_result", "execute_input"]),
    cells,
)
outputs = st.one_of(streams, streams, displays, clears, widgets, fences)


@settings(deadline=None)
@given(st.lists(outputs, max_size=25), st.frozensets(st.integers(0, 25), max_size=3))
def test_a_notebook_shows_the_same_at_every_fence_and_in_the_end(said, flush_at):
    messages = [message(*each) for each in said]
    fewer = coalesced(messages, flush_at)
    assert len(fewer) <= len(messages)
    one, other = shown(messages), shown(fewer)
    assert other.snapshots == one.snapshots
    assert other.seen() == one.seen()


@given(st.text("abc\r\n", max_size=30), st.text("abc\r\n", max_size=10), st.text("ab\r\n", max_size=8))
def test_folded_text_looks_the_same_between_any_texts(text, before, after):
    assert terminal(before + folded(text) + after) == terminal(before + text + after)


# -- what it is for: each case, how many messages are left, and what the last one says


def content_of(parts: Any) -> dict[str, Any]:
    return json.loads(bytes(parts[-1]))


def test_a_bar_in_the_terminal_becomes_its_last_state():
    bar = [
        message("stream", {"name": "stderr", "text": f"\r{i:3d}%|{'█' * (i // 10):10}|"}) for i in range(101)
    ]
    (only,) = coalesced(bar)
    assert content_of(only)["text"] == "\r100%|██████████|"


def test_prints_become_one_text():
    lines = [message("stream", {"name": "stdout", "text": f"line {i}\n"}) for i in range(50)]
    (only,) = coalesced(lines)
    assert content_of(only)["text"] == "".join(f"line {i}\n" for i in range(50))


def test_a_display_that_is_updated_keeps_its_first_and_its_last_state():
    content = {"data": {"text/plain": "0"}, "metadata": {}, "transient": {"display_id": "x"}}
    said = [message("display_data", content)]
    for i in range(1, 30):
        said += [
            message("update_display_data", content | {"data": {"text/plain": str(i)}}),
            message("stream", {"name": "stdout", "text": "."}),
        ]
    first, text, last, dot = coalesced(said)
    assert content_of(first)["data"] == {"text/plain": "0"}
    assert content_of(text)["text"] == "." * 28
    assert content_of(last)["data"] == {"text/plain": "29"}
    assert content_of(dot)["text"] == "."


def test_a_widgets_bar_becomes_one_state_of_each_of_its_parts():
    def update(comm, **state):
        return message(
            "comm_msg", {"comm_id": comm, "data": {"method": "update", "state": state, "buffer_paths": []}}
        )

    said = [update(comm, value=i) for i in range(40) for comm in ("the label", "the bar", "the clock")]
    left = coalesced(said)
    assert [content_of(parts)["comm_id"] for parts in left] == ["the label", "the bar", "the clock"]
    assert all(content_of(parts)["data"]["state"] == {"value": 39} for parts in left)


def test_an_animation_becomes_its_last_picture():
    said = []
    for i in range(20):
        said += [
            message("clear_output", {"wait": True}),
            message("display_data", {"data": {"image/png": str(i)}, "metadata": {}, "transient": {}}),
        ]
    clear, picture = coalesced(said)
    assert content_of(clear) == {"wait": True}
    assert content_of(picture)["data"] == {"image/png": "19"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("status", {"execution_state": "idle"}),
        ("execute_result", {"data": {}, "metadata": {}, "execution_count": 1}),
        ("error", {"ename": "E", "evalue": "", "traceback": []}),
        ("comm_open", {"comm_id": "c", "target_name": "jupyter.widget", "data": {}}),
        ("comm_msg", {"comm_id": "o", "data": {"method": "update", "state": {"msg_id": "a"}}}),
        ("stream", {"name": "stdout"}),
        ("unheard_of", {}),
    ],
)
def test_what_is_no_plain_output_is_a_fence(kind, content):
    coalescer = Coalescer(KEY, "hmac-sha256")
    assert coalescer.put(message("stream", {"name": "stdout", "text": "before"}))
    assert not coalescer.put(message(kind, content))
    assert len(coalescer.take()) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b"topic"],
        [b"<IDS|MSG>", b"", b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>", b"", b"not json", b"{}", b"{}", b"{}"],
        [*message("stream", {"name": "stdout", "text": "x"}), b"a buffer"],
        [*message("stream", {"name": "stdout", "text": "x"})[:-1], b"[" * 100_000],
        [*message("stream", {"name": "stdout", "text": "x"})[:-1], b'{"name": "stdout", "text": NaN}'],
        [*message("stream", {"name": "stdout", "text": "x"})[:-1], b'{"name": "stdout", "text": "\\ud83d"}'],
    ],
    ids=["no message", "too short", "no json", "a buffer", "deep", "no text", "half a character"],
)
def test_what_cannot_be_read_is_left_as_it_is(parts):
    assert not Coalescer(KEY, "hmac-sha256").put(parts)


def test_what_stays_alone_is_not_written_anew():
    alone = message("stream", {"name": "stdout", "text": "alone"})
    (same,) = coalesced([alone])
    assert list(same) == alone


def test_without_a_key_nothing_is_signed():
    said = read(message("stream", {"name": "stdout", "text": "x"}))
    assert said is not None
    assert Writer(b"", "hmac-sha256").write(said, {})[2:][:1] != [b""]


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({"text/html": "<b>bold</b>"}, 2),
        ({"text/html": "<ScRipt>x()</script>"}, 3),
        ({"text/html": "<img src=x onerror = x()>"}, 3),
        ({"image/svg+xml": "<svg onload='x()'/>"}, 3),
        ({"application/vnd.x+json": {}}, 3),
    ],
)
def test_what_does_something_when_it_is_shown_is_not_left_out(data, left):
    said = [
        message("display_data", {"data": data, "metadata": {}, "transient": {}}),
        message("clear_output", {"wait": False}),
        message("stream", {"name": "stdout", "text": "x"}),
    ]
    assert len(coalesced(said)) == left


def test_the_waiting_size_is_that_of_what_came_in():
    coalescer = Coalescer(KEY, "hmac-sha256")
    said = [message("stream", {"name": "stdout", "text": "x" * 100}) for _ in range(10)]
    for parts in said:
        coalescer.put(parts)
    assert coalescer.size == sum(map(len, itertools.chain(*said)))
    coalescer.take()
    assert coalescer.size == 0


def test_every_kind_that_may_be_left_out_is_known_by_name():
    assert not coalescer_module._HARMLESS & coalescer_module._WATCHED
