"""Small pieces leave together, big ones alone, and all in order."""

from __future__ import annotations

import anyio

from jupyter_depin.drivers.frame_queue import FrameQueue


def leaving(pieces: list[bytes]) -> list[bytes]:
    async def main() -> list[bytes]:
        queue = FrameQueue()
        queue.put(pieces)
        left = []
        while queue.size:
            left.append(bytes(await queue.next()))
        return left

    return anyio.run(main)


def test_small_pieces_leave_together_and_in_order():
    assert leaving([b"a", b"b", b"c"]) == [b"abc"]


def test_a_big_piece_is_not_copied_into_a_join():
    big = bytes(1 << 20)
    assert leaving([b"a", big, b"b", b"c"]) == [b"a", big, b"bc"]


def test_what_is_forgotten_is_not_written():
    async def main() -> bytes:
        queue = FrameQueue()
        queue.put([b"old"])
        queue.clear()
        queue.put([b"new"])
        return bytes(await queue.next())

    assert anyio.run(main) == b"new"
