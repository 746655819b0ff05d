"""What somebody at the relay sees: every frame that crosses an interface, read from a raw socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.net.netns import Host

_EVERYTHING = 0x0003


class Capture:
    """Frames, as they come. Made by `capture`."""

    def __init__(self, host: Host, interface: str) -> None:
        self._frames: list[bytes] = []
        self._socket = host.call(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        )
        self._socket.bind((interface, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.settimeout(0.2)
        self._over = False
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over:
            try:
                self._frames.append(self._socket.recv(65536))
            except TimeoutError:
                continue

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()

    def sees(self, words: bytes) -> bool:
        """Whether some bytes crossed in one frame."""
        return any(words in frame for frame in self._frames)

    @property
    def size(self) -> int:
        """Bytes that crossed."""
        return sum(map(len, self._frames))


@contextmanager
def capture(host: Host, interface: str) -> Iterator[Capture]:
    """Capture during a block."""
    made = Capture(host, interface)
    try:
        yield made
    finally:
        made.close()
