"""A kernel that Jupyter gives up must not be paid for: nobody is left to settle it."""

from __future__ import annotations

import signal

import anyio
import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from traitlets.config import Config

from jupyter_depin.consumer.runtime import Runtime
from jupyter_depin.errors import KernelStartFailed


@pytest.fixture
def manager(monkeypatch):
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "depin-loopback")
    config = Config({"KernelRestarter": {"time_to_dead": 0.1, "restart_limit": 1}})
    return AsyncIOLoopKernelManager(kernel_name="python3", config=config)


async def until_ended(kernel_id: str) -> str:
    """The reason for which the kernel's rental ended and was settled."""
    with anyio.fail_after(60):
        while True:
            for status in Runtime.get().snapshot():
                if status.kernel_id == kernel_id and status.state == "ended":
                    assert status.receipt is not None
                    assert status.receipt["paid"] == status.spent
                    return status.reason[0]
            await anyio.sleep(0.05)


async def test_a_kernel_that_dies_again_and_again_ends_its_lease(manager):
    await manager.start_kernel()
    dead = anyio.Event()
    manager.add_restart_callback(dead.set, "dead")
    with anyio.fail_after(60):
        while not dead.is_set():
            await manager.provisioner.send_signal(signal.SIGKILL)
            await anyio.sleep(0.05)
    assert await until_ended(manager.kernel_id) == "kernel_shutdown"


async def test_a_restart_that_fails_shows_a_dead_kernel_and_ends_the_lease(manager, monkeypatch):
    await manager.start_kernel()
    dead = anyio.Event()
    manager.add_restart_callback(dead.set, "dead")

    async def fail(*_, **__):
        raise KernelStartFailed(reason="the cat sits on the machine")

    monkeypatch.setattr(type(manager.provisioner), "_launch", fail)
    await manager.restart_kernel(now=True)
    with anyio.fail_after(60):
        await dead.wait()
    assert not await manager.is_alive()
    assert await until_ended(manager.kernel_id) == "start_failed"
