"""What a rental's clients hear, and when, after a provider has announced what it kept for them."""

from __future__ import annotations

import json

import pytest

from jupyter_depin.consumer.clients import Clients
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.tunnel.events import Kept

MUCH = {Lane.IOPUB: Kept(1 << 60, 1 << 60)}


def header(kind, name):
    return json.dumps({"msg_id": name, "msg_type": kind}).encode()


def message(kind, request, text=b"{}"):
    return [b"topic", b"<IDS|MSG>", b"", header(kind, "k"), header("execute_request", request), b"{}", text]


class Side:
    """The sockets of the clients: what was given out, and the cell that ran last."""

    def __init__(self):
        self.got: list[tuple[Lane, bytes]] = []
        self.last_request = header("execute_request", "old")

    def deliver(self, lane, parts):
        self.got.append((lane, parts[-1]))


@pytest.fixture
def side():
    return Side()


@pytest.fixture
def clients(side):
    made = Clients(lambda *_: None, lambda *_: None, lambda *_: None, lambda: 0)
    made._side = side  # type: ignore[assignment]
    return made


def test_a_new_cell_waits_for_nothing_that_was_only_announced(clients, side):
    clients.expect(MUCH, None)
    side.last_request = header("execute_request", "new")
    clients.deliver(Lane.IOPUB, message("status", "new", b"busy"))
    clients.deliver(Lane.SHELL, message("execute_reply", "new", b"reply"))
    assert side.got == [(Lane.IOPUB, b"busy"), (Lane.SHELL, b"reply")]


def test_what_waited_for_it_comes_first(clients, side):
    clients.expect(MUCH, None)
    clients.deliver(Lane.SHELL, message("execute_reply", "old", b"old reply"))
    clients.deliver(Lane.IOPUB, message("stream", "old", b"kept"))
    assert side.got == [(Lane.IOPUB, b"kept")]
    side.last_request = header("execute_request", "new")
    clients.deliver(Lane.IOPUB, message("status", "new", b"busy"))
    assert side.got[1:] == [(Lane.SHELL, b"old reply"), (Lane.IOPUB, b"busy")]


@pytest.mark.parametrize("asked", [b"", b"{}", b"[]", b"nonsense", b'{"msg_id": ""}'])
def test_a_request_without_a_name_decides_nothing(clients, side, asked):
    clients.expect(MUCH, None)
    side.last_request = asked
    clients.deliver(Lane.SHELL, message("execute_reply", "new", b"reply"))
    clients.deliver(Lane.IOPUB, message("status", "new", b"busy"))
    assert side.got == [(Lane.IOPUB, b"busy")]
