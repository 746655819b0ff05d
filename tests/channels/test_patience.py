"""What is kept for those who do not read (`jupyter_depin.channels.peer`, `.patience`): counted, bounded, and let go."""

from __future__ import annotations

import anyio
import pytest
import zmq
import zmq.asyncio

from jupyter_depin.channels import client_side, kernel_side, patience
from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.channels.kernel_side import KernelSide
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.local import LocalInfo

GENEROUS = 60
LIMIT = 1 << 20
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
MESSAGE = bytes(10_000)


class Side:
    """The clients' side with a small bound, and who asked for what to be held."""

    def __init__(self, folder) -> None:
        self.context = zmq.asyncio.Context()
        self.held: set[Lane] = set()
        self.news = anyio.Event()
        self.heard: list[list[bytes]] = []
        info = LocalInfo("ipc", str(folder / "c"), dict(zip(CHANNELS, range(1, 6), strict=True)), b"key")
        self.side = ClientSide(info, lambda lane, parts: self.heard.append(parts), self.hold)

    def hold(self, lane: Lane, held: bool, by: str) -> None:
        assert held != (lane in self.held)
        (self.held.add if held else self.held.discard)(lane)
        self.news.set()
        self.news = anyio.Event()

    async def until_held(self, lane: Lane, held: bool) -> None:
        while (lane in self.held) != held:
            await self.news.wait()

    async def subscriber(self) -> zmq.asyncio.Socket:
        made = self.context.socket(zmq.SUB)
        made.linger, made.rcvhwm = 0, 1
        made.subscribe(b"")
        made.connect(self.side.info.url("iopub"))
        await made.recv_multipart()
        return made

    def fill(self, lane: Lane = Lane.IOPUB, to: bytes = b"t") -> int:
        """Deliver numbered messages until the lane is held, as the tunnel would."""
        count = 0
        while lane not in self.held:
            self.side.deliver(lane, [to, b"%d" % count, MESSAGE])
            count += 1
            assert count * len(MESSAGE) < 3 * LIMIT, "it is never held"
        return count

    def close(self) -> None:
        self.side.close()
        self.context.destroy(0)


@pytest.fixture
def clients(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(client_side, "_UNREAD", LIMIT)
    monkeypatch.setattr(patience, "_LOOK_S", 0.01)
    return lambda: Side(tmp_path_factory.mktemp("o"))


async def numbers(reader, count: int) -> list[int]:
    return [int((await reader.recv_multipart())[-2]) for _ in range(count)]


async def test_a_subscriber_that_does_not_read_is_waited_for_and_loses_nothing(clients):
    with anyio.fail_after(GENEROUS):
        c = clients()
        subscriber = await c.subscriber()
        count = c.fill()
        assert LIMIT <= c.side.channels["iopub"].held <= LIMIT + LIMIT // 8
        # Longer than it would take to let somebody go, if there were another.
        for _ in range(3 * patience._LOOKS):
            await anyio.sleep(patience._LOOK_S)
        assert c.held == {Lane.IOPUB}
        assert await numbers(subscriber, count) == list(range(count))
        await c.until_held(Lane.IOPUB, False)
        c.close()


async def test_a_subscriber_that_reads_keeps_nothing_back(clients):
    with anyio.fail_after(GENEROUS):
        c = clients()
        subscriber = await c.subscriber()
        for i in range(5 * LIMIT // len(MESSAGE)):
            c.side.deliver(Lane.IOPUB, [b"t", b"%d" % i, MESSAGE])
            assert await numbers(subscriber, 1) == [i]
        assert not c.held
        c.close()


async def test_one_that_stands_still_does_not_stop_another_for_long(clients):
    with anyio.fail_after(GENEROUS):
        c = clients()
        dead, living = await c.subscriber(), await c.subscriber()
        count = c.fill()
        assert await numbers(living, count) == list(range(count))
        await c.until_held(Lane.IOPUB, False)
        c.side.deliver(Lane.IOPUB, [b"t", b"4711", b""])
        assert await numbers(living, 1) == [4711]
        # The other may come back: it is welcomed anew.
        while b"iopub_welcome" not in b"".join(await dead.recv_multipart()):
            pass
        c.close()


async def test_replies_that_nobody_fetches_are_bounded_too(clients):
    with anyio.fail_after(GENEROUS):
        c = clients()
        client = c.context.socket(zmq.DEALER)
        client.linger, client.rcvhwm, client.identity = 0, 1, b"me"
        client.connect(c.side.info.url("shell"))
        await client.send(b"hello")
        while not c.heard:
            await anyio.sleep(0)
        count = c.fill(Lane.SHELL, b"me")
        assert c.held == {Lane.SHELL}
        assert await numbers(client, count) == list(range(count))
        await c.until_held(Lane.SHELL, False)
        c.close()


async def test_nothing_stays_held_when_the_channels_close(clients):
    with anyio.fail_after(GENEROUS):
        c = clients()
        await c.subscriber()
        c.fill()
        c.close()
        assert not c.held


async def test_a_kernel_that_does_not_read_holds_its_clients_up_and_loses_nothing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("k")
    held: set[tuple[Lane, str]] = set()
    with anyio.fail_after(GENEROUS):
        context = zmq.asyncio.Context()
        endpoints = {name: f"ipc://{folder}/{name}" for name in ("shell", "iopub", "stdin", "control")}

        def bound(kind: int, name: str) -> zmq.asyncio.Socket:
            made = context.socket(kind)
            made.linger, made.rcvhwm = 0, 1
            made.bind(endpoints[name])
            return made

        side = KernelSide(
            endpoints,
            lambda lane, parts: None,
            lambda lane, on, by: (held.add if on else held.discard)((lane, by)),
        )
        count = 0

        def fill(why: str) -> None:
            nonlocal count
            before = count
            while not any(reason.startswith(why) for _, reason in held):
                side.deliver(Lane.SHELL, [b"lab", b"%d" % count, MESSAGE])
                count += 1
                assert (count - before) * len(MESSAGE) < 3 * kernel_side._UNREAD, "it is never held"

        fill(kernel_side._NOT_YET)
        assert {lane for lane, _ in held} == {Lane.SHELL, Lane.STDIN, Lane.CONTROL}
        others = [bound(zmq.XPUB, "iopub"), bound(zmq.ROUTER, "control")]
        while (Lane.CONTROL, kernel_side._NOT_YET) in held:
            await anyio.sleep(0.01)
        assert {lane for lane, _ in held} == {Lane.SHELL}, "it does not know whom to ask"
        shell = bound(zmq.ROUTER, "shell")
        others.append(bound(zmq.ROUTER, "stdin"))
        while any(reason != kernel_side._STANDS_STILL for _, reason in held):
            await anyio.sleep(0.01)
        fill(kernel_side._STANDS_STILL)
        assert await numbers(shell, count) == list(range(count))
        while held:
            await anyio.sleep(0.01)
        side.close()
        assert others
        context.destroy(0)
