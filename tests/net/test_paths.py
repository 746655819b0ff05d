"""Rentals over paths as people have them: two machines behind NATs of their own, with the real programs on both ends.

Nothing here is timed: what must happen is waited for, cell by cell, and pytest's own limit is the only guard.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.net.capture import capture
from tests.net.netns import PUBLIC, network
from tests.net.relay_death import die
from tests.net.rental import RELAY_PORT, Street, execute, leave, missing, street

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture
def place(tmp_path: Path):
    with street(tmp_path) as made:
        yield made


def _until_direct(place: Street, renter: subprocess.Popen[str]) -> str:
    """Run cells until the rental goes direct; the path."""
    while not (path := place.path()).startswith("direct"):
        assert execute(renter, "print('still here')") == ["still here"]
    return path


def test_nodes_that_cannot_see_each_other_use_the_relay_until_a_direct_path_opens(place):
    relay = place.start_relay()
    with capture(place.internet, "br0") as seen:
        renter = place.rent([relay])
        # Long and random, so that neither chance nor compression decides whether it is seen.
        execute(renter, "import secrets; word = secrets.token_hex(200)")
        (line,) = execute(renter, "print(word)")
        marker = line.encode()
        assert place.path().startswith(f"through the relay {relay}")
        # What is not encrypted is seen: the nodes knock at the relay in plain HTTP, and say much afterwards.
        assert seen.sees(b"GET /relay HTTP/1.1")
        assert seen.sees(f"{PUBLIC}.1:{RELAY_PORT}".encode())
        assert seen.size > 10 * len(marker)
        assert len(marker) == 400
        assert not any(seen.sees(marker[at : at + 16]) for at in range(0, 400, 16))
        assert not seen.sees(b"token_hex")
        assert not seen.sees(b"execute_request")
    place.open_direct_path()
    assert "192.168.11.2:" in _until_direct(place, renter)
    assert execute(renter, "print(len(word))") == ["400"]
    leave(renter)


def test_nodes_behind_nats_go_direct_once_others_tell_how_they_see_them(place):
    relay = place.start_relay()
    renter = place.rent([relay], [place.start_observer(1), place.start_observer(2)])
    assert f"{PUBLIC}.11:" in _until_direct(place, renter)
    assert execute(renter, "print(6 * 7)") == ["42"]
    leave(renter)


def test_work_goes_on_when_the_relay_dies(place):
    assert die(place) > 0


def test_a_network_leaves_nothing_behind():
    def fail() -> None:
        with network() as net:
            internet = net.internet()
            host, router = net.behind_nat(internet, 11)
            made.extend(each.name for each in (internet, host, router))
            running.append(subprocess.Popen(host.inside("sleep", "600")))
            assert set(made) <= set(_namespaces())
            raise InterruptedError

    made: list[str] = []
    running: list[subprocess.Popen[bytes]] = []
    with pytest.raises(InterruptedError):
        fail()
    assert running[0].wait() == -9
    assert not set(made) & set(_namespaces())


def _namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines()]
