"""A lane whose readers stand still: nothing more is handed on, other lanes go on, and nothing is lost."""

from __future__ import annotations

from jupyter_depin.protocol.frames import MOST_AT_ONCE, Lane
from jupyter_depin.tunnel.events import LaneFull

SMALL = 100


def numbers(messages: list[list[bytes]]) -> list[int]:
    return [int(parts[0]) for parts in messages]


async def test_a_lane_is_held_in_the_middle_of_what_was_read(pair):
    async with pair() as ends:
        driver = ends.drivers[0]
        ends.on_message[0] = lambda lane, parts: driver.hold(Lane.IOPUB, True, "test")
        count = 10 * MOST_AT_ONCE
        for i in range(count):
            ends.drivers[1].send(Lane.IOPUB, b"%d" % i, bytes(SMALL))
        await ends.turns(200)
        handed = len(ends.got[0][Lane.IOPUB])
        assert 0 < handed <= MOST_AT_ONCE
        # What overtakes it: an interrupt's answer, say.
        ends.drivers[1].send(Lane.CONTROL, b"0", b"interrupt_reply")
        await ends.drivers[1].taken(Lane.CONTROL)
        assert ends.got[0][Lane.CONTROL] == [[b"0", b"interrupt_reply"]]
        assert len(ends.got[0][Lane.IOPUB]) == handed
        ends.on_message[0] = None
        driver.hold(Lane.IOPUB, False, "test")
        await ends.drained()
        assert numbers(ends.got[0][Lane.IOPUB]) == list(range(count))


async def test_each_holder_lets_go_for_itself(pair):
    async with pair() as ends:
        for by in ("a", "b"):
            ends.drivers[0].hold(Lane.SHELL, True, by)
        ends.drivers[1].send(Lane.SHELL, b"0")
        ends.drivers[0].hold(Lane.SHELL, False, "a")
        await ends.turns()
        assert not ends.got[0][Lane.SHELL]
        ends.drivers[0].hold(Lane.SHELL, False, "b")
        await ends.drained()
        assert numbers(ends.got[0][Lane.SHELL]) == [0]


async def test_a_held_lane_fills_its_sender_and_survives_a_cut(pair):
    async with pair(window=1 << 12) as ends:
        ends.drivers[1].tunnel = ends.driver(1, limit=1 << 16).tunnel
        ends.cut()
        await ends.linked()
        ends.drivers[0].hold(Lane.IOPUB, True, "test")
        count = 0
        while not any(isinstance(event, LaneFull) for event in ends.events[1]):
            ends.drivers[1].send(Lane.IOPUB, b"%d" % count, bytes(1000))
            count += 1
            assert count < 100, "it is never full"
        ends.cut()
        await ends.linked()
        await ends.turns(100)
        assert len(ends.got[0][Lane.IOPUB]) < count // 2
        ends.drivers[0].hold(Lane.IOPUB, False, "test")
        await ends.drained()
        assert numbers(ends.got[0][Lane.IOPUB]) == list(range(count))
