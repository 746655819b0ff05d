"""A kernel behind an SSH port forward in a network of its own, in which TCP packets are lost on demand.

The kernel's sockets and the forwarded ones are files, so that only what SSH sends is on the network. Each line of input
is answered with a line of JSON; `cut` and `mend` are the orders.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import asyncssh
from jupyter_client.manager import KernelManager

_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class _Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False

    def unix_connection_requested(self, *_: object) -> bool:
        return True


def _nft(*words: str) -> None:
    subprocess.run(["nft", *words], check=True, capture_output=True)


async def serve(folder: Path) -> None:
    """Serve until the input ends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _nft("add", "table", "inet", "t")
    _nft("add", "chain", "inet", "t", "out", "{ type filter hook input priority 0; }")
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "k"))
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        info = manager.get_connection_info()
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = await asyncssh.create_server(
            _Server, "127.0.0.1", 0, server_host_keys=[key], compression_algs=["none"]
        )
        connection = await asyncssh.connect(
            "127.0.0.1", server.get_port(), known_hosts=None, username="bench", client_keys=None,
            compression_algs=["none"],
        )  # fmt: skip
        for port in _PORTS:
            await connection.forward_local_path(f"{folder}/f-{info[port]}", f"{folder}/k-{info[port]}")
        info["ip"], info["key"] = f"{folder}/f", info["key"].decode()
        print(json.dumps(info), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.strip() == "cut":
                _nft("add", "rule", "inet", "t", "out", "meta", "l4proto", "tcp", "drop")
            else:
                _nft("flush", "chain", "inet", "t", "out")
            print(json.dumps(line.strip()), flush=True)
    finally:
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
