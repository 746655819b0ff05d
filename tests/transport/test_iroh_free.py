"""The garbage collector may run anywhere, also where the library has called Python and holds its locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, gc, secrets
from jupyter_depin.errors import ConnectionLost
from jupyter_depin.transport.iroh import bind

async def pair(one, two):
    arriving = asyncio.create_task(two.accept())
    dialled = await one.connect(two.address())
    return dialled, await arriving

async def reading(stream):
    try:
        await stream.read(100)
    except ConnectionLost:
        pass

async def main():
    one, two = [await bind(secret=secrets.token_bytes(32), listen="127.0.0.1:0") for _ in range(2)]
    dialled, arrived = await pair(one, two)
    garbage = [await dialled.open_stream() for _ in range(20)]
    garbage.append(garbage)
    waiting = [asyncio.create_task(reading(await dialled.open_stream())) for _ in range(20)]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon_threadsafe

    def with_collection(*call):
        gc.collect()
        return call_soon(*call)

    # The library tells Python of the ended reads while it holds the connection's lock.
    gc.disable()
    del garbage
    loop.call_soon_threadsafe = with_collection
    await dialled.close("enough")
    loop.call_soon_threadsafe = call_soon
    await asyncio.gather(*waiting)
    await arrived.close()
    await one.close()
    await two.close()

asyncio.run(main())
print("done")
"""


def test_garbage_is_given_back_outside_the_library(tmp_path: Path) -> None:
    program = tmp_path / "garbage.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "done\n", done.stderr
