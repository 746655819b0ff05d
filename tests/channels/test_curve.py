"""CURVE's server (`jupyter_depin.channels.curve`): libzmq's own clients talk with it, and clients that lie do not."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nacl import bindings as sodium
from zmq.utils import z85

from jupyter_depin.channels.curve import CurveServer
from jupyter_depin.errors import LocalProtocolError, RemoteProtocolError

GENEROUS = 60
MORE, LONG, COMMAND = 1, 2, 4
OURS = b"\x0bSocket-Type\x00\x00\x00\x06ROUTER"
THEIRS = b"\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x02me"
BIG = secrets.token_bytes(1 << 20)
Key = tuple[bytes, bytes]

S: Key = sodium.crypto_box_keypair()


# -- libzmq's clients


class Wire:
    """ZMTP 3.0 over a blocking TCP connection, as far as a server under CURVE needs it."""

    def __init__(self, connection: socket.socket, curve: CurveServer) -> None:
        self.connection, self.curve = connection, curve
        self.metadata: bytes | None = None

    def exactly(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            some = self.connection.recv(size - len(body))
            if not some:
                raise EOFError
            body += some
        return bytes(body)

    def frame(self) -> tuple[int, bytes]:
        flags = self.exactly(1)[0]
        size = int.from_bytes(self.exactly(8 if flags & LONG else 1), "big")
        return flags & ~LONG, self.exactly(size)

    def put(self, flags: int, body: bytes) -> None:
        long = len(body) > 255
        size = len(body).to_bytes(8 if long else 1, "big")
        self.connection.sendall(bytes((flags | LONG * long,)) + size + body)

    def shake(self) -> None:
        name = self.curve.NAME.ljust(20, b"\0")
        self.connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + name + b"\x01" + bytes(31))
        greeting = self.exactly(64)
        assert (greeting[10], greeting[12:32]) == (3, name)
        while not self.curve.ready:
            flags, command = self.frame()
            assert flags == COMMAND
            answer, metadata = self.curve.take(command, OURS)
            self.metadata = metadata or self.metadata
            self.put(COMMAND, answer)

    def message(self) -> list[bytes]:
        parts, more = [], 1
        while more:
            outside, body = self.frame()
            assert outside == 0, "libzmq tells flags in the box alone"
            more, part = self.curve.open(memoryview(body))
            parts.append(part)
        return parts

    def send(self, parts: list[bytes]) -> None:
        for left, part in zip(range(len(parts))[::-1], parts, strict=True):
            self.put(0, self.curve.box(int(left > 0), part))


@contextmanager
def libzmq(curve: CurveServer, server_key: bytes) -> Iterator[tuple[zmq.Socket[bytes], Wire]]:
    """A DEALER of libzmq that knows `server_key`, and the wire on which it is answered."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = server_key
        dealer.routing_id, dealer.linger, dealer.rcvtimeo = b"me", 0, GENEROUS * 1000
        dealer.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(GENEROUS)
            yield dealer, Wire(connection, curve)


@pytest.mark.parametrize(
    "keys", [zmq.curve_keypair(), tuple(map(z85.decode, zmq.curve_keypair()))], ids=["Z85", "raw"]
)
def test_a_client_of_libzmq_is_understood_and_understands(keys):
    public, secret = keys
    with libzmq(CurveServer(public, secret), z85.encode(public) if len(public) == 32 else public) as (
        dealer,
        wire,
    ):
        wire.shake()
        assert wire.metadata == THEIRS
        for message in ([b"hello"], [b"", b"a", b""], [b"head", BIG, b"tail", BIG[:70_000]], [b""]):
            dealer.send_multipart(message)
            assert wire.message() == message
            wire.send(message)
            assert dealer.recv_multipart() == message


def test_views_and_arrays_are_boxed_as_they_are():
    public, secret = zmq.curve_keypair()
    with libzmq(CurveServer(public, secret), public) as (dealer, wire):
        wire.shake()
        wire.send([memoryview(BIG)[5:99_999], bytearray(b"array"), memoryview(b"")])
        assert dealer.recv_multipart() == [BIG[5:99_999], b"array", b""]


def test_a_client_of_libzmq_that_knows_another_key_gets_nothing():
    public, _ = zmq.curve_keypair()
    curve = CurveServer(*zmq.curve_keypair())
    with libzmq(curve, public) as (dealer, wire):
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        dealer.send(b"secret")
        with pytest.raises(RemoteProtocolError, match="HELLO"):
            wire.shake()
        wire.connection.close()
        assert monitor.poll(GENEROUS * 1000)
        assert struct.unpack_from("=H", monitor.recv_multipart()[0]) == (zmq.EVENT_DISCONNECTED,)
        assert not curve.ready
        dealer.disable_monitor()


