"""Where connections come from (`jupyter_depin.channels.places`), and whose hold is whose (`jupyter_depin.channels.client_side`), on either loop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from jupyter_depin.channels import client_side, places
from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.channels.peer import Owner, Peer
from jupyter_depin.channels.places import Dialler, Listener
from jupyter_depin.channels.zmtp import NULL, command, greeting, properties
from jupyter_depin.errors import PortInUse
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.local import LocalInfo
from tests.channels.raw import LOOPS, Kept, Raw, Server, descriptors, run_on, until

LIMIT = 1 << 18
MESSAGE = bytes(20_000)
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are counted in /proc")


@pytest.fixture(params=LOOPS)
def on_loop(request) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    return lambda play: run_on(request.param, play)


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    # A short path: a Unix socket's name may have 107 bytes.
    return tmp_path_factory.mktemp("q")


def router() -> Peer:
    return Peer(Kept(), b"ROUTER", limit=LIMIT)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- listeners


@LINUX
@pytest.mark.parametrize("endpoint", ["ipc://{}/s", "tcp://127.0.0.1:0"])
def test_a_listener_closed_at_any_moment_leaves_nothing_open(on_loop, folder, endpoint):
    async def play():
        warm = Listener(endpoint.format(folder), router)
        await steps(5)
        warm.close()
        await steps(5)
        before = descriptors()
        for count in range(6):
            listener = Listener(endpoint.format(folder), router)
            await steps(count)
            listener.close()
            listener.close()
            await until(lambda: descriptors() <= before)
            assert os.listdir(folder) == []
            # The loop forgot it too: the next, with the same descriptor, is served.
            listener = Listener(endpoint.format(folder), router)
            kind = asyncio.open_unix_connection if listener._path else asyncio.open_connection
            reader, writer = await kind(
                *([listener._path] if listener._path else listener._socket.getsockname())
            )
            assert len(await reader.readexactly(64)) == 64
            listener.close()
            writer.transport.abort()
            await until(lambda: descriptors() <= before)

    on_loop(play)


def test_who_takes_a_name_over_keeps_it(on_loop, folder):
    async def play():
        owner = Kept()
        older = Listener(f"ipc://{folder}/s", router)
        newer = Listener(f"ipc://{folder}/s", lambda: Peer(owner, b"ROUTER", limit=LIMIT))
        older.close()
        raw = await Raw.connect(f"{folder}/s")
        await raw.shake()
        assert owner.told == ["ready"]
        raw.hang_up()
        newer.close()
        await until(lambda: "lost" in owner.told)

    on_loop(play)


def test_a_port_that_is_taken_is_told(on_loop):
    async def play():
        listener = Listener("tcp://127.0.0.1:0", router)
        port = listener._socket.getsockname()[1]
        with pytest.raises(PortInUse):
            Listener(f"tcp://127.0.0.1:{port}", router)
        listener.close()

    on_loop(play)


def test_localhost_is_where_zeromq_looks_for_it(on_loop):
    async def play():
        listener = Listener("tcp://localhost:0", router)
        assert listener._socket.getsockname()[0] == "127.0.0.1"
        listener.close()

    on_loop(play)


# -- diallers


def dialler(endpoint: str, got: list[Any], **options: Any) -> Dialler:
    def made(owner: Owner) -> Peer:
        return Peer(owner, b"DEALER", limit=LIMIT, identity=b"me")

    return Dialler(
        endpoint, made, lambda parts: got.append([bytes(p) for p in parts]), limit=LIMIT, **options
    )


def test_a_kernel_that_comes_late_and_again_is_found_and_told_what_waited(on_loop, folder):
    async def play():
        got: list[Any] = []
        d = dialler(f"ipc://{folder}/k", got, first=[b"first"])
        d.send([b"waited"])
        async with Server(f"{folder}/k") as kernel:
            for number in range(3):
                raw = await kernel.connection(number)
                await raw.shake(b"ROUTER")
                assert raw.known[b"identity"] == b"me"
                assert await raw.heard() == [b"first"]
                assert await raw.heard() == [b"waited"]
                raw.message(b"%d" % number)
                await until(lambda n=number: len(got) > n)
                raw.hang_up()
                await until(lambda: d._peer is None)
                d.send([b"waited"])
            d.close()
            d.close()
        assert got == [[b"0"], [b"1"], [b"2"]]

    on_loop(play)


def test_what_waits_and_what_is_not_read_is_told_once_and_over_when_the_kernel_goes(on_loop, folder):
    async def play():
        told: list[bool] = []
        d = dialler(f"ipc://{folder}/k", [], on_full=told.append)
        while not told:
            d.send([MESSAGE])
        async with Server(f"{folder}/k") as kernel:
            raw = await kernel.connection()
            await raw.shake(b"ROUTER")
            while len(told) % 2 or d._peer.held < LIMIT:
                d.send([MESSAGE])
                if len(told) % 2:
                    await steps(20)
                    if len(told) % 2:
                        break
            raw.hang_up()
            await until(lambda: not len(told) % 2)
            while not len(told) % 2:
                d.send([MESSAGE])
            d.close()
            await steps(5)
        assert told == [True, False] * (len(told) // 2)

    on_loop(play)


def test_what_an_older_connection_was_asked_says_nothing_of_the_next(on_loop, folder):
    async def play():
        known: list[int] = []
        d = dialler(f"ipc://{folder}/k", [], on_known=lambda: known.append(1))
        async with Server(f"{folder}/k") as kernel:
            raw = await kernel.connection()
            await raw.shake(b"ROUTER", minor=1)
            await until(lambda: d._peer.is_ready)
            older = d._peer
            raw.hang_up()
            await kernel.connection(1)
            d.answered(older)
            assert not known
            d.answered(d._peer)
            assert known
            d.close()

    on_loop(play)


def test_a_kernel_that_only_hangs_up_is_dialled_ever_more_seldom(on_loop, folder):
    async def play():
        d = dialler(f"ipc://{folder}/k", [])
        async with Server(f"{folder}/k") as kernel:
            for number in range(6):
                raw = await kernel.connection(number)
                await raw.shake(b"ROUTER")
                await until(lambda: d._peer is not None and d._peer.is_ready)
                raw.hang_up()
                await until(lambda: d._peer is None)
            assert places._OFTEN_S <= d._pause_s < 2 * places._OFTEN_S
            # One that starts late after a long wait, and hangs up, is not waited for so long again.
            d._pause_s = places._LONGEST_S
            d._again.cancel()
            d._redial()
            await (await kernel.connection(6)).shake(b"ROUTER")
            await until(lambda: d._peer is not None and d._peer.is_ready)
            kernel.taken[6].hang_up()
            await until(lambda: d._peer is None)
            assert d._pause_s < 2 * places._OFTEN_S
            d.close()

    on_loop(play)


@LINUX
@pytest.mark.parametrize("tcp", [False, True])
def test_a_dialler_closed_at_any_moment_leaves_nothing_open(on_loop, folder, tcp):
    async def play():
        loop = asyncio.get_running_loop()
        server = await (
            loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            if tcp
            else loop.create_unix_server(asyncio.Protocol, f"{folder}/k")
        )
        endpoint = f"ipc://{folder}/k"
        if tcp:
            endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # A loop's first looks open what then stays.
        warm = dialler(endpoint, [])
        await until(lambda: warm._peer is not None)
        warm.close()
        await asyncio.sleep(0.05)
        before = descriptors()
        for count in range(10):
            d = dialler(endpoint, [])
            await steps(count)
            d.close()
            await until(lambda: descriptors() <= before)
            assert d._peer is None or not d._peer.is_ready
        server.close()

    on_loop(play)


# -- clients


class Clients:
    """The clients' side; a hold that is asked for twice, or given back by somebody else, fails."""

    def __init__(self, folder: Path) -> None:
        self.held: set[Lane] = set()
        self.heard: list[list[bytes]] = []
        info = LocalInfo("ipc", str(folder / "c"), dict(zip(CHANNELS, range(1, 6), strict=True)), b"key")
        self.side = ClientSide(
            info, lambda lane, parts: self.heard.append([bytes(p) for p in parts]), self.hold
        )

    def hold(self, lane: Lane, held: bool, by: str) -> None:
        assert held != (lane in self.held)
        (self.held.add if held else self.held.discard)(lane)

    async def client(self, channel: str, identity: bytes = b"", kind: bytes = b"DEALER") -> Raw:
        raw = await Raw.connect(self.side.info.url(channel).removeprefix("ipc://"))
        await raw.shake(kind, identity)
        return raw

    async def fill(self, lane: Lane, to: bytes) -> int:
        """Deliver until the lane is held, and stays so."""
        count = 0
        while lane not in self.held:
            self.side.deliver(lane, [to, MESSAGE])
            count += 1
            if lane in self.held:
                await steps(20)
        return count


