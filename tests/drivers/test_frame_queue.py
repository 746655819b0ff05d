"""Small pieces leave together, big ones alone, all in order; what the stream does not take at once waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from jupyter_depin.drivers.frame_queue import FrameQueue
from jupyter_depin.errors import ConnectionLost


class Narrow:
    """A stream that takes nothing at once while it is `narrow`, and all else as it comes."""

    def __init__(self) -> None:
        self.narrow = self.broken = False
        self.wrote: list[bytes] = []
        self._wide = anyio.Event()

    def begin(self, data: bytes | memoryview) -> bool:
        if self.broken:
            raise ConnectionLost(detail="cut")
        self.wrote.append(bytes(data))
        return not self.narrow

    async def settled(self) -> None:
        await self._wide.wait()

    def widen(self) -> None:
        self.narrow = False
        self._wide.set()


def play(scene: Callable[[FrameQueue, Narrow], Awaitable[None]]) -> list[bytes]:
    """Run a scene with a queue on a stream; what was written."""

    async def main() -> list[bytes]:
        queue, stream = FrameQueue(), Narrow()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.run, stream)
                await anyio.wait_all_tasks_blocked()
                await scene(queue, stream)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        assert queue.written == sum(map(len, stream.wrote))
        return stream.wrote

    return anyio.run(main)


async def settle() -> None:
    await anyio.wait_all_tasks_blocked()


def test_small_pieces_leave_together_and_in_order():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.put([b"a", b"b"])
        queue.put([b"c"])

    assert play(scene) == [b"abc"]


def test_what_is_put_in_another_turn_of_the_loop_does_not_wait():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.put([b"a"])
        await settle()
        assert stream.wrote == [b"a"]
        queue.put([b"b"])

    assert play(scene) == [b"a", b"b"]


def test_a_big_piece_is_not_copied_into_a_join():
    big = bytes(1 << 20)

    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.put([b"a", big, b"b", b"c"])

    assert play(scene) == [b"a", big, b"bc"]


def test_nothing_overtakes_what_the_stream_did_not_take_at_once():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        stream.narrow = True
        queue.put([b"a"])
        await settle()
        queue.put([b"b"])
        await settle()
        assert stream.wrote == [b"a"]
        assert queue.size == 1
        stream.widen()

    assert play(scene) == [b"a", b"b"]


def test_a_long_queue_leaves_the_loop_its_turns():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.put([bytes(1 << 16)] * 100)
        await anyio.lowlevel.checkpoint()
        assert 0 < len(stream.wrote) < 100
        while queue.size:
            await anyio.lowlevel.checkpoint()

    assert len(play(scene)) == 100


def test_what_is_forgotten_is_not_written():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.put([b"old"])
        queue.clear()
        queue.put([b"new"])

    assert play(scene) == [b"new"]


def test_what_was_put_before_there_is_a_stream_leaves_with_it():
    async def main() -> list[bytes]:
        queue, stream = FrameQueue(), Narrow()
        queue.put([b"early"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run, stream)
            await settle()
            tasks.cancel_scope.cancel()
        return stream.wrote

    assert anyio.run(main) == [b"early"]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_broken_stream_ends_the_run_and_the_next_one_begins_well(narrow: bool):
    async def main() -> list[bytes]:
        queue, broken, next_one = FrameQueue(), Narrow(), Narrow()
        broken.broken = True
        queue.put([b"a"])
        with anyio.fail_after(60), pytest.raises(ConnectionLost):
            await queue.run(broken)
        queue.clear()
        queue.put([b"b"])
        next_one.narrow = narrow
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run, next_one)
            await settle()
            tasks.cancel_scope.cancel()
        return next_one.wrote

    assert anyio.run(main) == [b"b"]
