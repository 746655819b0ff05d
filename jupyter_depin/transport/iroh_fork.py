"""iroh in a forked process: a library of its own, since a fork leaves the library's threads behind.

The binding keeps its threads in the native library, starts them once, and has no way to start them again. In a process
that was forked after that (`multiprocessing` does so on Linux before Python 3.14) every call would wait for ever. The
dynamic loader, though, takes a copy of the file for another library, with nothing of the first one's memory. So the
binding is loaded anew from a copy, about 20 MB and some 40 ms, the first time that a forked process joins the network.

What the parent made must not be freed in the child: that would take locks which threads of the parent held, and take
the parent's sockets out of the one epoll set that both share, so that the parent would hear nothing any more.

Rejected: starting the kernel from a fresh Python program instead (each restart would rent again); a helper process for
the network in every case (a second hop for every message, to serve the few who fork).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import iroh
from iroh import iroh_ffi

_user: int | None = None
"""The process whose threads the loaded library has, once it has any."""

_inherited: list[dict[str, Any]] = []
"""What the binding held in the processes before this one."""


def renewed() -> bool:
    """Whether the binding had to be loaded anew for this process. Called before each node is made."""
    global _user
    forked = _user not in (None, os.getpid())
    if forked:
        _load_copy()
    _user = os.getpid()
    return forked


def _keep() -> None:
    if _user is not None:
        gc.freeze()
        _inherited.append(vars(iroh_ffi).copy())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)


def _load_copy() -> None:
    load = ctypes.cdll.LoadLibrary
    with tempfile.TemporaryDirectory(prefix="iroh-") as folder:
        # The binding asks for the file beside it and for nothing else, once, while it is imported.
        ctypes.cdll.LoadLibrary = lambda name: load(shutil.copy(Path(name), folder))  # type: ignore[method-assign]
        try:
            importlib.reload(iroh_ffi)
        finally:
            del ctypes.cdll.LoadLibrary
    importlib.reload(iroh)
