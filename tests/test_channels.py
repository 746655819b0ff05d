"""Both sides of the channels over real ZeroMQ sockets (`jupyter_depin.channels.places`, `jupyter_depin.channels.lanes`): identities, welcomes, signatures, floods; then a real kernel."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import zmq
import zmq.asyncio
from jupyter_client import AsyncKernelClient
from jupyter_client.session import Session

from jupyter_depin.channels import kernel_side
from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.channels.kernel_side import KernelSide
from jupyter_depin.errors import PortInUse, RemoteProtocolError, TransportError
from jupyter_depin.protocol.frames import Lane
from jupyter_depin.protocol.local import LocalInfo
from provider_kernel.sandbox import KernelCommand, Limits
from provider_kernel.sandbox.process import ProcessSandbox

KEY = b"a key of the connection file"
GENEROUS = 60
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


@dataclass
class Bench:
    """Makes sockets, and closes them at the end."""

    folder: Path
    context: zmq.asyncio.Context = field(default_factory=zmq.asyncio.Context)
    sides: list[ClientSide | KernelSide] = field(default_factory=list)

    def info(self, **changes: Any) -> LocalInfo:
        info = LocalInfo("ipc", str(self.folder / "c"), dict(zip(CHANNELS, range(1, 6), strict=True)), KEY)
        return replace(info, **changes)

    def socket(
        self, kind: int, url: str, *, identity: bytes = b"", bind: bool = False, **options: Any
    ) -> zmq.asyncio.Socket:
        made = self.context.socket(kind)
        made.linger, made.sndhwm, made.rcvhwm = 0, 0, 0
        if identity:
            made.identity = identity
        for name, value in options.items():
            setattr(made, name, value)
        (made.bind if bind else made.connect)(url)
        return made

    def subscriber(self, url: str, topic: bytes = b"") -> zmq.asyncio.Socket:
        made = self.socket(zmq.SUB, url)
        made.subscribe(topic)
        return made

    def client_side(self, info: LocalInfo, on_message: Any) -> ClientSide:
        self.sides.append(side := ClientSide(info, on_message))
        return side

    def kernel_side(self, endpoints: dict[str, str], on_message: Any) -> KernelSide:
        self.sides.append(side := KernelSide(endpoints, on_message))
        return side

    def session(self) -> Session:
        return Session(key=KEY, username="me")


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractAsyncContextManager[Bench]]:
    """`async with bench() as b`."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Bench]:
        # A short path: a Unix socket's name may have 107 bytes.
        with anyio.fail_after(GENEROUS):
            b = Bench(tmp_path_factory.mktemp("z"))
            try:
                yield b
            finally:
                for side in b.sides:
                    side.close()
                b.context.destroy(0)

    return opened


class Heard:
    """A handler that keeps what it gets and lets tests wait for it."""

    def __init__(self) -> None:
        self.messages: list[tuple[Lane, list[bytes]]] = []
        self._news = asyncio.Event()

    def __call__(self, lane: Lane, parts: Any) -> None:
        self.messages.append((lane, [bytes(part) for part in parts]))
        self._news.set()

    async def count(self, count: int) -> list[tuple[Lane, list[bytes]]]:
        while len(self.messages) < count:
            self._news.clear()
            await self._news.wait()
        return self.messages


# -- the clients' side


async def test_a_clients_identity_goes_in_front_and_answers_find_it(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        clients = {
            name: b.socket(zmq.DEALER, side.info.url("shell"), identity=name) for name in (b"lab", b"console")
        }
        for name, client in clients.items():
            await client.send_multipart([b"from", name])
        got = await heard.count(2)
        assert sorted(parts for _, parts in got) == [
            [b"console", b"from", b"console"],
            [b"lab", b"from", b"lab"],
        ]
        for name in clients:
            side.deliver(Lane.SHELL, [name, b"to", name])
        for name, client in clients.items():
            assert await client.recv_multipart() == [b"to", name]


@pytest.mark.parametrize("lane", [Lane.SHELL, Lane.STDIN, Lane.CONTROL])
async def test_each_channel_is_its_lane(bench, lane):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        client = b.socket(zmq.DEALER, side.info.url(lane.name.lower()), identity=b"me")
        await client.send_multipart([b"", b"x"])
        assert await heard.count(1) == [(lane, [b"me", b"", b"x"])]


async def test_a_client_that_comes_back_under_its_name_takes_over(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        first = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"tab")
        await first.send(b"1")
        await heard.count(1)
        second = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"tab")
        await second.send(b"2")
        await heard.count(2)
        side.deliver(Lane.SHELL, [b"tab", b"for the newer"])
        assert await second.recv() == b"for the newer"


