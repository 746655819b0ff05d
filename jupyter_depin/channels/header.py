"""What little is read of a Jupyter message: its header and its parent's, and of them only what they name.

Kinds are looked for as JSON text, without parsing: a header is short, and a wrong guess costs a moment's delay.
"""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_depin.protocol.frames import Part

DELIMITER = b"<IDS|MSG>"
_LONGEST_HEADER = 4096


def header(parts: Sequence[Part]) -> bytes:
    """The header of a Jupyter message; empty if this is none."""
    return _behind_delimiter(parts, 2)


def parent(parts: Sequence[Part]) -> bytes:
    """The header of the request that a message belongs to; empty if there is none."""
    return _behind_delimiter(parts, 3)


def is_stream(parts: Sequence[Part]) -> bool:
    """Whether it is text that the kernel printed."""
    return b'"stream"' in header(parts)


def is_reply_to_cell(parts: Sequence[Part]) -> bool:
    """Whether it says that a cell is done."""
    return b'"execute_reply"' in header(parts)


def _behind_delimiter(parts: Sequence[Part], offset: int) -> bytes:
    for i, part in enumerate(parts[:-offset]):
        if len(part) == len(DELIMITER) and bytes(part) == DELIMITER:
            found = parts[i + offset]
            return bytes(found) if len(found) <= _LONGEST_HEADER else b""
    return b""
