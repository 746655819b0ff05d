"""What a stranger gets who asks how it is seen: one answer, in turn, and nothing else."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import anyio
import pytest

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol.identity import parse_observer
from jupyter_depin.transport import ALPN, SEEN, iroh, seen
from jupyter_depin.transport.memory import MemoryNetwork
from provider_kernel import observer

GENEROUS = 60


async def test_an_agent_tells_a_stranger_how_it_is_seen(world):
    async with world() as w:
        agent = await w.start_agent()
        stranger = w.network.endpoint("stranger")
        assert await seen.ask(stranger, agent.ticket.address) == stranger.place


async def test_an_observer_lends_nothing():
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        here, there = network.endpoint("observer"), network.endpoint("stranger")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(observer.observe, here)
            connection = await there.connect(here.address(), ALPN)
            assert await connection.closed() == "this node lends no kernels"
            assert await seen.ask(there, here.address()) == there.place
            await here.close()


async def test_those_who_ask_and_never_listen_are_bounded():
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        here, there = network.endpoint("observer"), network.endpoint("stranger")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(observer.observe, here)
            lazy = [await there.connect(here.address(), SEEN) for _ in range(observer.MOST)]
            await anyio.wait_all_tasks_blocked()
            late = await there.connect(here.address(), SEEN)
            assert await late.closed() == "too many ask just now"
            await lazy[0].close()
            await anyio.wait_all_tasks_blocked()
            assert await seen.ask(there, here.address()) == there.place
            await here.close()


async def test_a_question_that_fails_ends_nothing_but_itself(world, monkeypatch, caplog):
    async with world() as w:
        agent = await w.start_agent()
        rental = await w.rent()
        await w.launch(rental)
        stranger = w.network.endpoint("stranger")

        async def fail(connection):
            await connection.accept_stream()
            raise RuntimeError("unforeseen")

        with monkeypatch.context() as patch:
            patch.setattr(observer, "answer", fail)
            connection = await stranger.connect(agent.ticket.address, SEEN)
            await (await connection.open_stream()).write(b"?")
            await w.clock.wait(1)
            assert connection.reason is not None
        assert "unforeseen" in caplog.text
        assert await seen.ask(stranger, agent.ticket.address) == stranger.place
        assert rental.status().state == "running"


async def test_a_stranger_who_opens_more_streams_hears_nothing_on_them():
    with anyio.fail_after(GENEROUS):
        network = MemoryNetwork()
        here, there = network.endpoint("observer"), network.endpoint("stranger")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(observer.observe, here)
            connection = await there.connect(here.address(), SEEN)
            first, second = await connection.open_stream(), await connection.open_stream()
            for stream in (first, second):
                await stream.write(b"?" * 1000)
            assert await first.read(100) == there.place.encode()
            async with anyio.create_task_group() as waiting:

                async def silent():
                    with pytest.raises(ConnectionLost):
                        await second.read(1)

                waiting.start_soon(silent)
                await anyio.wait_all_tasks_blocked()
                await connection.close()
            await here.close()


def test_the_program_says_how_it_is_named_and_answers(tmp_path):
    command = [
        sys.executable,
        "-m",
        "provider_kernel",
        "observe",
        "--home",
        str(tmp_path),
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            text = json.loads(program.stdout.readline())["observer"]

            async def ask() -> str | None:
                with anyio.fail_after(GENEROUS):
                    me = await iroh.bind(secret=bytes(range(32)), listen="127.0.0.1:0")
                    try:
                        answer = await seen.ask(me, parse_observer(text))
                        assert answer in me.address().direct
                        return answer
                    finally:
                        await me.close()

            assert re.fullmatch(r"127\.0\.0\.1:\d+", anyio.run(ask) or "")
        finally:
            program.send_signal(signal.SIGTERM)
    assert program.returncode == 0
