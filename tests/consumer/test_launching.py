"""A kernel's start as its renter waits for it: the first outcome counts, and the wait has an end."""

from __future__ import annotations

import anyio

from jupyter_depin.consumer.launching import Launching
from jupyter_depin.errors import KernelStartFailed, LeaseEnded


async def test_a_start_that_went_well_cannot_fail_afterwards():
    launching = Launching()
    launching.succeeded()
    launching.failed(LeaseEnded(reason="x"))
    assert await launching.outcome() is None


async def test_the_first_reason_counts():
    launching = Launching()
    launching.failed(LeaseEnded(reason="first"))
    launching.failed(LeaseEnded(reason="second"))
    assert "first" in str(await launching.outcome())


async def test_a_provider_that_never_says_how_it_went_is_not_waited_for_for_ever(world):
    async with world() as w:
        await w.start_agent()
        rental = await w.rent()
        w.sandbox.gate = anyio.Event()
        said: list[str] = []

        async def launch() -> None:
            try:
                await w.launch(rental)
            except KernelStartFailed as error:
                said.append(str(error))

        w.tasks.start_soon(launch)
        await w.clock.wait(89)
        assert not said
        await w.clock.wait(2)
        assert "no word of it for 90 s" in said[0]
        assert rental.poll() == 1
        assert rental.status().spent == 0