@pytest.mark.parametrize("topic", [b"", b"stream", b"\xff\xfe"])
async def test_every_subscription_is_welcomed_with_a_right_signature(bench, topic):
    async with bench() as b:
        side = b.client_side(b.info(), Heard())
        for _ in range(2):
            subscriber = b.subscriber(side.info.url("iopub"), topic)
            _, frames = b.session().feed_identities(await subscriber.recv_multipart())
            welcome = b.session().deserialize(frames)
            assert welcome["msg_type"] == "iopub_welcome"
            assert welcome["content"] == {"subscription": topic.decode(errors="replace")}


async def test_the_kernels_own_welcome_is_not_passed_on_but_talk_of_it_is(bench):
    async with bench() as b:
        side = b.client_side(b.info(), Heard())
        subscriber = b.subscriber(side.info.url("iopub"))
        await subscriber.recv_multipart()
        session = b.session()
        for kind, content in (
            ("iopub_welcome", {"subscription": ""}),
            ("display_data", {"data": {"application/json": {"iopub_welcome": 1}}, "metadata": {}}),
            ("stream", {"name": "stdout", "text": '"iopub_welcome"'}),
        ):
            frames = session.serialize(session.msg(kind, content), ident=b"topic")
            side.deliver(Lane.IOPUB, frames)
        got = []
        for _ in range(2):
            _, frames = session.feed_identities(await subscriber.recv_multipart())
            got.append(b.session().deserialize(frames)["msg_type"])
        assert got == ["display_data", "stream"]


async def test_the_heartbeat_is_answered_here(bench):
    async with bench() as b:
        side = b.client_side(b.info(), Heard())
        heart = b.socket(zmq.REQ, side.info.url("hb"))
        for beat in (b"ping", b"\0", b"x" * 1000):
            await heart.send(beat)
            assert await heart.recv() == beat


async def test_what_is_said_belongs_to_the_cell_that_ran_last(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        session = b.session()
        subscriber = b.subscriber(side.info.url("iopub"))
        await subscriber.recv_multipart()
        client = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"me")

        async def said(text: str) -> dict[str, Any]:
            side.say(text)
            _, frames = session.feed_identities(await subscriber.recv_multipart())
            return b.session().deserialize(frames)

        assert (await said("before any"))["parent_header"] == {}
        cells = [session.msg("execute_request", {"code": f"{i}"}) for i in range(2)]
        for count, message in enumerate([cells[0], cells[1], session.msg("kernel_info_request", {})], 1):
            await client.send_multipart(session.serialize(message))
            await heard.count(count)
        message = await said("why it ended: é")
        assert message["msg_type"] == "stream"
        assert message["content"] == {"name": "stderr", "text": "why it ended: é\n"}
        assert message["parent_header"]["msg_id"] == cells[1]["header"]["msg_id"]


async def test_without_a_key_nothing_is_signed(bench):
    async with bench() as b:
        side = b.client_side(b.info(key=b""), Heard())
        frames = await b.subscriber(side.info.url("iopub")).recv_multipart()
        assert frames[1] == b""


async def test_a_paused_lane_waits_loses_nothing_and_holds_up_no_other(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        shell = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"me")
        control = b.socket(zmq.DEALER, side.info.url("control"), identity=b"me")
        await shell.send(b"first")
        await heard.count(1)
        side.pause(Lane.SHELL, True)
        for i in range(500):
            await shell.send(b"%d" % i)
        await control.send(b"interrupt")
        await heard.count(2)
        assert heard.messages[1] == (Lane.CONTROL, [b"me", b"interrupt"])
        assert len(heard.messages) == 2
        side.pause(Lane.SHELL, False)
        await heard.count(502)
        assert [parts[1] for _, parts in heard.messages[2:]] == [b"%d" % i for i in range(500)]


async def test_a_flood_of_twenty_thousand_messages_arrives_whole_and_in_order(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        client = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"me")
        subscriber = b.subscriber(side.info.url("iopub"))
        await subscriber.recv_multipart()

        async def listen() -> None:
            for i in range(20_000):
                assert await subscriber.recv_multipart() == [b"t", b"%d" % i]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            for i in range(20_000):
                side.deliver(Lane.IOPUB, [b"t", b"%d" % i])
                await client.send(b"%d" % i)
            await heard.count(20_000)
        assert [parts[1] for _, parts in heard.messages] == [b"%d" % i for i in range(20_000)]