def test_a_server_without_the_secret_key_is_refused_by_libzmq():
    public, secret = map(z85.decode, zmq.curve_keypair())

    class Pretender(CurveServer):
        """Signs its WELCOME with a key of its own."""

        def take(self, command: bytes, metadata: bytes) -> tuple[bytes, bytes | None]:
            answer, theirs = super().take(command, metadata)
            return answer[:24] + secrets.token_bytes(len(answer) - 24), theirs

    with (
        libzmq(Pretender(public, secret), z85.encode(public)) as (_, wire),
        pytest.raises((EOFError, ConnectionError)),
    ):
        wire.shake()


# -- clients that lie


@dataclass
class Client:
    """The other side of CURVE; whatever a liar would change is a field."""

    server: bytes = S[0]
    long: Key = field(default_factory=sodium.crypto_box_keypair)
    short: Key = field(default_factory=sodium.crypto_box_keypair)
    said: int = 0
    signed: bytes = bytes(64)
    vouched: bytes | None = None
    vouched_by: bytes | None = None
    metadata: bytes = THEIRS
    theirs: bytes = b""

    def nonce(self) -> bytes:
        self.said += 1
        return self.said.to_bytes(8, "big")

    def hello(self) -> bytes:
        nonce = self.nonce()
        box = sodium.crypto_box(self.signed, b"CurveZMQHELLO---" + nonce, self.server, self.short[1])
        return b"\x05HELLO\x01\x00" + bytes(72) + self.short[0] + nonce + box

    def initiate(self, welcome: bytes) -> bytes:
        assert len(welcome) == 168
        assert welcome.startswith(b"\x07WELCOME")
        opened = sodium.crypto_box_open(welcome[24:], b"WELCOME-" + welcome[8:24], self.server, self.short[1])
        self.theirs, cookie = opened[:32], opened[32:]
        long_nonce, nonce = secrets.token_bytes(16), self.nonce()
        vouch = sodium.crypto_box(
            self.short[0] + self.server if self.vouched is None else self.vouched,
            b"VOUCH---" + long_nonce,
            self.theirs,
            self.vouched_by or self.long[1],
        )
        box = sodium.crypto_box(
            self.long[0] + long_nonce + vouch + self.metadata,
            b"CurveZMQINITIATE" + nonce,
            self.theirs,
            self.short[1],
        )
        return b"\x08INITIATE" + cookie + nonce + box

    def finish(self, ready: bytes) -> bytes:
        assert ready.startswith(b"\x05READY")
        return sodium.crypto_box_open(
            ready[14:], b"CurveZMQREADY---" + ready[6:14], self.theirs, self.short[1]
        )

    def box(self, flags: int, part: bytes) -> bytes:
        return self.boxed(bytes((flags,)) + part)

    def boxed(self, plain: bytes, prefix: bytes = b"CurveZMQMESSAGEC") -> bytes:
        nonce = self.nonce()
        box = sodium.crypto_box(plain, prefix + nonce, self.theirs, self.short[1])
        return b"\x07MESSAGE" + nonce + box

    def open(self, body: bytes) -> tuple[int, bytes]:
        assert body.startswith(b"\x07MESSAGE")
        plain = sodium.crypto_box_open(
            body[16:], b"CurveZMQMESSAGES" + body[8:16], self.theirs, self.short[1]
        )
        return plain[0], plain[1:]


def shake(server: CurveServer, client: Client) -> None:
    welcome, nothing = server.take(client.hello(), OURS)
    assert (nothing, server.ready) == (None, False)
    ready, metadata = server.take(client.initiate(welcome), OURS)
    assert (metadata, client.finish(ready), server.ready) == (client.metadata, OURS, True)


def connected() -> tuple[CurveServer, Client]:
    server, client = CurveServer(*S), Client()
    shake(server, client)
    return server, client


def with_a_change(body: bytes, at: int, change: int) -> bytes:
    at %= len(body)
    return body[:at] + bytes((body[at] ^ change,)) + body[at + 1 :]


places, changes = st.integers(0, 10**6), st.integers(1, 255)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.binary(max_size=300)), max_size=8))
def test_both_directions_carry_every_part_and_flag(messages):
    server, client = connected()
    for by_server, flags, part in messages:
        said = server.box(flags, part) if by_server else client.box(flags, part)
        assert (client if by_server else server).open(said) == (flags, part)


