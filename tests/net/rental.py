"""A rental between two machines behind NATs of their own: the real agent, a real Jupyter client, relays of one's own.

The chain is no part of the network under test: it stays outside, and each machine has a door to it on its loopback.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_depin.demo import KERNEL_NAME
from jupyter_depin.journal import Journal
from jupyter_depin.kernelspec import write_kernel_spec
from tests.e2e.world import RENTER, TICK_S, World, hear, tell
from tests.net.netns import PUBLIC, Host, Net, network, why_not

RELAY_PORT = 3340
_AGENT_PORT = 41000
_OBSERVER_PORT = 7000


def missing() -> str | None:
    """Why there is no such rental here, or None."""
    if shutil.which("iroh-relay") is None:
        return "iroh-relay is not installed"
    return why_not()


class Street:
    """The network, the chain and the programs on them. Made by `street`."""

    def __init__(self, folder: Path, net: Net, world: World) -> None:
        self.world, self._folder = world, folder
        self.internet = net.internet()
        self.provider, self._near = net.behind_nat(self.internet, 11)
        self.consumer, self._far = net.behind_nat(self.internet, 12)
        self._net = net
        self._running: list[subprocess.Popen[str]] = []
        self._relays: dict[str, subprocess.Popen[str]] = {}
        self._doors = [door(host, world._chain_port) for host in (self.provider, self.consumer)]

    def start(self, host: Host, *command: str, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            host.inside(*command), text=True, cwd=self._folder, **{"stdout": subprocess.PIPE, **options}
        )
        self._running.append(process)
        return process

    def start_relay(self) -> str:
        """One more relay on the public segment; its address."""
        port = RELAY_PORT + len(self._relays)
        config = self._folder / f"relay-{port}.toml"
        config.write_text(
            f'enable_relay = true\nhttp_bind_addr = "0.0.0.0:{port}"\n'
            "enable_metrics = false\nenable_quic_addr_discovery = false\n"
        )
        url = f"http://{PUBLIC}.1:{port}"
        self._relays[url] = self.start(
            self.internet,
            "iroh-relay",
            "-c",
            str(config),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return url

    def kill_relay(self, url: str) -> None:
        """kill -9."""
        self._relays[url].send_signal(signal.SIGKILL)
        self._relays[url].wait()

    def start_observer(self, number: int) -> str:
        """A node on the public segment that tells others how it sees them; its name for settings."""
        program = self.start(
            self.internet, sys.executable, "-m", "provider_kernel", "observe",
            "--home", str(self._folder / f"observer-{number}"), "--listen", f"{PUBLIC}.1:{_OBSERVER_PORT + number}",
        )  # fmt: skip
        assert program.stdout is not None
        text: str = json.loads(program.stdout.readline())["observer"]
        return text

    def rent(self, relays: list[str], observers: list[str] | None = None) -> subprocess.Popen[str]:
        """Agent and renter, each on its machine; the renter, when its kernel is ready."""
        world, home = self.world, self.world.provider
        (home / "provider.toml").write_text(
            f'rate_per_hour = "3.6"\nstake = "100"\ntick_s = {TICK_S}\narrears_s = 30\n'
            f'sandbox = "none"\naccept_strangers_without_a_sandbox = true\nlisten = "0.0.0.0:{_AGENT_PORT}"\n'
            f"relays = {json.dumps(relays)}\nobservers = {json.dumps(observers or [])}\n"
        )
        agent = self.start(
            self.provider, sys.executable, "-m", "provider_kernel", "start", "--home", str(home)
        )
        assert agent.stdout is not None
        ticket = json.loads(agent.stdout.readline())["ticket"]
        (world.consumer / "config.toml").write_text(
            f'tickets = ["{ticket}"]\nmax_rate_per_hour = "3.6"\nmax_spend = "7.2"\nsettle_wait_s = 5\n'
        )
        write_kernel_spec(self._folder / "jupyter" / "kernels" / KERNEL_NAME, world.consumer)
        renter = self.start(
            self.consumer, sys.executable, "-c", RENTER, stdin=subprocess.PIPE, env=world.environment()
        )
        hear(renter, "ready")
        return renter

    def path(self) -> str:
        """How the renter reaches the provider, as its journal says."""
        with Journal(self.world.consumer / "journal.sqlite") as journal:
            (record,) = journal.open_leases("payer")
            return journal.last_path(record.channel_id) or ""

    def open_direct_path(self) -> None:
        """Join both private networks, without any NAT between them."""
        self._net.join((self._near, 11), (self._far, 12))

    def close(self) -> None:
        """End every program that was started here, and wait for it."""
        for door in self._doors:
            # Wakes the thread that waits there.
            door.shutdown(socket.SHUT_RDWR)
            door.close()
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def execute(renter: subprocess.Popen[str], code: str) -> list[str]:
    """Run a cell; what it printed, line by line."""
    tell(renter, code)
    # A line's end may come by itself.
    return [line.removeprefix("stdout ") for line in hear(renter, "idle") if line != "stdout"]


def leave(renter: subprocess.Popen[str]) -> None:
    """Shut the kernel down and let the renter settle."""
    tell(renter, "leave")
    renter.wait()


def door(host: Host, port: int) -> socket.socket:
    """Let a machine reach a port of this one's loopback on its own, until the socket is closed."""
    listener = host.call(lambda: socket.create_server(("127.0.0.1", port)))

    def pour(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()

    def serve() -> None:
        while True:
            try:
                inside, _ = listener.accept()
            except OSError:
                return
            outside = socket.create_connection(("127.0.0.1", port))
            for pair in ((inside, outside), (outside, inside)):
                threading.Thread(target=pour, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener


@contextmanager
def street(folder: Path) -> Iterator[Street]:
    """A street that is gone afterwards."""
    world = World(folder)
    try:
        with network() as net:
            made = Street(folder, net, world)
            try:
                yield made
            finally:
                made.close()
    finally:
        world.close()
