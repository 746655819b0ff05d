"""The errors of iroh's binding, and its causes in its own words, as they leave the adapter."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import iroh
from iroh import iroh_ffi


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
