"""A bad link: delay, a rate with a bounded queue, loss and cuts, for every protocol alike.

`Pipe` is one direction of it, as a machine without a clock. `link` joins two machines of `tests.net.netns` with a TUN
device in each and a thread that carries IP packets between them. A proxy for each port was rejected: in front of TCP it
can only delay what is lost, never lose it. Netem was rejected: many kernels lack it, and it counts nothing.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.net.netns import Host, why_not

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_SECOND = 1_000_000_000
_LARGEST_PACKET = 65_535


def missing() -> str | None:
    """Why no machines can be joined here, or None."""
    return why_not() or (None if os.path.exists(_DEVICE) else f"network namespaces here have no {_DEVICE}")


@dataclass(frozen=True)
class Terms:
    """What a link does to each direction. `rate` is in bit/s (None: as fast as it comes), `loss` from 0 to 1."""

    delay_ns: int = 0
    rate: int | None = None
    queue_bytes: int = 64_000
    loss: float = 0.0


class Pipe:
    """One direction. Packets come out in the order in which they went in, each once or never."""

    def __init__(self, terms: Terms, chance: Callable[[], float]) -> None:
        self._terms, self._chance = terms, chance
        self._under_way: deque[tuple[int, bytes]] = deque()
        self._free_at = 0
        self._cut = False
        self.sent_bytes = 0
        """What was put on the link, lost or not."""
        self.refused_packets = 0
        """Those that found the queue full or the link cut."""

    def receive(self, packet: bytes, now: int) -> None:
        """Take a packet from the sender."""
        if self._cut:
            self.refused_packets += 1
            return
        start = max(now, self._free_at)
        if self._terms.rate is not None:
            waiting = (start - now) * self._terms.rate // (8 * _SECOND)
            if waiting + len(packet) > self._terms.queue_bytes:
                self.refused_packets += 1
                return
            start += len(packet) * 8 * _SECOND // self._terms.rate
        self._free_at = start
        self.sent_bytes += len(packet)
        # A lost packet has taken its time on the link all the same.
        if self._chance() >= self._terms.loss:
            self._under_way.append((start + self._terms.delay_ns, packet))

    def packets_to_send(self, now: int) -> list[bytes]:
        """What has arrived by now."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            arrived.append(self._under_way.popleft()[1])
        return arrived

    def get_timer(self) -> int | None:
        """When the next packet arrives."""
        return self._under_way[0][0] if self._under_way else None

    def cut(self) -> None:
        """Lose what is under way, and all that comes until `mend`."""
        self._cut = True
        self._under_way.clear()
        self._free_at = 0

    def mend(self) -> None:
        """Carry packets again."""
        self._cut = False


class Link:
    """Both directions between two machines. Made by `link`."""

    def __init__(self, ends: tuple[Host, Host], number: int, terms: Terms, seed: int) -> None:
        self.addresses = (f"10.77.{number}.1", f"10.77.{number}.2")
        """Of the first machine and of the second."""
        chance = random.Random(seed).random
        self._pipes = (Pipe(terms, chance), Pipe(terms, chance))
        self._lock = threading.Lock()
        self._devices: list[int] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._carry)
        try:
            for host, address in zip(ends, self.addresses, strict=True):
                self._devices.append(_tun(host, f"link{number}", f"{address}/30"))
        except BaseException:
            self._release()
            raise
        self._thread.start()

    @property
    def sent_bytes(self) -> tuple[int, int]:
        """Bytes put on the link by the first machine and by the second, with the headers of IP."""
        with self._lock:
            return self._pipes[0].sent_bytes, self._pipes[1].sent_bytes

    @property
    def refused_packets(self) -> tuple[int, int]:
        """Packets of the first machine and of the second that the link did not take."""
        with self._lock:
            return self._pipes[0].refused_packets, self._pipes[1].refused_packets

    def cut(self) -> None:
        """Carry nothing until `mend`. Neither machine is told: its interface stays up."""
        with self._lock:
            for pipe in self._pipes:
                pipe.cut()

    def mend(self) -> None:
        """Carry packets again."""
        with self._lock:
            for pipe in self._pipes:
                pipe.mend()

    def close(self) -> None:
        """Stop carrying, and take both devices away."""
        self._wake.close()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        for device in self._devices:
            os.close(device)
        self._wake.close()
        self._woken.close()

    def _carry(self) -> None:
        one, other = self._devices
        ways = ((one, other, self._pipes[0]), (other, one, self._pipes[1]))
        while True:
            with self._lock:
                timers = [at for pipe in self._pipes if (at := pipe.get_timer()) is not None]
            wait = max(0, min(timers) - time.monotonic_ns()) / _SECOND if timers else None
            ready, _, _ = select.select([one, other, self._woken], [], [], wait)
            if self._woken in ready:
                return
            for source, sink, pipe in ways:
                packet = os.read(source, _LARGEST_PACKET) if source in ready else None
                with self._lock:
                    now = time.monotonic_ns()
                    if packet is not None:
                        pipe.receive(packet, now)
                    arrived = pipe.packets_to_send(now)
                for each in arrived:
                    os.write(sink, each)


def _tun(host: Host, name: str, network: str) -> int:
    """A TUN device on a machine, which is gone when the file is closed."""
    device = host.call(lambda: os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
        # Else the kernel looks for IPv6 routers, and that would be counted.
        host.ip(f"link set {name} addrgenmode none")
        host.ip(f"addr add {network} dev {name}")
        host.ip(f"link set {name} up")
    except BaseException:
        os.close(device)
        raise
    return device


@contextmanager
def link(one: Host, other: Host, terms: Terms, number: int = 1, seed: int = 1) -> Iterator[Link]:
    """Join two machines during a block. Links between the same machines need numbers of their own."""
    made = Link((one, other), number, terms, seed)
    try:
        yield made
    finally:
        made.close()