async def test_big_frames_pass_both_ways(bench):
    async with bench() as b:
        heard = Heard()
        side = b.client_side(b.info(), heard)
        client = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"me")
        big = secrets.token_bytes(8 << 20)
        await client.send_multipart([b"head", big, b""])
        assert (await heard.count(1))[0][1] == [b"me", b"head", big, b""]
        for body in (bytearray(big), memoryview(big), big):
            side.deliver(Lane.SHELL, [b"me", b"head", body])
            assert await client.recv_multipart() == [b"head", big]


async def test_curve_keeps_strangers_out(bench):
    async with bench() as b:
        public, secret = zmq.curve_keypair()
        heard = Heard()
        info = b.info(transport="tcp", ip="127.0.0.1", ports=free_ports())
        side = b.client_side(replace(info, curve_publickey=public, curve_secretkey=secret), heard)
        mine, my_secret = zmq.curve_keypair()
        stranger = b.socket(zmq.DEALER, side.info.url("shell"), identity=b"stranger")
        friend = b.socket(
            zmq.DEALER, side.info.url("shell"), identity=b"friend",
            curve_serverkey=public, curve_publickey=mine, curve_secretkey=my_secret,
        )  # fmt: skip
        await friend.send(b"hello")
        await heard.count(1)
        await friend.send(b"again")
        await heard.count(2)
        assert [parts[0] for _, parts in heard.messages] == [b"friend", b"friend"]
        assert stranger


def free_ports() -> dict[str, int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in CHANNELS]
    ports = {channel: listener.getsockname()[1] for channel, listener in zip(CHANNELS, held, strict=True)}
    for listener in held:
        listener.close()
    return ports


async def test_a_port_in_use_is_one_sentence_and_leaves_nothing_open(bench):
    async with bench() as b:
        ports = free_ports()
        info = b.info(transport="tcp", ip="127.0.0.1", ports=ports)
        with socket.create_server(("127.0.0.1", ports["iopub"])), pytest.raises(PortInUse) as caught:
            ClientSide(info, Heard())
        assert str(ports["iopub"]) in str(caught.value)
        assert "already in use" in str(caught.value)
        # The ports that it had taken before are free again.
        side = b.client_side(info, Heard())
        side.close()


async def test_an_address_that_cannot_be_is_a_transport_error(bench):
    async with bench() as b:
        with pytest.raises(TransportError):
            ClientSide(b.info(ip=str(b.folder / "no" / "such" / "folder")), Heard())


# -- the kernel's side


class Kernel:
    """The channels of a kernel, played by the test."""

    def __init__(self, b: Bench, *, stdin: bool = True, iopub: bool = True) -> None:
        self.b = b
        self.endpoints = {
            name: f"ipc://{b.folder}/k-{name}" for name in ("shell", "iopub", "stdin", "control")
        }
        self.shell = b.socket(zmq.ROUTER, self.endpoints["shell"], bind=True)
        self.control = b.socket(zmq.ROUTER, self.endpoints["control"], bind=True)
        if iopub:
            self.open_iopub()
        if stdin:
            self.open_stdin()

    def open_iopub(self) -> None:
        self.iopub = self.b.socket(zmq.XPUB, self.endpoints["iopub"], bind=True)

    def open_stdin(self) -> None:
        self.stdin = self.b.socket(zmq.ROUTER, self.endpoints["stdin"], bind=True, router_mandatory=1)


async def test_the_kernel_sees_the_clients_identity_and_can_ask_it(bench):
    async with bench() as b:
        kernel, heard = Kernel(b), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        for name in (b"lab", b"console"):
            side.deliver(Lane.SHELL, [name, b"execute", name])
            assert await kernel.shell.recv_multipart() == [name, b"execute", name]
            # The socket refuses names that it does not know. As the kernel does, it looks for old answers first.
            assert not kernel.stdin.getsockopt(zmq.EVENTS) & zmq.POLLIN
            await kernel.stdin.send_multipart([name, b"your name?"])
        side.deliver(Lane.STDIN, [b"lab", b"Ada"])
        assert await kernel.stdin.recv_multipart() == [b"lab", b"Ada"]
        await kernel.shell.send_multipart([b"console", b"reply"])
        got = await heard.count(3)
        assert sorted(got) == sorted(
            [
                (Lane.STDIN, [b"lab", b"your name?"]),
                (Lane.STDIN, [b"console", b"your name?"]),
                (Lane.SHELL, [b"console", b"reply"]),
            ]
        )
        side.close()


