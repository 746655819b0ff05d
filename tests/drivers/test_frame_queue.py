"""Small pieces leave together, big ones alone, all in order; what the stream does not take at once waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_depin.drivers.frame_queue import FrameQueue
from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol import compressed
from jupyter_depin.protocol.compressed import MAX_COMPRESSED, LaneDecoder
from jupyter_depin.protocol.frames import Data, Lane, Part, encode_data


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


# -- thrift


def unpacked(wrote: list[bytes]) -> list[list[bytes]]:
    decoder, frames = LaneDecoder(Lane.IOPUB), []
    for data in wrote:
        frames += decoder.feed(data)
        while decoder.more:
            frames += decoder.feed(b"")
    return [[bytes(part) for part in frame.parts] for frame in frames]


def message(seq: int, *parts: bytes) -> list[Part]:
    return encode_data(Data(Lane.IOPUB, seq, parts, sum(map(len, parts))))


def test_a_thrifty_queue_compresses_what_waits_as_one_batch():
    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        queue.compressed = MAX_COMPRESSED
        for seq in range(100):
            queue.put(message(seq, b"the same words again"))

    wrote = play(scene)
    assert len(wrote) == 1
    assert len(wrote[0]) < 600
    assert unpacked(wrote) == [[b"the same words again"]] * 100


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["on", "off", "turn"]),
            st.lists(st.sampled_from([0, 1, 900, 70_000, 140_000]), min_size=1, max_size=3),
        ),
        max_size=20,
    )
)
def test_messages_survive_whatever_is_switched_between_them(steps):
    """Messages above 100,000 bytes are too big to be compressed here, so the queue leaves its stretch for them."""
    sent: list[list[bytes]] = []

    async def scene(queue: FrameQueue, stream: Narrow) -> None:
        for step in steps:
            if step == "turn":
                await settle()
            elif isinstance(step, str):
                queue.compressed = 100_000 if step == "on" else 0
            else:
                sent.append([bytes([len(sent) % 256]) * size for size in step])
                queue.put(message(len(sent), *sent[-1]))
        while queue.size:
            await anyio.lowlevel.checkpoint()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "MAX_COMPRESSED", 100_000)
        wrote = play(scene)
    assert unpacked(wrote) == sent


def test_a_new_connection_begins_with_a_new_context():
    async def main() -> list[bytes]:
        queue, first, second = FrameQueue(), Narrow(), Narrow()
        queue.compressed = MAX_COMPRESSED
        for stream in (first, second):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.run, stream)
                queue.put(message(0, b"words"))
                await settle()
                tasks.cancel_scope.cancel()
            queue.clear()
        return second.wrote

    assert unpacked(anyio.run(main)) == [[b"words"]]
