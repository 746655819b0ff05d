"""The errors of iroh's binding, and its causes in its own words, as they leave the adapter."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import iroh
from iroh import iroh_ffi

_TRACES = "RUST_LIB_BACKTRACE"


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Let the library's errors pass where the caller is promised none."""
    with contextlib.suppress(iroh.IrohError, iroh_ffi.InternalError):
        yield


def told(error: Exception) -> str:
    """What an error says. For whoever turns it into a `TransportError`."""
    return plain(error.message() if isinstance(error, iroh.IrohError) else str(error))


def plain(cause: str) -> str:
    """A cause in the library's words, without its error codes, chains and places in the source."""
    by_peer = re.fullmatch(r"closed by peer: (?:(.*) \(code \d+\)|\d+)", cause, re.DOTALL)
    if by_peer:
        return by_peer[1] or "closed by the other side"
    lines = cause.rsplit("Caused by:", 1)[-1].strip().splitlines() or ["no reason given"]
    return re.sub(r"\s*\(/.*\)$", "", lines[-1].strip())


def forgo_traces() -> None:
    """Have the library make its errors without a trace of its stack. Called once for each load of it.

    Where `RUST_BACKTRACE` is set, and many shells and images set it for other programs, each error would stop the event
    loop for a tenth of a second, and after an outage every dial that was given up is one at the other end. The library
    looks at the environment when it makes its first such error, and never again. `RUST_LIB_BACKTRACE` is left to whoever
    sets it: it asks for just these traces.
    """
    if _TRACES in os.environ:
        return
    os.environ[_TRACES] = "0"
    try:
        with ignored():
            iroh.RelayMode.custom_from_urls(["no address"])
    finally:
        del os.environ[_TRACES]