async def test_a_frame_beyond_every_bound_is_not_read_into_memory(bench, monkeypatch):
    monkeypatch.setattr(kernel_side, "MAX_FRAME", 1000)
    async with bench() as b:
        kernel, heard = Kernel(b), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        side.deliver(Lane.CONTROL, [b"lab", b"hello"])
        assert await kernel.control.recv_multipart() == [b"lab", b"hello"]
        await kernel.control.send_multipart([b"lab", bytes(1000)])
        gone = kernel.control.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        await kernel.control.send_multipart([b"lab", bytes(1001)])
        assert await gone.recv_multipart()
        kernel.control.disable_monitor()
        assert await heard.count(1) == [(Lane.CONTROL, [b"lab", bytes(1000)])]


async def test_shell_waits_until_the_kernel_knows_whom_to_ask(bench):
    async with bench() as b:
        kernel, heard = Kernel(b, stdin=False), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        for i in range(3):
            side.deliver(Lane.SHELL, [b"lab", b"%d" % i])
        side.deliver(Lane.CONTROL, [b"lab", b"interrupt"])
        assert await kernel.control.recv_multipart() == [b"lab", b"interrupt"]
        assert not await kernel.shell.poll(50)
        kernel.open_stdin()
        for i in range(3):
            assert await kernel.shell.recv_multipart() == [b"lab", b"%d" % i]


@pytest.mark.parametrize("welcomes", [True, False])
async def test_nothing_is_asked_of_a_kernel_whose_output_nobody_would_hear(bench, welcomes):
    async with bench() as b:
        kernel, heard = Kernel(b, iopub=False), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        side.deliver(Lane.SHELL, [b"lab", b"execute"])
        side.deliver(Lane.CONTROL, [b"lab", b"debug"])
        assert not await kernel.shell.poll(50)
        assert not await kernel.control.poll(0)
        kernel.open_iopub()
        if welcomes:
            assert await kernel.iopub.recv() == b"\x01"
            await kernel.iopub.send_multipart([b"welcome"])
        assert await kernel.shell.recv_multipart() == [b"lab", b"execute"]
        assert await kernel.control.recv_multipart() == [b"lab", b"debug"]
        await kernel.iopub.send_multipart([b"idle"])
        assert (await heard.count(1 + welcomes))[-1] == (Lane.IOPUB, [b"idle"])


async def test_anonymous_clients_get_names_of_their_own_and_a_bounded_crowd(bench):
    async with bench() as b:
        kernel, heard = Kernel(b), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        names = set()
        for i in range(100):
            anonymous = b"\0" + i.to_bytes(4, "big")
            side.deliver(Lane.CONTROL, [anonymous, b"kernel_info"])
            name, word = await kernel.control.recv_multipart()
            assert word == b"kernel_info"
            assert name[:1] != b"\0"
            names.add(name)
            await kernel.control.send_multipart([name, b"reply"])
            assert (await heard.count(i + 1))[-1] == (Lane.CONTROL, [anonymous, b"reply"])
        assert len(names) == 100
        assert len(side._clients) <= 32


async def test_clients_with_names_are_bounded_too_and_the_newest_stay(bench):
    """Each reload of a browser's page brings one."""
    async with bench() as b:
        kernel, heard = Kernel(b), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        for i in range(400):
            side.deliver(Lane.CONTROL, [b"page %d" % i, b"hello"])
            side.deliver(Lane.CONTROL, [b"console", b"still here"])
            for _ in range(2):
                await kernel.control.recv_multipart()
        assert len(side._clients) <= 128
        await kernel.control.send_multipart([b"console", b"reply"])
        assert (await heard.count(1))[-1] == (Lane.CONTROL, [b"console", b"reply"])
        # One that was let go comes back as if nothing had been.
        side.deliver(Lane.CONTROL, [b"page 0", b"again"])
        assert await kernel.control.recv_multipart() == [b"page 0", b"again"]
        await kernel.control.send_multipart([b"page 0", b"reply"])
        assert (await heard.count(2))[-1] == (Lane.CONTROL, [b"page 0", b"reply"])


@pytest.mark.parametrize("lane", [Lane.IOPUB, Lane.LEASE])
async def test_a_clients_message_on_another_lane_is_the_peers_fault(bench, lane):
    async with bench() as b:
        side = b.kernel_side(Kernel(b).endpoints, Heard())
        with pytest.raises(RemoteProtocolError):
            side.deliver(lane, [b"lab", b"x"])


