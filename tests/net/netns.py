"""Networks of one's own out of Linux's network namespaces: hosts, routers with NAT, a public segment between them.

Everything carries this process's id in its name and is taken away at the end, also after a failure. Interfaces are made
inside the namespaces, so the machine's own network is never touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000

PUBLIC = "203.0.113"
"""The segment that stands for the internet (RFC 5737)."""


@cache
def why_not() -> str | None:
    """Why network namespaces cannot be made here, or None if they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"network namespaces need the program {program}"
    name = f"depin{os.getpid():x}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Host:
    """One network namespace: a machine of the network."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *words: str) -> None:
        """`ip …` as this machine."""
        _run("ip", "-n", self.name, *" ".join(words).split())

    def firewall(self, rules: str) -> None:
        """Replace this machine's packet filter."""
        subprocess.run(self.inside("nft", "-f", "-"), input="flush ruleset\n" + rules, text=True, check=True)

    def become_router(self) -> None:
        """Pass packets on between interfaces."""
        # The file is that of whoever opens it.
        self.call(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))

    def inside(self, *command: str) -> list[str]:
        """The command that runs `command` on this machine."""
        return ["ip", "netns", "exec", self.name, *command]

    def call(self, function: Callable[[], T]) -> T:
        """Call something on a thread that is on this machine. A socket that it makes stays there."""
        outcome: list[T] = []

        def enter() -> None:
            with open(f"/var/run/netns/{self.name}") as place:
                if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            outcome.append(function())

        # The thread ends with its namespace; no other one ever gets there.
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return outcome[0]


class Net:
    """Some machines and what joins them. Made by `network`."""

    def __init__(self) -> None:
        self._prefix = f"depin{os.getpid():x}"
        self._hosts: list[Host] = []

    def host(self, name: str) -> Host:
        """A machine without any interface but its own loopback."""
        made = Host(f"{self._prefix}{name}")
        _run("ip", "netns", "add", made.name)
        self._hosts.append(made)
        made.ip("link set lo up")
        return made

    def internet(self) -> Host:
        """The public segment; the machine on it has the address …1."""
        made = self.host("net")
        made.ip("link add br0 type bridge")
        made.ip("link set br0 up")
        made.ip(f"addr add {PUBLIC}.1/24 dev br0")
        return made

    def behind_nat(self, internet: Host, number: int) -> tuple[Host, Host]:
        """A machine 192.168.NUMBER.2 and its router, which has the address …NUMBER on the public segment.

        The router lets out everything under its own address and in nothing that was not asked for.
        """
        host, router = self.host(f"h{number}"), self.host(f"r{number}")
        host.ip(f"link add wan type veth peer name lan netns {router.name}")
        host.ip(f"addr add 192.168.{number}.2/24 dev wan")
        host.ip("link set wan up")
        router.ip(f"addr add 192.168.{number}.1/24 dev lan")
        router.ip("link set lan up")
        host.ip(f"route add default via 192.168.{number}.1")
        router.ip(f"link add out type veth peer name p{number} netns {internet.name}")
        router.ip(f"addr add {PUBLIC}.{number}/24 dev out")
        router.ip("link set out up")
        internet.ip(f"link set p{number} master br0")
        internet.ip(f"link set p{number} up")
        router.become_router()
        router.firewall(_NAT + _CLOSED)
        return host, router

    def join(self, one: tuple[Host, int], other: tuple[Host, int]) -> None:
        """Open a direct path between what is behind two routers (each with its number), without any NAT."""
        for (router, _), (_, far) in ((one, other), (other, one)):
            router.firewall(_NAT)
            router.ip(f"route add 192.168.{far}.0/24 via {PUBLIC}.{far}")

    def close(self) -> None:
        """Take everything away, with what still runs there."""
        for host in self._hosts:
            listed = subprocess.run(
                ["ip", "netns", "pids", host.name], capture_output=True, text=True, check=False
            )
            for pid in listed.stdout.split():
                subprocess.run(["kill", "-9", pid], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


_NAT = f"""
table ip nat {{
    chain post {{
        type nat hook postrouting priority 100;
        oifname "out" ip daddr {PUBLIC}.0/24 masquerade
    }}
}}
"""

# A router that took in what it was not asked for would remember that, and give the answer another port.
_CLOSED = """
table ip filter {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname != "out" accept
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" accept
    }
}
"""


@contextmanager
def network() -> Iterator[Net]:
    """A network that is gone afterwards."""
    made = Net()
    try:
        yield made
    finally:
        made.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
