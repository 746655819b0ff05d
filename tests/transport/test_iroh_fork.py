"""A process that was forked off one that uses iroh must be able to use it too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, multiprocessing, secrets
from jupyter_depin.transport.iroh import bind

async def exchange():
    one, two = [await bind(secret=secrets.token_bytes(32), listen="127.0.0.1:0") for _ in range(2)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        arriving = tasks.create_task(two.accept())
        dialled = await one.connect(two.address())
        asking = await dialled.open_stream()
        await asking.write(b"ping")
        answering = await (await arriving).accept_stream()
        assert await answering.read(100) == b"ping"
        await answering.write(b"pong")
        assert await asking.read(100) == b"pong"
    await one.close()
    await two.close()

def talk():
    asyncio.run(exchange())

if __name__ == "__main__":
    talk()
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=talk) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    talk()
    print([child.exitcode for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_talks_over_a_network_of_its_own(tmp_path: Path) -> None:
    program = tmp_path / "forks.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=150)
    assert done.stdout == "[0, 0]\n", done.stderr