@pytest.mark.parametrize("identity", [b"", b"x" * 256])
async def test_an_identity_that_zeromq_cannot_bear_is_the_peers_fault(bench, identity):
    async with bench() as b:
        side = b.kernel_side(Kernel(b).endpoints, Heard())
        with pytest.raises(RemoteProtocolError):
            side.deliver(Lane.SHELL, [identity, b"x"])


async def test_the_kernels_output_is_read_whole(bench):
    async with bench() as b:
        kernel, heard = Kernel(b), Heard()
        side = b.kernel_side(kernel.endpoints, heard)
        assert await kernel.iopub.recv() == b"\x01"
        assert not side.pending()
        big = secrets.token_bytes(3 << 20)
        for i in range(20_000):
            await kernel.iopub.send_multipart([b"t", b"%d" % i])
        await kernel.iopub.send_multipart([b"t", big])
        await heard.count(20_001)
        assert [parts[1] for _, parts in heard.messages[:-1]] == [b"%d" % i for i in range(20_000)]
        assert heard.messages[-1] == (Lane.IOPUB, [b"t", big])
        side.close()
        assert not side.pending()


# -- a real kernel behind both sides


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractAsyncContextManager[LocalInfo]]:
    """`async with real() as info`: a kernel, reached through both sides joined back to back."""

    @asynccontextmanager
    async def running() -> AsyncIterator[LocalInfo]:
        folder = tmp_path_factory.mktemp("r")
        with anyio.fail_after(2 * GENEROUS):
            kernel = await ProcessSandbox().start(
                KernelCommand(key=KEY), folder=folder / "k", limits=Limits()
            )
            endpoints = {
                name: getattr(kernel.sockets, name) for name in ("shell", "iopub", "stdin", "control")
            }
            info = LocalInfo("ipc", str(folder / "c"), dict(zip(CHANNELS, range(1, 6), strict=True)), KEY)
            client_side = ClientSide(info, lambda lane, parts: kernel_side.deliver(lane, parts))
            kernel_side = KernelSide(endpoints, lambda lane, parts: client_side.deliver(lane, parts))
            try:
                yield info
            finally:
                client_side.close()
                kernel_side.close()
                await kernel.destroy()

    return running


async def connected(info: LocalInfo) -> AsyncKernelClient:
    client = AsyncKernelClient()
    facts = {f"{channel}_port": port for channel, port in info.ports.items()}
    client.load_connection_info(
        {**facts, "ip": info.ip, "transport": "ipc", "key": KEY.decode(), "signature_scheme": "hmac-sha256"}
    )
    client.start_channels()
    await client.wait_for_ready(timeout=GENEROUS)
    return client


async def test_two_clients_each_answer_their_own_question(real):
    async with real() as info:
        clients = [await connected(info) for _ in range(2)]
        for name, client in zip(("Ada", "Grace"), clients, strict=True):
            request = client.execute("print('hello', input('name? '))", allow_stdin=True)
            question = await client.get_stdin_msg(timeout=GENEROUS)
            assert question["content"]["prompt"] == "name? "
            client.input(name)
            while (reply := await client.get_shell_msg(timeout=GENEROUS))["parent_header"][
                "msg_id"
            ] != request:
                pass
            assert reply["content"]["status"] == "ok"
            said = ""
            while "hello" not in said:
                message = await client.get_iopub_msg(timeout=GENEROUS)
                if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == request:
                    said += message["content"]["text"]
            assert said == f"hello {name}\n"
        for client in clients:
            client.stop_channels()


async def test_a_flood_of_output_and_a_big_buffer_come_whole(real):
    async with real() as info:
        client = await connected(info)
        request = client.execute("for i in range(20000): print(i)")
        said = ""
        while True:
            message = await client.get_iopub_msg(timeout=GENEROUS)
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
            if (
                message["parent_header"].get("msg_id") == request
                and message["content"].get("execution_state") == "idle"
            ):
                break
        assert said == "".join(f"{i}\n" for i in range(20000))
        client.execute(
            "from ipykernel.comm import Comm; Comm('t', data={'a': 1}, buffers=[bytes(range(256)) * 40000])"
        )
        while (message := await client.get_iopub_msg(timeout=GENEROUS))["msg_type"] != "comm_open":
            pass
        assert bytes(message["buffers"][0]) == bytes(range(256)) * 40000
        client.stop_channels()
