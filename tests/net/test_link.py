"""The bad link does what it says: its direction on a clock of the test's own, the whole with real packets."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests.net.link import Link, Pipe, Terms, link, missing
from tests.net.netns import Host, network

MS = 1_000_000


def _never_lost() -> float:
    return 1.0


def test_a_packet_arrives_after_the_delay_and_not_before():
    pipe = Pipe(Terms(delay_ns=100 * MS), _never_lost)
    pipe.receive(b"a", 5 * MS)
    assert pipe.get_timer() == 105 * MS
    assert pipe.packets_to_send(105 * MS - 1) == []
    assert pipe.packets_to_send(105 * MS) == [b"a"]
    assert pipe.get_timer() is None


def test_packets_share_the_rate():
    pipe = Pipe(Terms(delay_ns=300 * MS, rate=1_000_000), _never_lost)
    pipe.receive(bytes(1250), 0)
    pipe.receive(bytes(1250), 0)
    assert pipe.packets_to_send(310 * MS) == [bytes(1250)]
    assert pipe.get_timer() == 320 * MS


def test_a_full_queue_takes_nothing_more_until_it_has_drained():
    pipe = Pipe(Terms(rate=1_000_000, queue_bytes=2500), _never_lost)
    for name in (b"a", b"b", b"c"):
        pipe.receive(name * 1250, 0)
    assert pipe.packets_to_send(20 * MS) == [b"a" * 1250, b"b" * 1250]
    assert (pipe.sent_bytes, pipe.refused_packets) == (2500, 1)
    pipe.receive(b"d" * 1250, 20 * MS)
    assert pipe.packets_to_send(30 * MS) == [b"d" * 1250]


def test_a_lost_packet_takes_its_time_and_is_counted():
    luck = iter((0.009, 0.01))
    pipe = Pipe(Terms(rate=1_000_000, loss=0.01), lambda: next(luck))
    pipe.receive(b"a" * 1250, 0)
    pipe.receive(b"b" * 1250, 0)
    assert pipe.get_timer() == 20 * MS
    assert pipe.packets_to_send(20 * MS) == [b"b" * 1250]
    assert pipe.sent_bytes == 2500


def test_a_cut_loses_what_is_under_way_and_what_comes():
    pipe = Pipe(Terms(delay_ns=100 * MS), _never_lost)
    pipe.receive(b"under way", 0)
    pipe.cut()
    pipe.receive(b"during", 10 * MS)
    pipe.mend()
    pipe.receive(b"after", 20 * MS)
    assert pipe.packets_to_send(1000 * MS) == [b"after"]
    assert pipe.sent_bytes == len(b"under way") + len(b"after")


_root = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def _udp(host: Host, address: str) -> socket.socket:
    made = host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((address, 0))
    # Only a guard: a packet that is to arrive does so at once.
    made.settimeout(60)
    return made


def _devices(host: Host) -> str:
    return subprocess.run(host.inside("ip", "link"), capture_output=True, text=True, check=True).stdout


@_root
def test_a_link_carries_packets_both_ways_until_it_is_cut_and_after_it_is_mended():
    with network() as net:
        one, other = net.host("one"), net.host("other")
        with link(one, other, Terms()) as joined:
            _talk(joined, one, other)
        assert "link1" not in _devices(one) + _devices(other)


def _talk(joined: Link, one: Host, other: Host) -> None:
    with _udp(one, joined.addresses[0]) as here, _udp(other, joined.addresses[1]) as there:
        here.sendto(b"ping", there.getsockname())
        assert there.recvfrom(100) == (b"ping", here.getsockname())
        there.sendto(b"pong", here.getsockname())
        assert here.recv(100) == b"pong"
        # IP's header, UDP's and the four bytes.
        assert joined.sent_bytes == (32, 32)
        joined.cut()
        here.sendto(b"lost", there.getsockname())
        while joined.refused_packets != (1, 0):
            os.sched_yield()
        joined.mend()
        here.sendto(b"again", there.getsockname())
        assert there.recv(100) == b"again"


@_root
def test_a_link_carries_tcp():
    with network() as net:
        one, other = net.host("one"), net.host("other")
        with (
            link(one, other, Terms()) as joined,
            other.call(lambda: socket.create_server((joined.addresses[1], 0))) as server,
            one.call(lambda: socket.create_connection(server.getsockname(), 60)) as client,
        ):
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(5, socket.MSG_WAITALL) == b"hello"
