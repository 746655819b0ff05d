"""What only the real network has: ports, deadlines, tickets, and a binding whose insides may change."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from iroh import iroh_ffi

from jupyter_depin.errors import ConfigError, ConnectionLost, PeerUnreachable, PortInUse, TransportError
from jupyter_depin.protocol.identity import Address, NodeAddress, Ticket
from jupyter_depin.transport import iroh, iroh_calls, iroh_connection, iroh_errors


async def test_a_node_keeps_its_id_over_restarts(iroh_nodes):
    secret = os.urandom(32)
    with anyio.fail_after(60):
        endpoint = await iroh.bind(secret=secret, listen="127.0.0.1:0")
        await endpoint.close()
    assert endpoint.node == iroh.node_id_of(secret)


def test_a_secret_of_the_wrong_length_is_refused():
    with pytest.raises(ConfigError, match="32 bytes, not 5"):
        iroh.node_id_of(b"short")


@pytest.mark.parametrize(
    "wrong",
    [{"listen": "localhost"}, {"relay": "not a url"}, {"secret": b""}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ConfigError):
        await iroh.bind(**{"secret": os.urandom(32), **wrong})


async def test_a_taken_port_is_named():
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"^Port {port} is already in use on this machine"):
            await iroh.bind(secret=os.urandom(32), listen=f"127.0.0.1:{port}")


async def test_a_closed_node_leaves_its_port_to_the_next(iroh_nodes, join, open_pair):
    async with iroh_nodes() as (a, b):
        here, there = await join(a, b)
        streams = await open_pair(here, there)

        async def expect_loss(call, *args):
            with pytest.raises(ConnectionLost):
                await call(*args)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_loss, b.accept)
            tasks.start_soon(expect_loss, there.accept_stream)
            tasks.start_soon(expect_loss, streams[1].read, 1)
            await anyio.wait_all_tasks_blocked()
            await b.close()
        # What is left in our hands does not keep the port, and says what happened.
        (where,) = b.address().direct
        successor = await iroh.bind(secret=os.urandom(32), listen=where)
        try:
            assert successor.address().direct == (where,)
            await join(a, successor)
        finally:
            await successor.close()
        assert there.path() is None
        assert await there.closed()
        assert await here.closed() == "closed by the other side"
        for call in (
            there.open_stream,
            there.accept_stream,
            lambda: streams[1].read(1),
            lambda: streams[1].write(b"x"),
        ):
            await expect_loss(call)
        await there.close()


async def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(TransportError):
        await iroh.bind(secret=os.urandom(32), listen="203.0.113.1:0")


async def test_silence_ends_a_dial():
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent, anyio.fail_after(60):
        silent.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        endpoint = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0", dial_seconds=0.05)
        try:
            with pytest.raises(PeerUnreachable, match=f"^The provider at {where} did not answer"):
                await endpoint.connect(NodeAddress(iroh.node_id_of(os.urandom(32)), (), (where,)))
        finally:
            await endpoint.close()


@pytest.mark.parametrize("direct", ["nonsense", "127.0.0.1"])
async def test_an_address_that_makes_no_sense_cannot_be_reached(iroh_nodes, direct):
    async with iroh_nodes() as (a, b):
        with pytest.raises(PeerUnreachable):
            await a.connect(NodeAddress(b.node, (), (direct,)))


async def test_another_node_at_the_same_address_is_not_taken_for_the_right_one(iroh_nodes):
    async with iroh_nodes() as (_a, b):
        impatient = await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0", dial_seconds=2)
        try:
            address = NodeAddress(iroh.node_id_of(os.urandom(32)), (), b.address().direct)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(b.accept)
                with pytest.raises(PeerUnreachable):
                    await impatient.connect(address)
                tasks.cancel_scope.cancel()
        finally:
            await impatient.close()


async def test_a_ticket_leads_to_a_node_that_listens_everywhere(iroh_nodes, join, open_pair):
    async with iroh_nodes() as (a, _b):
        everywhere = await iroh.bind(secret=os.urandom(32))
        try:
            text = str(Ticket(everywhere.address(), Address(bytes(20))))
            address = Ticket.parse(text).address
            assert address == everywhere.address()
            assert any(direct.startswith("127.0.0.1:") for direct in address.direct)
            here, there = await join(a, everywhere)
            await open_pair(here, there)
        finally:
            await everywhere.close()


async def test_noise_at_the_port_holds_nobody_up(iroh_nodes, join, open_pair):
    async with iroh_nodes() as (a, b):
        ip, _, port = b.address().direct[0].rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(100):
                stranger.sendto(os.urandom(1200), (ip, int(port)))
        await open_pair(*await join(a, b))


async def test_a_peer_of_another_protocol_is_not_let_in(iroh_nodes, join):
    async with iroh_nodes() as (a, b):
        stranger = await iroh.bind(
            secret=os.urandom(32), listen="127.0.0.1:0", protocols=[b"something-else/1"]
        )
        try:
            accepted = []

            async def accept():
                accepted.append(await b.accept())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept)
                with pytest.raises(PeerUnreachable):
                    await stranger.connect(b.address(), b"something-else/1")
                await a.connect(b.address())
            assert [connection.peer for connection in accepted] == [a.node]
        finally:
            await stranger.close()


async def test_a_node_is_found_through_its_relay_alone(relays, open_pair):
    (relay,) = relays(1)
    with anyio.fail_after(120):
        a, b = [
            await iroh.bind(secret=os.urandom(32), listen="127.0.0.1:0", relay=relay, dial_seconds=60)
            for _ in range(2)
        ]
        try:
            address = b.address()
            assert address.relays == (relay,)
            connections = []

            async def accept():
                connections.append(await b.accept())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept)
                here = await a.connect(NodeAddress(b.node, (relay,)))
            await open_pair(here, connections[0])
        finally:
            await a.close()
            await b.close()


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("closed by peer: the lease has ended (code 0)", "the lease has ended"),
        ("closed by peer: 0", "closed by the other side"),
        ("lost\n\nCaused by:\n    timed out (/some/where.rs:1:2)", "timed out"),
        ("", "no reason given"),
    ],
)
def test_a_cause_is_told_without_the_librarys_trimmings(cause, said):
    assert iroh_errors.plain(cause) == said


def test_the_installed_binding_is_known():
    assert isinstance(iroh_calls.choose(), iroh_calls.FastCalls)


class _Changed:
    """The binding with one part changed."""

    def __init__(self, **changes):
        self._changes = changes

    def __getattr__(self, name):
        return self._changes[name] if name in self._changes else getattr(iroh_ffi, name)


class _OtherLayout(iroh_ffi._UniffiFfiConverterBytes):
    @staticmethod
    def write(value, buf):
        buf.write_i64(len(value))
        buf.write(value)

    @staticmethod
    def read(buf):
        return buf.read(buf.read_i64())


@pytest.mark.parametrize(
    "changes",
    [
        {"_UniffiLib": SimpleNamespace()},
        {"_UniffiRustBuffer": SimpleNamespace()},
        {"_UniffiFfiConverterBytes": _OtherLayout},
        {"_UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK": None},
    ],
    ids=["renamed calls", "other buffers", "other layout", "other callbacks"],
)
def test_an_unknown_binding_is_used_as_it_is(changes, caplog):
    assert isinstance(iroh_calls.choose(_Changed(**changes)), iroh_calls.PlainCalls)
    assert "unknown" in caplog.text


async def test_the_binding_as_it_is_carries_the_same_bytes(
    monkeypatch, iroh_nodes, join, open_pair, read_all
):
    monkeypatch.setattr(iroh_connection, "_calls", iroh_calls.PlainCalls())
    payload = os.urandom(600_000)
    async with iroh_nodes() as (a, b):
        mine, theirs = await open_pair(*await join(a, b))
        received = []

        async def receive():
            received.append(await read_all(theirs))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await mine.write(payload)
            await mine.finish()
        assert received == [payload]


async def test_a_one_way_stream_ends_the_connection(iroh_nodes, join, open_pair):
    """Nobody reads them: a peer could fill a hundred, whoever dialled."""
    async with iroh_nodes() as (a, b):
        for dialler in (0, 1):
            ends = await join(a, b)
            await open_pair(*ends)
            stray = await ends[dialler]._connection.open_uni()
            await stray.write_all(b"x")
            assert "one-way" in await ends[dialler].closed()
        # Others are welcome.
        await open_pair(*await join(a, b))


async def test_handshakes_that_never_end_hold_nobody_up(iroh_nodes, join, open_pair, monkeypatch):
    async with iroh_nodes() as (a, b):
        begun: list[Halting] = []
        given_up = 0

        class Halting:
            """A peer that said hello and nothing more, from an address that is its own."""

            async def remote_addr_validated(self) -> bool:
                return True

            async def accept(self) -> None:
                nonlocal given_up
                begun.append(self)
                try:
                    await anyio.sleep_forever()
                finally:
                    given_up += 1

        class Besieged:
            def __init__(self, endpoint) -> None:
                self._endpoint, self._left = endpoint, 500

            async def accept_next(self):
                if self._left:
                    self._left -= 1
                    await anyio.lowlevel.checkpoint()
                    return Halting()
                return await self._endpoint.accept_next()

            def __getattr__(self, name):
                return getattr(self._endpoint, name)

        monkeypatch.setattr(b, "_endpoint", Besieged(b._endpoint))
        await open_pair(*await join(a, b))
        assert len(begun) > 64
        assert len(begun) - given_up <= 64
        assert len(b._shaking) <= 64


async def test_in_a_crowd_a_peer_shows_that_its_address_is_its_own(iroh_nodes, join, open_pair, monkeypatch):
    async with iroh_nodes() as (a, b):
        monkeypatch.setattr(iroh, "_CROWD", 0)
        retried = 0
        retry = iroh.iroh.Incoming.retry

        async def counting(incoming) -> None:
            nonlocal retried
            retried += 1
            await retry(incoming)

        monkeypatch.setattr(iroh.iroh.Incoming, "retry", counting)
        await open_pair(*await join(a, b))
        assert retried == 1
