"""Which sandbox this machine's kernels run in.

`auto` never falls back in silence to no sandbox where strangers are let in: it returns what works, and the agent refuses
strangers by the chosen sandbox's name.
"""

from __future__ import annotations

from typing import Literal

from jupyter_depin.errors import SandboxMissing
from provider_kernel.sandbox import Sandbox
from provider_kernel.sandbox.bubblewrap import BubblewrapSandbox
from provider_kernel.sandbox.process import ProcessSandbox

SandboxName = Literal["auto", "bubblewrap", "none"]


def choose(name: SandboxName) -> Sandbox:
    """The sandbox of that name; `auto`: bubblewrap where it works, else none. Called once by the agent and by `doctor`.

    A named sandbox is returned unchecked: its `check` raises `SandboxMissing` with the fix.
    """
    if name == "none":
        return ProcessSandbox()
    sandbox = BubblewrapSandbox()
    if name == "auto":
        try:
            sandbox.check()
        except SandboxMissing:
            return ProcessSandbox()
    return sandbox
