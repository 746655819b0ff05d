"""What the runtime does when a part of it fails: living rentals go on, and dead ones are settled in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from jupyter_depin.consumer import runtime as runtime_module
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import JournalUnavailable

CONFIG = ConsumerConfig(home=Path("unused"))
GENEROUS = 60


@dataclass
class Books:
    """Stands for journal and backend: notes what is given back. `released` fails as long as it is told to."""

    released: list[bytes] = field(default_factory=list)
    failing: bool = False
    journal: Any = None

    def __post_init__(self) -> None:
        self.journal = self

    def release(self, channel_id: bytes) -> None:
        self.released.append(channel_id)
        if self.failing:
            raise JournalUnavailable(path="x", reason="disk full")

    def alive(self) -> bool:
        return True

    async def close(self) -> None:
        pass


@dataclass
class Rental:
    """Stands for a rental that is over at once."""

    channel_id: bytes = b"\1" * 32
    receipt: object = None
    failure: Exception | None = None
    left: bool = False

    async def run(self) -> None:
        if self.failure is not None:
            raise self.failure


class Recovery:
    """Stands for `recover`: does what it is told, one thing a call, and then finds nothing."""

    def __init__(self, *outcomes: int | Exception) -> None:
        self._outcomes = list(outcomes)
        self.calls = 0

    async def __call__(self, *_: object, keeping: bool = False) -> int:
        self.calls += 1
        outcome = self._outcomes.pop(0) if self._outcomes else 0
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def called(self, times: int) -> None:
        with anyio.fail_after(GENEROUS):
            while self.calls < times:
                await anyio.sleep(0.01)


@pytest.fixture
def books(monkeypatch):
    made = Books()

    async def connect(_: ConsumerConfig) -> Books:
        return made

    monkeypatch.setattr(runtime_module, "connect", connect)
    monkeypatch.setattr(runtime_module, "_RETRY_S", (0.01,))
    return made


@pytest.fixture
def runtime(books):
    made = Runtime()
    yield made
    made._at_exit()
    assert not made._thread.is_alive()


async def test_a_journal_that_fails_at_recovery_is_asked_again_and_harms_nobody(runtime, monkeypatch):
    recovery = Recovery(JournalUnavailable(path="x", reason="locked"), RuntimeError("unforeseen"), 2)
    monkeypatch.setattr(runtime_module, "recover", recovery)
    await runtime.call(runtime._backend, CONFIG)
    await recovery.called(4)
    # The loop thread lives.
    assert await runtime.call(runtime.recover, CONFIG) == 0


@pytest.mark.parametrize("failure", [None, RuntimeError("unforeseen")])
@pytest.mark.parametrize("failing", [False, True])
async def test_a_rental_that_ended_unsettled_is_given_to_recovery(
    runtime, books, monkeypatch, failure, failing
):
    recovery = Recovery()
    monkeypatch.setattr(runtime_module, "recover", recovery)
    backend = await runtime.call(runtime._backend, CONFIG)
    await recovery.called(1)
    books.failing = failing
    rental: Any = Rental(failure=failure)
    runtime._rentals[rental.channel_id.hex()] = rental
    await runtime.call(runtime._keep, rental, CONFIG, backend)
    await recovery.called(2)
    assert books.released == [rental.channel_id]
    assert runtime._rentals == {}


async def test_an_opening_that_failed_is_given_to_recovery_too(runtime, books, monkeypatch):
    recovery = Recovery()
    monkeypatch.setattr(runtime_module, "recover", recovery)

    async def fail(*_, **__):
        raise JournalUnavailable(path="x", reason="after the deposit was locked")

    monkeypatch.setattr(runtime_module, "open_lease", fail)
    books.config = books.endpoint = books.ledger = books.wallet = books.purse = None
    await runtime.call(runtime._backend, CONFIG)
    await recovery.called(1)
    with pytest.raises(JournalUnavailable):
        await runtime.call(runtime.rent, CONFIG, "kernel-1")
    await recovery.called(2)
    assert runtime._opening == []


async def test_a_settled_rental_is_left_alone(runtime, books, monkeypatch):
    recovery = Recovery()
    monkeypatch.setattr(runtime_module, "recover", recovery)
    backend = await runtime.call(runtime._backend, CONFIG)
    await recovery.called(1)
    rental: Any = Rental(receipt=object())
    await runtime.call(runtime._keep, rental, CONFIG, backend)
    assert books.released == []
    assert recovery.calls == 1


async def test_after_the_end_callers_are_told_so(runtime):
    runtime._at_exit()
    with pytest.raises(Exception, match="this program is ending"):
        await runtime.call(runtime.recover, CONFIG)
    runtime.soon(print)