def test_no_two_connections_and_no_two_messages_look_alike():
    server, _ = connected()
    boxes = [server.box(0, b"same") for _ in range(50)]
    numbers = [int.from_bytes(box[8:16], "big") for box in boxes]
    assert numbers == sorted(set(numbers))
    assert len({box[16:] for box in boxes}) == 50
    hello = Client().hello()
    welcomes = [CurveServer(*S).take(hello, OURS)[0] for _ in range(3)]
    assert len({welcome[8:24] for welcome in welcomes}) == len({welcome[24:] for welcome in welcomes}) == 3


@settings(deadline=None)
@given(places, changes)
@example(80 + 31, 0x80)
def test_a_changed_hello_leads_nowhere(at, change):
    server, client = CurveServer(*S), Client()
    hello = with_a_change(client.hello(), at, change)
    # The highest bit of C' means nothing to the curve: then it is the vouch, which names C', that does not fit.
    with pytest.raises(RemoteProtocolError):
        server.take(client.initiate(server.take(hello, OURS)[0]), OURS)
    assert not server.ready


@settings(deadline=None)
@given(places, changes)
def test_a_changed_initiate_leads_nowhere(at, change):
    server, client = CurveServer(*S), Client()
    initiate = with_a_change(client.initiate(server.take(client.hello(), OURS)[0]), at, change)
    with pytest.raises(RemoteProtocolError):
        server.take(initiate, OURS)
    assert not server.ready


@settings(deadline=None)
@given(st.binary(max_size=40), places, changes)
def test_a_changed_message_is_refused(part, at, change):
    server, client = connected()
    with pytest.raises(RemoteProtocolError):
        server.open(with_a_change(client.box(1, part), at, change))


@settings(deadline=None)
@given(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 2))
def test_a_body_of_another_length_is_refused(kept, more, step):
    server, client = CurveServer(*S), Client(metadata=b"")
    bodies = [client.hello()]
    if step:
        bodies.append(client.initiate(server.take(bodies[-1], OURS)[0]))
    if step == 2:
        client.finish(server.take(bodies[-1], OURS)[0])
        bodies.append(client.box(0, b""))
    body = bodies[-1][:kept] + more
    if body != bodies[-1]:
        with pytest.raises(RemoteProtocolError):
            server.open(body) if step == 2 else server.take(body, OURS)


starts = st.sampled_from(
    [b"", b"\x05HELLO", b"\x05HELLO\x01\x00" + bytes(72), b"\x08INITIATE", b"\x07MESSAGE", b"\x05ERROR\x00"]
)
sizes = st.sampled_from([0, 17, 120, 194, 248, 300])
noise = st.builds(lambda start, size: start + secrets.token_bytes(size), starts, sizes)


@settings(deadline=None)
@given(st.lists(st.one_of(noise, st.binary(max_size=80)), max_size=6), st.integers(0, 2))
def test_noise_gives_one_kind_of_error(bodies, step):
    server, client = CurveServer(*S), Client()
    if step:
        welcome, _ = server.take(client.hello(), OURS)
    if step == 2:
        server.take(client.initiate(welcome), OURS)
    for body in bodies:
        for asked in (server.open, lambda command: server.take(command, OURS)):
            with pytest.raises(RemoteProtocolError):
                asked(body)
    assert server.ready is (step == 2)


OTHER = sodium.crypto_box_keypair()
SHORT = sodium.crypto_box_keypair()
LIARS = {
    "knows another server": Client(server=OTHER[0]),
    "signs something else than zeros": Client(signed=bytes(63) + b"\1"),
    "vouches for other short-term keys": Client(vouched=OTHER[0] + S[0]),
    "vouches for another server": Client(short=SHORT, vouched=SHORT[0] + OTHER[0]),
    "vouches under a key that is not its own": Client(vouched_by=OTHER[1]),
    "has a long-term key of small order": Client(long=(bytes(32), OTHER[1])),
    "has short-term keys that do not belong together": Client(short=(OTHER[0], SHORT[1])),
    "has a short-term key of small order": Client(short=(bytes(32), SHORT[1])),
}


@pytest.mark.parametrize("liar", LIARS.values(), ids=LIARS)
def test_a_liar_is_not_let_in(liar):
    server = CurveServer(*S)
    with pytest.raises(RemoteProtocolError):
        server.take(liar.initiate(server.take(liar.hello(), OURS)[0]), OURS)
    assert not server.ready
    if liar.theirs:
        with pytest.raises(RemoteProtocolError):
            server.open(liar.box(0, b"nevertheless"))


