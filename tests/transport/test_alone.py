"""A peer that may have one stream only, over both networks: a second one ends the wait, and loses nothing otherwise."""

from __future__ import annotations

import anyio
import pytest

from jupyter_depin.errors import ConnectionLost, RemoteProtocolError
from jupyter_depin.transport.alone import alone


async def test_what_is_awaited_comes_through(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        mine, theirs = await open_pair(here, there)
        await mine.write(b"request")
        assert await alone(there, theirs.read(100)) == b"request"
        # The watch took nothing away: the next stream is there for whoever is allowed to have it.
        second, _ = await open_pair(here, there)
        await second.finish()


async def test_a_second_stream_ends_the_wait(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        _mine, theirs = await open_pair(here, there)
        await (await here.open_stream()).write(b"more")
        with pytest.raises(RemoteProtocolError, match="second stream"):
            await alone(there, theirs.read(100))


async def test_an_end_is_told_as_it_was(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        _mine, theirs = await open_pair(here, there)
        await here.close("enough")
        with pytest.raises(ConnectionLost, match="enough"):
            await alone(there, theirs.read(100))


async def test_patience_may_end_the_wait(nodes, join, open_pair):
    async with nodes() as (a, b):
        here, there = await join(a, b)
        mine, theirs = await open_pair(here, there)
        with anyio.move_on_after(0) as scope:
            await alone(there, theirs.read(100))
        assert scope.cancelled_caught
        await mine.write(b"late")
        assert await alone(there, theirs.read(100)) == b"late"
