"""A rental spares bytes where its renter or its provider says so, or where the link is found slow; and shows it."""

from __future__ import annotations

import pytest

from jupyter_depin.cli import main
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.errors import DamagedConfig
from jupyter_depin.protocol.frames import Lane
from provider_kernel.config import ProviderConfig

WORDS = b"loss 0.1234, the same words as ever, and some more of them, as training loops print them; " * 6


def line(i: int) -> bytes:
    return b"step %6d: " % i + WORDS


async def rented(w, wish: str = "auto"):
    """A rental with a kernel that runs, what its clients get, and the provider's end of the tunnel."""
    await w.start_agent()
    w.config = ConsumerConfig(home=w.config.home, max_rate_per_hour="5", max_spend="10", thrift=wish)
    rental = await w.rent()
    await w.launch(rental)
    got: list[bytes] = []
    rental._clients.deliver = lambda lane, parts: got.append(bytes(parts[0]))
    return rental, got, w.agents[0]._tenancies[rental.channel_id].driver


@pytest.mark.parametrize(
    ("renter", "owner", "up", "down"),
    [
        ("auto", "auto", False, False),
        ("on", "auto", True, True),
        ("on", "off", True, False),
        ("off", "on", False, True),
    ],
)
async def test_each_side_spares_by_its_own_wish_and_the_provider_also_by_its_renters(
    world, renter, owner, up, down
):
    async with world() as w:
        w.provider_config = ProviderConfig(
            home=w.provider_config.home, rate_per_hour="3.6", slots=2, thrift=owner
        )
        rental, got, driver = await rented(w, renter)
        said = [line(i) for i in range(200)]
        for each in said:
            driver.send(Lane.IOPUB, each)
            await w.clock.turns(2)
        await w.clock.turns()
        assert got == said
        assert (rental._driver.thrifty, driver.thrifty) == (up, down)
        status = rental.status()
        assert status.saving is (up or down)
        if down:
            assert status.bytes_down < len(WORDS) * 20 < status.spared
        else:
            assert status.bytes_down > len(WORDS) * 200


async def test_a_slow_link_is_found_slow_by_itself_and_nothing_is_lost(world):
    async with world() as w:
        rental, got, driver = await rented(w)
        said = [line(i) for i in range(20_000)]
        w.network.hold(w.agents[0].ticket.address.node)
        for each in said[:10_000]:
            driver.send(Lane.IOPUB, each)
        for _ in range(200):
            # 800 kbit/s.
            await w.clock.wait(0.1)
            w.network.deliver(10_000)
        assert driver.thrifty
        assert not rental._driver.thrifty
        for each in said[10_000:]:
            driver.send(Lane.IOPUB, each)
        w.network.release()
        await w.clock.until(lambda: len(got) == len(said))
        assert got == said
        status = rental.status()
        assert status.saving
        assert status.spared > 10 * len(WORDS)


async def test_another_program_of_the_renter_sees_what_went_over_the_link_and_what_was_spared(world, capsys):
    async with world() as w:
        _, got, driver = await rented(w, "on")
        for i in range(5000):
            driver.send(Lane.IOPUB, line(i))
        await w.clock.until(lambda: len(got) == 5000)
        # The next tick of the meter.
        await w.clock.wait(10)
        assert main(["rentals", "--home", str(w.config.home)]) == 0
        said = capsys.readouterr().out
        assert " MB up, 0.1 MB down, saving data: 9" in said or " MB up, 0.0 MB down, saving data: 9" in said
        assert "% spared" in said


async def test_a_fast_link_is_left_alone(world):
    async with world() as w:
        rental, got, driver = await rented(w)
        for i in range(20_000):
            driver.send(Lane.IOPUB, line(i))
            if i % 1000 == 0:
                await w.clock.wait(0.1)
        await w.clock.until(lambda: len(got) == 20_000)
        assert not driver.thrifty
        assert (rental.status().spared, rental.status().saving) == (0, False)


@pytest.mark.parametrize(
    ("kind", "name"), [(ConsumerConfig, "config.toml"), (ProviderConfig, "provider.toml")]
)
def test_another_wish_is_no_setting(tmp_path, kind, name):
    (tmp_path / name).write_text('thrift = "sometimes"')
    with pytest.raises(DamagedConfig, match="auto, on or off"):
        kind.load(tmp_path)
    (tmp_path / name).write_text('thrift = "on"')
    assert kind.load(tmp_path).thrift == "on"
