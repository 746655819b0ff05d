"""Peers that flood, repeat themselves and lie about numbers: each ends its own connection, or takes its turn with others."""

from __future__ import annotations

import asyncio
import logging
import struct

import anyio
import pytest

from jupyter_depin.protocol.compressed import Compressor
from jupyter_depin.protocol.frames import MOST_AT_ONCE, Ack, Lane, Ping, Resume, encode_message
from tests.drivers.conftest import Ends

GREETING = encode_message(Resume({}))
FLOOD = 20_000


def frames(first: int, count: int) -> bytes:
    """So many of the smallest messages."""
    return b"".join(struct.pack(">QHI", seq, 1, 0) for seq in range(first, first + count))


async def carried(ends: Ends, control: bytes, shell: bytes, done) -> str:
    """What end 1 says of a peer that writes this; it is dropped once `done()`."""
    connection, stream = await ends.dial()
    link = await ends.answer()
    said: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def carry() -> None:
            said.append(await ends.drivers[1].carry(*link))
            tasks.cancel_scope.cancel()

        async def speak(where, what: bytes) -> None:
            await where.write(what)

        tasks.start_soon(carry)
        tasks.start_soon(speak, stream, GREETING + control)
        if shell:
            tasks.start_soon(speak, await connection.open_stream(), bytes([Lane.SHELL]) + shell)
        while not done():
            await asyncio.sleep(0)
        ends.drivers[1].drop()
    return said[0]


def packed(data: bytes) -> bytes:
    packer = Compressor()
    return packer.pack([data]) + packer.end()


@pytest.mark.parametrize("wrap", [bytes, packed], ids=["plain", "compressed"])
async def test_a_flood_of_tiny_messages_leaves_others_their_turns(pair, wrap):
    """The loop turns after some hundreds of them, however many came in one read."""
    async with pair(keep=False, window=1 << 22) as ends:
        loop = asyncio.get_running_loop()
        taken = 0
        longest = 0

        def turn() -> None:
            nonlocal taken, longest
            longest, taken = max(longest, taken), 0
            loop.call_soon(turn)

        def message(lane, parts) -> None:
            nonlocal taken
            taken += 1

        ends.on_message[1] = message
        turn()
        got = ends.got[1][Lane.SHELL]
        await carried(ends, b"", wrap(frames(0, FLOOD)), lambda: len(got) == FLOOD)
        assert longest <= 2 * MOST_AT_ONCE


@pytest.mark.parametrize(
    ("control", "shell", "says"),
    [
        (b"", frames(0, 3) + frames(1, 1), "SHELL message 1 where 3 was due"),
        (b"", frames(0, 3) + frames(7, 1), "SHELL message 7 where 3 was due"),
        (encode_message(Ack({int(Lane.IOPUB): 2})), b"", "IOPUB: 2 taken of 0 … 1"),
        (encode_message(Ack({int(Lane.IOPUB): 1})) * 2, b"", "nothing new"),
        (encode_message(Ack({})) * 10_000, b"", "nothing new"),
        (b"", frames(0, 3) + struct.pack(">QHI", 3, 1, 2**32 - 1), "a frame of 4294967295 bytes"),
        (b"", frames(0, 3) + packed(struct.pack(">QHI", 3, 1, 2**27)), "a frame of 134217728 bytes"),
        (b"", packed(packed(frames(0, 1))), "compressed bytes within compressed bytes"),
    ],
    ids=[
        "replay", "too early", "acknowledges the unsent", "the same again", "endless acknowledgements", "giant",
        "giant when unpacked", "packed twice",
    ],
)  # fmt: skip
async def test_a_lie_ends_its_connection_with_one_line_and_others_go_on(pair, caplog, control, shell, says):
    caplog.set_level(logging.INFO)
    async with pair() as honest, pair(keep=False) as ends:
        ends.drivers[1].send(Lane.IOPUB, b"kept")
        caplog.clear()
        reason = await carried(ends, control, shell, lambda: ends.drivers[1].connection is None)
        assert says in reason
        (record,) = caplog.records
        assert says in record.getMessage()
        assert record.exc_info is None
        honest.drivers[0].send(Lane.SHELL, b"still here")
        await honest.drained()
        assert honest.links == 1


async def test_endless_questions_are_answered_in_turns(pair):
    async with pair() as honest, pair(keep=False) as ends:
        connection, stream = await ends.dial()
        link = await ends.answer()
        heard = 0
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await stream.write(GREETING)
                while True:
                    await stream.write(b"".join(encode_message(Ping(i)) for i in range(500)))

            async def listen() -> None:
                nonlocal heard
                while True:
                    heard += len(await stream.read(1 << 20))

            tasks.start_soon(ends.drivers[1].carry, *link)
            tasks.start_soon(ask)
            tasks.start_soon(listen)
            for i in range(20):
                honest.drivers[0].send(Lane.SHELL, b"%d" % i)
                await honest.drained()
            assert ends.drivers[1].attached
            tasks.cancel_scope.cancel()
        assert heard > 10_000
        assert honest.links == 1
        assert ends.drivers[1]._control.size <= 1 << 20
        await connection.close()
