"""One message of a kernel's iopub channel, read as far as joining needs it, and written anew with a signature.

The key is the kernel's own: the provider was given it to launch the kernel with. What cannot be read, and what carries
buffers, is nobody's to change.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from jupyter_depin.protocol.frames import Part

_DELIMITER = b"<IDS|MSG>"
_LONGEST = 1 << 20
"""A bigger message is not read: reading takes longer than it could spare."""


class _Header(msgspec.Struct):
    msg_type: str = ""
    msg_id: str = ""


_header = msgspec.json.Decoder(_Header).decode
_content = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Said:
    """A message: its kind, its parent's id, and its content with values that are not decoded yet."""

    parts: Sequence[Part]
    kind: str
    parent: str
    content: dict[str, msgspec.Raw]
    at: int
    """Where the delimiter stands."""

    @property
    def framing(self) -> tuple[bytes, ...]:
        """What two messages must share to become one: topic, parent and metadata."""
        at = self.at
        return (*map(bytes, self.parts[:at]), bytes(self.parts[at + 3]), bytes(self.parts[at + 4]))


def read(parts: Sequence[Part]) -> Said | None:
    """A message that may be joined, or None."""
    if not 6 <= len(parts) <= 8 or sum(map(len, parts)) > _LONGEST:
        return None
    at = next((i for i in range(len(parts) - 5) if bytes(parts[i]) == _DELIMITER), None)
    if at is None or len(parts) != at + 6:
        return None
    try:
        header, parent = _header(parts[at + 2]), _header(parts[at + 3])
        content = _content(parts[at + 5])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Said(parts, header.msg_type, parent.msg_id, content, at) if parent.msg_id else None


class Writer:
    """Writes messages anew. `key` and `scheme` are those of the kernel's connection file.

    Raises `ValueError` for a scheme that nobody knows.
    """

    def __init__(self, key: bytes, scheme: str) -> None:
        try:
            self._mac = hmac.new(key, digestmod=scheme.removeprefix("hmac-")) if key else None
        except TypeError as error:
            raise ValueError(scheme) from error

    def write(self, said: Said, content: dict[str, Any]) -> list[Part]:
        """The message with another content, signed."""
        head = list(said.parts[: said.at + 5])
        body = msgspec.json.encode(content)
        if self._mac is not None:
            mac = self._mac.copy()
            for frame in (*head[said.at + 2 :], body):
                mac.update(frame)
            head[said.at + 1] = mac.hexdigest().encode()
        return [*head, body]
