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


TRACED = """
import asyncio, os, secrets, sys
import iroh
from jupyter_depin.transport.iroh import bind

def traced():
    try:
        iroh.RelayMode.custom_from_urls(["no address"])
    except iroh.IrohError as error:
        return "Stack backtrace" in error.debug_message()

async def live():
    await (await bind(secret=secrets.token_bytes(32), listen="127.0.0.1:0")).close()

asyncio.run(live())
print(traced(), os.environ.get("RUST_LIB_BACKTRACE"), flush=True)
if os.fork() == 0:
    asyncio.run(live())
    print(traced(), os.environ.get("RUST_LIB_BACKTRACE"), flush=True)
else:
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("asked", "traced"), [({}, "False None"), ({"RUST_LIB_BACKTRACE": "1"}, "True 1")])
def test_an_error_costs_no_trace_unless_one_is_asked_for(asked, traced) -> None:
    """A trace takes a tenth of a second of the event loop, and peers cause errors as often as they like."""
    environment = {key: value for key, value in os.environ.items() if key != "RUST_LIB_BACKTRACE"}
    environment |= {"RUST_BACKTRACE": "1", **asked}
    program = [sys.executable, "-c", TRACED]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=150)
    assert done.stdout == f"{traced}\n" * 2, done.stderr
