"""Text of which later characters overwrite earlier ones, as a progress bar writes it: without what nobody can see.

A front end overwrites character by character, so a longer line shows through behind a shorter one. A piece is left out
only where the next one covers it from the beginning of the line. Where the line has backspaces, tabs or colours, it stays
as it is, and so does the first piece of a line whose beginning may have been written before.
"""

from __future__ import annotations

import re

_MOVES = re.compile(r"[\x00-\x0c\x0e-\x1f\x7f]")
"""What makes characters and columns differ."""


def folded(text: str) -> str:
    """The text without pieces that are covered by what follows them on their line."""
    if "\r" not in text:
        return text
    return "\n".join(_folded_line(line, at_start=number > 0) for number, line in enumerate(text.split("\n")))


def _folded_line(line: str, *, at_start: bool) -> str:
    if _MOVES.search(line):
        return line
    kept: list[str] = []
    for piece in line.split("\r"):
        # The first piece goes on a line that may have had text before it.
        while len(kept) > (0 if at_start else 1) and _covers(piece, kept[-1]):
            kept.pop()
        kept.append(piece)
    return "\r".join(kept)


def _covers(above: str, below: str) -> bool:
    # Front ends in browsers count UTF-16 units, terminals count code points.
    return len(above) >= len(below) and _units(above) >= _units(below)


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass"))
