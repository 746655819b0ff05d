"""Starts ipykernel: inside a sandbox, on sockets that the agent made; or, with `-f`, as `ipykernel_launcher` does.

The agent runs this file by itself with the kernel environment's Python, where our packages are not installed: it imports
nothing of ours. What both ways have that ipykernel has not is an output queue without a limit: ZeroMQ's own is a
thousand messages, and those beyond it are lost without a word whenever the machine is too busy to carry them away. The
agent reads at full speed and stops a kernel whose output nobody fetches, so the queue stays short.

In a sandbox, the five listening sockets arrive as descriptors (`ZMQ_USE_FD`). Rejected: a shared folder in which the
kernel binds its sockets, for a hostile kernel could put a link in a socket's place and have the agent connect elsewhere.

The connection file names paths that exist nowhere; only ipykernel's own bookkeeping reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

CONNECTION_FILE = "/run/depin/connection.json"
BIND_ORDER = ("shell", "stdin", "control", "iopub")
"""The order in which ipykernel's `init_sockets` binds; the heartbeat binds for itself."""


def keep_output() -> None:
    """Lift the limit of ipykernel's output queue."""
    import zmq
    from ipykernel.kernelapp import IPKernelApp

    kernel_class: Any = IPKernelApp
    init_iopub = kernel_class.init_iopub

    def unlimited(app: Any, context: Any) -> None:
        context.setsockopt(zmq.SNDHWM, 0)
        init_iopub(app, context)
        del context.sockopts[zmq.SNDHWM]

    kernel_class.init_iopub = unlimited


def adopt(descriptors: dict[str, int]) -> None:
    """Make ipykernel take over listening sockets where it would bind new ones."""
    from ipykernel.heartbeat import Heartbeat
    from ipykernel.kernelapp import IPKernelApp

    order = iter(BIND_ORDER)

    def bind(app: Any, socket: Any, port: int) -> int:
        channel = next(order)
        socket.use_fd = descriptors[channel]
        socket.bind(f"ipc://{app.ip}-{port}")
        socket.use_fd = -1
        if channel == "shell":
            # ipykernel's debugger connects to the shell socket's last address, from the inside.
            socket.bind(f"ipc://{app.ip}-debugger")
        return port

    def bind_heartbeat(heartbeat: Any) -> None:
        heartbeat.socket.use_fd = descriptors["hb"]
        heartbeat.socket.bind(f"ipc://{heartbeat.ip}-{heartbeat.port}")

    kernel_class: Any = IPKernelApp
    kernel_class._try_bind_socket = bind
    heartbeat_class: Any = Heartbeat
    heartbeat_class._try_bind_socket = bind_heartbeat


def main() -> None:
    """Run a kernel."""
    if sys.argv[1:2] == ["-f"]:
        # This file's own folder is no place for a cell to import from.
        del sys.path[0]
        sys.argv[0] = "ipykernel_launcher.py"
        keep_output()
        from ipykernel.kernelapp import launch_new_instance

        launch_new_instance()
    else:
        _confined()


def _confined() -> None:
    """Run a kernel in a sandbox; tell the agent, by one byte on `--ready`, when it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready", type=int, required=True)
    for channel in (*BIND_ORDER, "hb"):
        parser.add_argument(f"--{channel}", type=int, required=True)
    descriptors = vars(parser.parse_args())
    ready = descriptors.pop("ready")
    # A cell sees an ordinary kernel's arguments, and its programs inherit none of this.
    sys.argv = ["ipykernel_launcher.py", "-f", CONNECTION_FILE]
    keep = {0, 1, 2, ready, *descriptors.values()}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if descriptor in keep:
                os.set_inheritable(descriptor, descriptor <= 2)
            else:
                # What bubblewrap inherited for itself, such as the user namespace of a root agent.
                os.close(descriptor)
    # A process group of its own: an interrupt then reaches the cell's programs too.
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)

    adopt(descriptors)
    keep_output()
    from ipykernel.kernelapp import IPKernelApp

    app: Any = IPKernelApp.instance()
    app.initialize(["-f", CONNECTION_FILE, "--log-level=40"])
    os.write(ready, b"R")
    os.close(ready)
    app.start()


if __name__ == "__main__":
    main()
