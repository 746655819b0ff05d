"""The output journal on the owner's disk: what a kernel says while its renter is away, in files of one piece each.

A record is `parts u32 · length u32 each · bodies`, big-endian, and a file only grows until it is removed. Nothing is
forced onto the disk: a kernel does not outlive its agent, so neither need what it said. Writes are small and land in
the system's cache, which takes a journal of the usual size at once; rejected: a thread for them (the order of a
kernel's output would hang on a queue in front of it, whose memory is what the journal is there to save).

What cannot be written or read is missing, and the reader of the output is told so; it is no error of the lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from jupyter_depin.protocol.frames import MAX_FRAME, MAX_PARTS, Part

log = logging.getLogger(__name__)

_COUNT = struct.Struct(">I")
_BUFFER = 1 << 18
"""Bytes that are gathered for one write."""


class Spool:
    """A `Store` in a folder of its own, which is made with the first message and goes with `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: tuple[int, BinaryIO] | None = None
        self._read: tuple[int, BinaryIO] | None = None

    def append(self, piece: int, parts: Sequence[Part]) -> bool:
        """Add a message to a piece's file. False, with a word in the log, where the disk does not take it."""
        try:
            file = self._to_write(piece)
            file.write(_COUNT.pack(len(parts)) + struct.pack(f">{len(parts)}I", *map(len, parts)))
            for part in parts:
                file.write(part)
        except OSError as error:
            log.warning("output is not kept: %s", error)
            self._end_writing()
            return False
        return True

    def read(self, piece: int) -> Sequence[Part] | None:
        """The next message of a piece. None where its file is gone, or not what was written."""
        try:
            return self._next(self._to_read(piece))
        except OSError as error:
            log.warning("output that was kept cannot be read: %s", error)
            return None

    def remove(self, piece: int) -> None:
        """Delete a piece's file."""
        if self._written is not None and self._written[0] == piece:
            self._end_writing()
        if self._read is not None and self._read[0] == piece:
            self._end_reading()
        with contextlib.suppress(OSError):
            self._path(piece).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder."""
        self._end_writing()
        self._end_reading()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --

    def _path(self, piece: int) -> Path:
        return self._folder / f"{piece:08d}"

    def _to_write(self, piece: int) -> BinaryIO:
        if self._written is None or self._written[0] != piece:
            self._end_writing()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._written = (piece, open(self._path(piece), "xb", _BUFFER, opener=_private))  # noqa: SIM115 - it stays open
        return self._written[1]

    def _to_read(self, piece: int) -> BinaryIO:
        if self._written is not None and self._written[0] == piece:
            self._written[1].flush()
        if self._read is None or self._read[0] != piece:
            self._end_reading()
            self._read = (piece, open(self._path(piece), "rb"))  # noqa: SIM115 - it stays open
        return self._read[1]

    def _next(self, file: BinaryIO) -> Sequence[Part] | None:
        head = file.read(_COUNT.size)
        count = _COUNT.unpack(head)[0] if len(head) == _COUNT.size else 0
        if not 0 < count <= MAX_PARTS:
            return None
        packed = file.read(_COUNT.size * count)
        if len(packed) < _COUNT.size * count:
            return None
        lengths = struct.unpack(f">{count}I", packed)
        if sum(lengths) > MAX_FRAME:
            return None
        parts = [file.read(length) for length in lengths]
        return (
            parts if all(len(part) == length for part, length in zip(parts, lengths, strict=True)) else None
        )

    def _end_writing(self) -> None:
        if self._written is not None:
            # A disk that is full says so here at the latest; what it did not take is missed when it is read.
            with contextlib.suppress(OSError):
                self._written[1].close()
            self._written = None

    def _end_reading(self) -> None:
        if self._read is not None:
            self._read[1].close()
            self._read = None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