@pytest.mark.parametrize(("first", "second"), [(5, 5), (5, 4), (2**64 - 1, 0)])
def test_short_nonces_must_rise_from_hello_to_initiate(first, second):
    server, client = CurveServer(*S), Client(said=first - 1)
    welcome, _ = server.take(client.hello(), OURS)
    client.said = second - 1
    with pytest.raises(RemoteProtocolError, match="sent before"):
        server.take(client.initiate(welcome), OURS)


def test_short_nonces_may_start_at_nought_and_skip():
    server, client = CurveServer(*S), Client(said=-1)
    welcome, _ = server.take(client.hello(), OURS)
    client.said += 1000
    server.take(client.initiate(welcome), OURS)
    client.said = 2**64 - 2
    assert server.open(client.box(0, b"the last")) == (0, b"the last")


def test_a_message_that_was_sent_before_or_out_of_order_is_refused():
    server, client = connected()
    first, second, third = (client.box(0, part) for part in (b"1", b"2", b"3"))
    assert server.open(second) == (0, b"2")
    for late in (first, second):
        with pytest.raises(RemoteProtocolError, match="sent before"):
            server.open(late)
    assert server.open(third) == (0, b"3")


def test_a_message_may_not_use_the_nonce_of_initiate():
    server, client = connected()
    client.said -= 1
    with pytest.raises(RemoteProtocolError, match="sent before"):
        server.open(client.box(0, b"again"))


def test_what_the_server_said_is_not_taken_as_the_clients():
    server, client = connected()
    client.said = 1000
    with pytest.raises(RemoteProtocolError, match="wrong key"):
        server.open(client.boxed(b"\0reflected", b"CurveZMQMESSAGES"))


def test_a_box_without_even_flags_is_refused():
    server, client = connected()
    with pytest.raises(RemoteProtocolError):
        server.open(client.boxed(b""))


@pytest.mark.parametrize("flags", [4, 8, 129])
def test_flags_that_do_not_exist_are_refused(flags):
    server, client = connected()
    with pytest.raises(RemoteProtocolError, match="flags"):
        server.open(client.box(flags, b""))


def test_a_recorded_connection_cannot_be_played_again():
    server, client = CurveServer(*S), Client()
    hello = client.hello()
    initiate = client.initiate(server.take(hello, OURS)[0])
    server.take(initiate, OURS)
    message = client.box(0, b"pay")
    assert server.open(message) == (0, b"pay")
    again = CurveServer(*S)
    again.take(hello, OURS)
    with pytest.raises(RemoteProtocolError, match="INITIATE"):
        again.take(initiate, OURS)
    with pytest.raises(RemoteProtocolError):
        again.open(message)


def test_nothing_is_said_or_heard_before_the_end_of_the_handshake():
    server, client = CurveServer(*S), Client()
    welcome, _ = server.take(client.hello(), OURS)
    initiate = client.initiate(welcome)
    with pytest.raises(LocalProtocolError):
        server.box(0, b"early")
    with pytest.raises(RemoteProtocolError):
        server.open(client.box(0, b"early"))
    server.take(initiate, OURS)
    assert client.open(server.box(1, b"now")) == (1, b"now")


@pytest.mark.parametrize("order", ["initiate first", "hello twice", "initiate twice", "hello at the end"])
def test_each_command_has_its_one_place(order):
    server, client = CurveServer(*S), Client()
    hello = client.hello()
    initiate = client.initiate(CurveServer(*S).take(hello, OURS)[0])
    if order != "initiate first":
        initiate = client.initiate(server.take(hello, OURS)[0])
    if order.endswith("end") or order == "initiate twice":
        server.take(initiate, OURS)
    with pytest.raises(RemoteProtocolError, match="unexpected"):
        server.take(initiate if order.startswith("initiate") else Client().hello(), OURS)


def test_after_an_error_the_handshake_does_not_go_on():
    server, client = CurveServer(*S), Client()
    hello = client.hello()
    with suppress(RemoteProtocolError):
        server.take(with_a_change(hello, -1, 1), OURS)
    with pytest.raises(RemoteProtocolError, match="unexpected"):
        server.take(hello, OURS)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(41), b"~" * 40, b"#" * 40, b"short"])
def test_a_key_in_no_known_form_is_refused(key):
    for keys in ((key, S[1]), (S[0], key)):
        with pytest.raises(ValueError, match="Z85"):
            CurveServer(*keys)
