"""What a kernel says before it does anything (`provider_kernel.prelude`): goes with what follows, in order, or soon."""

from __future__ import annotations

import anyio
import pytest
from jupyter_client.session import Session

from jupyter_depin.protocol.frames import Lane
from provider_kernel.prelude import Prelude

SESSION = Session(key=b"key")


def message(kind: str, **content: object) -> list[bytes]:
    return SESSION.serialize(SESSION.msg(kind, content), ident=b"topic")


BUSY, IDLE = (message("status", execution_state=state) for state in ("busy", "idle"))
CODE = message("execute_input", code="1 + 1", execution_count=1)
RESULT = message("execute_result", data={"text/plain": "2"}, metadata={}, execution_count=1)
REPLY = message("execute_reply", status="ok", execution_count=1)


class Heard:
    def __init__(self) -> None:
        self.all: list[tuple[Lane, list[bytes]]] = []
        self.news = anyio.Event()

    def __call__(self, lane, parts) -> None:
        self.all.append((lane, list(parts)))
        self.news.set()


async def test_a_cell_begins_with_what_follows_on_any_lane_and_in_order():
    for follows in ((Lane.IOPUB, RESULT), (Lane.SHELL, REPLY), (Lane.STDIN, [b"name?"])):
        heard = Heard()
        prelude = Prelude(heard)
        prelude.said(Lane.IOPUB, BUSY)
        prelude.said(Lane.IOPUB, CODE)
        assert heard.all == []
        prelude.said(*follows)
        assert heard.all == [(Lane.IOPUB, BUSY), (Lane.IOPUB, CODE), follows]


@pytest.mark.parametrize("said", [IDLE, RESULT, message("stream", name="stdout", text='"busy"'), [b"status"]])
async def test_whatever_somebody_may_wait_for_goes_at_once(said):
    heard = Heard()
    Prelude(heard).said(Lane.IOPUB, said)
    assert heard.all == [(Lane.IOPUB, said)]


async def test_a_cell_that_says_nothing_is_seen_to_run_all_the_same():
    heard = Heard()
    with anyio.fail_after(60):
        Prelude(heard).said(Lane.IOPUB, BUSY)
        await heard.news.wait()
    assert heard.all == [(Lane.IOPUB, BUSY)]


async def test_the_end_of_a_kernel_takes_all_along():
    heard = Heard()
    behind: list[int] = []
    prelude = Prelude(heard, lambda: behind.append(len(heard.all)))
    prelude.said(Lane.IOPUB, BUSY)
    prelude.flush()
    assert heard.all == [(Lane.IOPUB, BUSY)]
    assert behind == [1], "what waits behind goes after it"
