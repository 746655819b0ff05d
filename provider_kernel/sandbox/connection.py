"""Connection files: what Jupyter writes for a kernel, and where the agent then reaches its five channels.

Unix sockets in the kernel's own folder (`k-1` … `k-5`) rather than TCP ports: no other user of the machine can connect,
none can be taken by somebody else in between, and a sandbox without a network can use them. Windows has only TCP.
"""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from jupyter_depin.errors import KernelStartFailed, MachineTrouble
from provider_kernel.sandbox import KernelCommand, KernelSockets

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
"""In the order of their numbers, 1 … 5."""

LONGEST_SOCKET_PATH = 107
"""A Unix socket's path, in bytes, without its final zero (`sun_path` of Linux)."""


def socket_paths(folder: Path) -> tuple[Path, ...]:
    """The five sockets' paths, in the order of `CHANNELS`. Raises `MachineTrouble` if the folder's name is too long."""
    paths = tuple(folder / f"k-{number}" for number in range(1, len(CHANNELS) + 1))
    if len(str(paths[-1]).encode()) > LONGEST_SOCKET_PATH:
        raise MachineTrouble(reason=f"the folder {folder} has too long a name for a socket")
    return paths


def ipc_sockets(folder: Path) -> KernelSockets:
    """The endpoints of `socket_paths`."""
    return KernelSockets(*(f"ipc://{path}" for path in socket_paths(folder)))


def connection_file(
    command: KernelCommand, *, transport: str, ip: str, ports: tuple[int, ...] = (1, 2, 3, 4, 5)
) -> bytes:
    """The content of a connection file as jupyter_client writes it; with `ipc`, `ip` is the paths' common beginning.

    Raises `KernelStartFailed` for a key that cannot stand in one.
    """
    try:
        key = command.key.decode()
    except UnicodeDecodeError as error:
        raise KernelStartFailed(reason="its key is not UTF-8 text") from error
    content: dict[str, str | int] = {
        f"{channel}_port": port for channel, port in zip(CHANNELS, ports, strict=True)
    }
    content |= {
        "transport": transport,
        "ip": ip,
        "key": key,
        "signature_scheme": command.signature_scheme,
    }
    return json.dumps(content).encode()


def write_connection_file(command: KernelCommand, folder: Path) -> tuple[Path, KernelSockets]:
    """Write `folder/connection.json` for a kernel that makes its own sockets; return its path and the endpoints."""
    path = folder / "connection.json"
    path.touch(mode=0o600)
    if sys.platform == "win32":
        ports = _free_ports(len(CHANNELS))
        path.write_bytes(connection_file(command, transport="tcp", ip="127.0.0.1", ports=ports))
        return path, KernelSockets(*(f"tcp://127.0.0.1:{port}" for port in ports))
    sockets = ipc_sockets(folder)
    path.write_bytes(connection_file(command, transport="ipc", ip=str(folder / "k")))
    return path, sockets


def _free_ports(count: int) -> tuple[int, ...]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(int(listener.getsockname()[1]) for listener in taken)


def accepts(endpoint: str) -> bool:
    """Whether somebody listens at a ZeroMQ endpoint of this machine. ZeroMQ takes such a knock for a lost client."""
    kind, _, place = endpoint.partition("://")
    if kind == "tcp":
        host, _, port = place.rpartition(":")
        with socket.socket(socket.AF_INET) as knock:
            return knock.connect_ex((host, int(port))) == 0
    with socket.socket(socket.AF_UNIX) as knock:
        return knock.connect_ex(place) == 0
