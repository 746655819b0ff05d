"""The kernels under test, each as a context manager that gives a connected client.

`local`: as Jupyter starts it. `loopback`: rented from an agent on this machine (channels, tunnel, iroh, lease, meter).
`forwarded`: a local one whose five ports are reached through SSH.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client.manager import KernelManager

from tests.bench.children import child
from tests.bench.client import Client, Endpoints

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


@contextmanager
def started(provisioner: str) -> Iterator[KernelManager]:
    """A kernel that was told to start; it may not answer yet."""
    manager = KernelManager(kernel_name="python3")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"] = {"provisioner_name": provisioner}
    # Not to print ipykernel's word about transports for each kernel.
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def endpoints(manager: KernelManager) -> Endpoints:
    """Where the client finds it."""
    return Endpoints.of(manager.get_connection_info())


@contextmanager
def connected(place: Endpoints) -> Iterator[Client]:
    """A client of a kernel that answers."""
    client = Client(place)
    try:
        client.first_result()
        yield client
    finally:
        client.close()


@contextmanager
def local() -> Iterator[Client]:
    with started("local-provisioner") as manager, connected(endpoints(manager)) as client:
        yield client


@contextmanager
def loopback() -> Iterator[Client]:
    with started("depin-loopback") as manager, connected(endpoints(manager)) as client:
        yield client


@contextmanager
def forwarded() -> Iterator[Client]:
    with started("local-provisioner") as manager, child("ssh_forward", "serve") as server:
        info: dict[str, Any] = dict(manager.get_connection_info())
        with child("ssh_forward", "forward", server.hear(), *(info[port] for port in PORTS)) as forwarder:
            info |= dict(zip(PORTS, forwarder.hear(), strict=True))
            with connected(Endpoints.of(info)) as client:
                yield client
