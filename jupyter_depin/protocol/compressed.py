"""Compressed stretches of a lane's stream: one zstd frame each, with one context for all that it carries.

A notebook's messages repeat their headers, and a progress bar repeats nearly all of itself; so the context is kept from
message to message and flushed after each batch. The stretch begins after the word `COMPRESSED` in the place of a data
frame's head and ends where the zstd frame does; both lie between two data frames. So each direction of each lane is
switched by its sender alone, at any time, and a plain stream carries not a byte for it.

What a peer sends is unpacked in bounded steps with a bounded window, and a message within a stretch is bounded more
tightly than a plain one, or a few kilobytes could fill a gigabyte here; a sender leaves the stretch for a bigger one.

Rejected: a flag in each frame (a context per message compresses little); blocks with a length of their own (zstd's
frame has an end already); zlib (a third more bytes, twice the time).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from jupyter_depin.errors import RemoteProtocolError
from jupyter_depin.protocol.frames import COMPRESSED, Data, DataDecoder, Lane, Part, longest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_COMPRESSED = 1 << 26
"""Bytes of one data frame within a compressed stretch."""

_WINDOW_LOG = 20
"""A mebibyte of memory on each side for each lane in use; progress bars and tables repeat themselves within less."""
_LEVEL = 3
_SMALL_WINDOW_LOG, _SMALL_LEVEL = 15, 1
"""Where only small words go: a tenth of the memory, for a tunnel has six lanes, and an agent many tunnels."""
_STEP = 1 << 20
"""Bytes that are unpacked at once."""


class Compressor:
    """The sender's end of one stretch. Made by a lane's queue for each. `small`: with little memory."""

    def __init__(self, *, small: bool = False) -> None:
        self._zstd = zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.compression_level: _SMALL_LEVEL if small else _LEVEL,
                zstd.CompressionParameter.window_log: _SMALL_WINDOW_LOG if small else _WINDOW_LOG,
            }
        )
        self._head = COMPRESSED

    def pack(self, pieces: Iterable[Part]) -> bytes:
        """The bytes to write for these pieces; the receiver can unpack all of them without a byte more."""
        packed = [
            self._head,
            *map(self._zstd.compress, pieces),
            self._zstd.compress(b"", self._zstd.FLUSH_BLOCK),
        ]
        self._head = b""
        return b"".join(packed)

    def end(self) -> bytes:
        """The bytes that end the stretch; the pieces so far must be whole data frames."""
        return self._zstd.compress(b"", self._zstd.FLUSH_FRAME)


class LaneDecoder:
    """Turns the bytes of one lane's stream, plain or compressed, into data frames. Made by the driver.

    `more`: not all that was fed is unpacked yet: call `feed(b"")` before anything else, after a turn of the loop.
    `spared`: bytes that came to be by unpacking.
    """

    def __init__(self, lane: Lane) -> None:
        self._longest = longest(lane)
        self._frames = DataDecoder(lane)
        self._zstd: zstd.ZstdDecompressor | None = None
        self._rest: bytes | memoryview = b""
        self.more = False
        self.spared = 0

    @property
    def compressed(self) -> bool:
        """Whether the peer compresses what it sends now."""
        return self._zstd is not None

    def feed(self, data: bytes | memoryview) -> list[Data]:
        """Take bytes as they come and return frames that they complete. Raises `RemoteProtocolError`."""
        self._rest = bytes(self._rest) + data if self._rest else data
        if self._frames.more:
            frames = self._frames.feed(b"")
        elif self._zstd is None:
            data, self._rest = self._rest, b""
            frames = self._frames.feed(data)
        else:
            frames = self._frames.feed(self._unpacked(self._zstd))
        if not self._frames.more:
            self._turn()
        self.more = self._frames.more or bool(self._rest) or self._full
        return frames

    def _unpacked(self, unpacking: zstd.ZstdDecompressor) -> bytes:
        data, self._rest = self._rest, b""
        try:
            plain = unpacking.decompress(data, _STEP)
        except zstd.ZstdError as error:
            raise RemoteProtocolError(detail=f"bytes that do not unpack ({error})") from error
        self.spared += len(plain) - len(data)
        return plain

    def _turn(self) -> None:
        """Where a stretch begins or ends, go over to the other way of reading."""
        announced, self._frames.announced = self._frames.announced, None
        if announced is not None:
            if self._zstd is not None:
                raise RemoteProtocolError(detail="compressed bytes within compressed bytes")
            self._rest = announced + self._rest
            self._zstd = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            )
            self._frames.max_frame = min(self._longest, MAX_COMPRESSED)
        elif self._zstd is not None and self._zstd.eof:
            if not self._frames.between:
                raise RemoteProtocolError(detail="compressed bytes that end within a message")
            unused, self._zstd = self._zstd.unused_data, None
            self.spared += len(unused)
            self._rest = unused + self._rest
            self._frames.max_frame = self._longest

    @property
    def _full(self) -> bool:
        return self._zstd is not None and not self._zstd.eof and not self._zstd.needs_input
