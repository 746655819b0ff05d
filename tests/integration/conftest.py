"""Every kernel of these tests is a rented one: a loopback agent's, over the real network stack, without a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from tests.integration.talk import Talk, talking


@pytest.fixture(autouse=True)
def rented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point every Jupyter program, here and in programs that a test starts, at the loopback agent."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "depin-loopback")
    KernelProvisionerFactory.clear_instance()
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def start() -> Callable[..., AbstractAsyncContextManager[Talk]]:
    """Starts a kernel; keywords are those of `start_kernel`, and a manager may be given that was set up before."""

    def begin(manager: AsyncKernelManager | None = None, **how: Any) -> AbstractAsyncContextManager[Talk]:
        return talking(manager or AsyncKernelManager(kernel_name="python3"), **how)

    return begin
