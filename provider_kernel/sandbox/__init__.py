"""Port to what confines a kernel: bubblewrap (`bubblewrap.py`) or nothing (`process.py`); one suite runs on both.

The agent starts every kernel from its main thread, for `--die-with-parent` follows the spawning thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from jupyter_depin.errors import KernelStartFailed

START_S = 60
"""How long a kernel may take to come up. It is not paid before, so it must not hold its slot for longer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one kernel may use, in bytes and counts; `cpu` in cores. Zero means no limit."""

    memory: int = 4 << 30
    pids: int = 512
    cpu: float = 0.0
    home: int = 1 << 30
    tmp: int = 512 << 20
    shm: int = 512 << 20


@dataclass(frozen=True, slots=True)
class KernelCommand:
    """What to start. `argv` None: the provider's own Python kernel. A `{connection_file}` in it is filled in.

    `key` signs the kernel's messages (HMAC, `signature_scheme`). `env` is added to the sandbox's own, already
    filtered by the consumer's allow-list; `cwd` None means the sandbox's home.
    """

    key: bytes
    signature_scheme: str = "hmac-sha256"
    argv: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class KernelSockets:
    """Where the agent reaches the kernel's five channels: ZeroMQ endpoints such as `ipc:///run/…/k-1`."""

    shell: str
    iopub: str
    stdin: str
    control: str
    hb: str


class SandboxedKernel(Protocol):
    """A kernel that was started. Its end is reported by `wait`; `destroy` leaves nothing of it behind."""

    @property
    def sockets(self) -> KernelSockets:
        """The five channels."""

    @property
    def pid(self) -> int:
        """The kernel process as this machine sees it."""

    async def wait(self) -> int:
        """Wait for its end and return the exit status (negative: a signal). May be awaited by several."""

    def interrupt(self, signum: int) -> None:
        """Send a signal to the kernel and its children. No effect once it has ended."""

    def pause(self) -> None:
        """Stop every process in it (SIGSTOP). Idempotent."""

    def unpause(self) -> None:
        """Let them run on (SIGCONT). Idempotent."""

    def stderr_tail(self) -> str:
        """The last few kilobytes that it wrote to standard error, to explain a failed start."""

    async def destroy(self) -> None:
        """Kill what is left of it and remove its files. Never raises; may be called twice."""


@contextmanager
def in_time() -> Iterator[None]:
    """Around a start: raises `KernelStartFailed` when it takes longer than `START_S`."""
    with anyio.move_on_after(START_S) as patience:
        yield
    if patience.cancelled_caught:
        raise KernelStartFailed(reason=f"it did not come up within {START_S} s")


async def remove(folder: Path) -> None:
    """Remove a kernel's folder, in a thread, for there may be any number of files in it. Never raises."""
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


class Sandbox(Protocol):
    """A way to confine kernels."""

    name: str
    """What the offer calls it: `bubblewrap` or `none`."""

    def check(self) -> None:
        """Raise `SandboxMissing` with the fix if it does not work on this machine."""

    def facts(self) -> dict[str, str]:
        """What is in force on this machine (limit → by what), for the offer and `doctor`. Where `check` passes."""

    def shown(self) -> list[str]:
        """The machine's folders that every kernel can read. Where `check` passes."""

    async def start(self, command: KernelCommand, *, folder: Path, limits: Limits) -> SandboxedKernel:
        """Start a kernel; `folder` is an empty private folder of this kernel's own. Raises `KernelStartFailed`.

        Returns once the kernel's sockets exist (they accept connections), or it has ended.
        """