@pytest.fixture
def clients(on_loop, folder, monkeypatch):
    """`clients(play)` runs `await play(c)`."""
    monkeypatch.setattr(client_side, "_UNREAD", LIMIT)

    def played(play: Callable[[Clients], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            c = Clients(folder)
            try:
                await play(c)
            finally:
                c.side.close()
                await steps(3)
            assert not c.held

        on_loop(whole)

    return played


@pytest.mark.parametrize("lane", [Lane.SHELL, Lane.IOPUB])
@pytest.mark.parametrize("how", ["goes", "is taken over", "is closed", "is closed by halves"])
def test_a_hold_ends_with_whoever_it_was_for(clients, lane, how):
    async def play(c):
        kind = b"DEALER" if lane is Lane.SHELL else b"SUB"
        raw = await c.client(lane.name.lower(), b"me", kind)
        if lane is Lane.IOPUB:
            raw.message(b"\x01")
            await raw.heard()
        await c.fill(lane, b"me")
        if how == "goes":
            raw.hang_up()
        elif how == "is closed by halves":
            raw.writer.write_eof()
        elif how == "is closed":
            c.side.close()
            assert not c.held
        elif lane is Lane.SHELL:
            other = await c.client("shell", b"me")
            c.side.deliver(lane, [b"me", b"to the newer one"])
            assert await other.heard() == [b"to the newer one"]
        else:
            raw.hang_up()
        await until(lambda: not c.held)

    clients(play)


def test_a_hold_lasts_as_long_as_anybody_is_full(clients):
    async def play(c):
        first, second = await c.client("shell", b"1"), await c.client("shell", b"2")
        await c.fill(Lane.SHELL, b"1")
        channel = c.side.channels["shell"]
        while not channel.peers[b"2"].is_full:
            c.side.deliver(Lane.SHELL, [b"2", MESSAGE])
            await steps(20 if channel.peers[b"2"].is_full else 0)
        first.hang_up()
        await until(lambda: b"1" not in channel.peers)
        assert c.held == {Lane.SHELL}
        second.hang_up()
        await until(lambda: not c.held)

    clients(play)


def test_subscribers_of_one_name_all_read(clients):
    async def play(c):
        readers = [await c.client("iopub", b"me", b"SUB") for _ in range(3)]
        for raw in readers:
            raw.message(b"\x01")
            assert b"iopub_welcome" in b"".join(await raw.heard())
        c.side.deliver(Lane.IOPUB, [b"topic", b"news"])
        for raw in readers:
            assert await raw.heard() == [b"topic", b"news"]

    clients(play)


def test_a_heart_beats_for_whoever_reads_its_answers(clients):
    async def play(c):
        raw = await c.client("hb", kind=b"REQ")
        raw.message(b"", b"ping")
        assert await raw.heard() == [b"", b"ping"]
        peer = next(iter(c.side.channels["hb"].peers.values()))
        count = 0
        while not peer.is_full:
            raw.message(b"", bytes(4_000))
            count += 1
            await steps(1)
        for _ in range(1_000):
            raw.message(b"", bytes(4_000))
        await until(lambda: raw.writer.transport.get_write_buffer_size() == 0 and not peer.pending())
        assert peer.held < 2 * LIMIT

    clients(play)


def test_a_giant_where_only_small_words_belong_ends_its_connection(clients):
    async def play(c):
        for channel, kind in (("hb", b"REQ"), ("iopub", b"SUB")):
            raw = await c.client(channel, kind=kind)
            raw.say(b"\x02" + (1 << 20).to_bytes(8, "big"))
            await raw.rest()
            await until(lambda channel=channel: not c.side.channels[channel].peers)

    clients(play)


def test_sixty_four_mebibytes_for_a_slow_client_leave_the_other_lanes_free(clients, monkeypatch):
    monkeypatch.setattr(client_side, "_UNREAD", 64 << 20)

    async def play(c):
        slow, quick = await c.client("shell", b"me"), await c.client("control", b"me")
        big = bytes(range(256)) * 4096
        count = 0
        while Lane.SHELL not in c.held:
            c.side.deliver(Lane.SHELL, [b"me", b"%d" % count, big])
            count += 1
        assert count >= 64
        quick.message(b"interrupt")
        await until(lambda: c.heard)
        c.side.deliver(Lane.CONTROL, [b"me", b"interrupted"])
        assert await quick.heard() == [b"interrupted"]
        for number in range(count):
            assert await slow.heard() == [b"%d" % number, big]
            c.side.deliver(Lane.CONTROL, [b"me", b"%d" % number])
            assert await quick.heard() == [b"%d" % number]
        await until(lambda: not c.held)

    clients(play)


def test_nobody_gets_in_while_it_closes(clients):
    async def play(c):
        channel = c.side.channels["shell"]
        path = c.side.info.url("shell").removeprefix("ipc://")
        hello = greeting(NULL, server=False) + command(b"READY", properties(b"DEALER"))
        crowd = []
        for count in range(4):
            crowd.append(await Raw.connect(path))
            await steps(count)
        for raw in crowd:
            raw.say(hello)
        c.side.close()
        for _ in range(50):
            await steps(1)
            assert not channel.peers

    clients(play)
