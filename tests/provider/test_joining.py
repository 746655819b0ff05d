"""Output is joined only while a thrifty link is behind, never for long, and none of it is lost or out of order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jupyter_depin.protocol.frames import Lane
from provider_kernel import joining as joining_module
from provider_kernel.joining import LATE_NS, LONGEST_NS, MOST_BYTES, Joining
from tests.coalescing.notebook import KEY
from tests.coalescing.test_coalescer import message, shown

S = 10**9


class Driver:
    """A tunnel of which the peer takes as much as the test says; timers ring when the test's time comes."""

    def __init__(self) -> None:
        self.thrifty = True
        self.now = 0
        self.sent: list[Any] = []
        self.taken = 0
        self.told: list[int] = []
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.tunnel = self

    def counts(self, lane: Lane) -> tuple[int, int]:
        return len(self.sent), self.taken

    def say(self, lane: Lane, parts: Any) -> None:
        self.sent.append([bytes(part) for part in parts])

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + round(seconds * S), call))

    def wait(self, ns: int) -> None:
        end = self.now + ns
        while due := sorted((timer for timer in self.timers if timer[0] <= end), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end


@pytest.fixture
def driver(monkeypatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(joining_module, "steady_ns", lambda: driver.now)
    return driver


@pytest.fixture
def joining(driver) -> Joining:
    return Joining(driver, driver.say, KEY, "hmac-sha256", driver.told.append)


def text(i: int) -> list[bytes]:
    return message("stream", {"name": "stdout", "text": f"line {i}\n"})


def said_texts(driver: Driver) -> list[str]:
    return [json.loads(parts[-1])["text"] for parts in driver.sent]


def test_a_link_that_keeps_up_gets_everything_at_once(driver, joining):
    for i in range(200):
        joining.said(Lane.IOPUB, text(i))
        assert len(driver.sent) == i + 1
        driver.wait(S // 10)
        driver.taken = len(driver.sent) - 3
    assert not driver.timers


def test_a_late_link_gets_little_and_the_rest_as_soon_as_it_has_caught_up(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    for i in range(1, 10):
        joining.said(Lane.IOPUB, text(i))
        driver.wait(S // 100)
    assert len(driver.sent) == 1
    driver.taken = 1
    driver.wait(S // 10)
    assert said_texts(driver) == ["line 0\n", "".join(f"line {i}\n" for i in range(1, 10))]
    assert not driver.timers


def test_nothing_waits_for_more_than_two_seconds(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    joining.said(Lane.IOPUB, text(1))
    driver.wait(LONGEST_NS + S // 10)
    assert said_texts(driver) == ["line 0\n", "line 1\n"]


def test_not_more_than_so_much_waits(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    count = MOST_BYTES // sum(map(len, text(0))) + 2
    for i in range(1, count + 1):
        joining.said(Lane.IOPUB, text(i))
    assert len(driver.sent) == 2


def test_a_fence_takes_what_waits_along(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    joining.said(Lane.IOPUB, text(1))
    joining.said(Lane.IOPUB, text(2))
    joining.said(Lane.IOPUB, message("status", {"execution_state": "idle"}))
    assert [json.loads(parts[-1]) for parts in driver.sent[1:]] == [
        {"name": "stdout", "text": "line 1\nline 2\n"},
        {"execution_state": "idle"},
    ]


def test_other_lanes_and_plain_links_are_left_alone(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    joining.said(Lane.SHELL, text(1))
    assert len(driver.sent) == 2
    joining.said(Lane.IOPUB, text(2))
    driver.thrifty = False
    joining.said(Lane.IOPUB, text(3))
    assert said_texts(driver) == [f"line {i}\n" for i in range(4)]


def test_what_is_asked_comes_behind_what_was_printed(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    joining.said(Lane.IOPUB, text(1))
    joining.said(Lane.STDIN, text(2))
    assert said_texts(driver) == [f"line {i}\n" for i in range(3)]


def test_a_renter_without_memory_is_not_taken_for_late(driver, joining):
    for i in range(50):
        joining.said(Lane.IOPUB, text(i))
        driver.wait(S // 10)
    driver.wait(LATE_NS)
    driver.sent.clear()
    joining.said(Lane.IOPUB, text(50))
    joining.said(Lane.IOPUB, text(51))
    assert said_texts(driver)[-2:] == ["line 50\n", "line 51\n"]


def test_the_last_words_are_not_lost(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    joining.said(Lane.IOPUB, text(1))
    joining.flush()
    assert said_texts(driver) == ["line 0\n", "line 1\n"]
    driver.wait(10 * S)
    assert len(driver.sent) == 2


@pytest.mark.parametrize("scheme", ["hmac-nobody", ""])
def test_a_scheme_that_nobody_knows_is_refused(driver, scheme):
    with pytest.raises(ValueError, match=r"unsupported|^$"):
        Joining(driver, driver.say, b"key", scheme, driver.told.append)


def test_what_joining_spares_is_told_now_and_then(driver, joining):
    joining.said(Lane.IOPUB, text(0))
    driver.wait(LATE_NS)
    said = [text(i) for i in range(1000)]
    for parts in said:
        joining.said(Lane.IOPUB, parts)
        driver.wait(S // 100)
    joining.flush()
    assert 1 <= len(driver.told) <= 2
    came, went = (sum(len(part) for parts in many for part in parts) for many in (said, driver.sent))
    assert 0 < sum(driver.told) <= came - went + len(b"".join(text(0)))


async def test_a_bar_on_a_slow_link_ends_where_it_should(world):
    async with world() as w:
        rental = await rented(w)
        driver = w.agents[0]._tenancies[rental.channel_id].driver
        kernel = w.agents[0]._tenancies[rental.channel_id]._prelude
        got: list[list[bytes]] = []
        rental._clients.deliver = lambda lane, parts: got.append([bytes(part) for part in parts])
        w.network.hold(w.agents[0].ticket.address.node)
        said = [message("stream", {"name": "stderr", "text": f"\r{i:5d}" + "#" * 200}) for i in range(3000)]
        said.append(message("status", {"execution_state": "idle"}))
        for parts in said:
            kernel.said(Lane.IOPUB, parts)
            await w.clock.wait(0.01)
            w.network.deliver(20)
        w.network.release()
        await w.clock.until(lambda: got and b'"idle"' in got[-1][-1])
        assert driver.thrifty
        assert len(got) < 1000
        # Compression alone would count less: most messages were never sent.
        assert rental.status().spared > 500_000
        bound = [parts for parts in got if len(parts) > 5]
        assert shown(bound).seen()[0] == shown(said).seen()[0]


async def rented(w):
    w.provider_config = replace(w.provider_config, thrift="on")
    await w.start_agent()
    rental = await w.rent()
    await rental.launch(replace(w.local(), key=KEY), env={}, argv=None, cwd=None)
    return rental
