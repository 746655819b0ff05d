"""Where a kernel's channels are found on the renter's own machine: a connection file, in our own form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalInfo:
    """Where Jupyter clients find the channels on this machine, as in a connection file. Ports in CHANNELS order."""

    transport: str
    ip: str
    ports: Mapping[str, int]
    key: bytes
    signature_scheme: str = "hmac-sha256"
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = None

    def url(self, channel: str) -> str:
        """The ZeroMQ endpoint of a channel: `shell`, `iopub`, `stdin`, `control` or `hb`."""
        separator = "-" if self.transport == "ipc" else ":"
        return f"{self.transport}://{self.ip}{separator}{self.ports[channel]}"
