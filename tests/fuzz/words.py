"""What a peer might say: each word of the wire built from its type, honest or lying, and bytes that were bent.

The words are found, not listed: whatever tagged struct or union of them the modules of the vocabulary hold is on the
wire or will be. A word is built as JSON, for our own types refuse to be built wrong.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import random
import struct
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from jupyter_depin.protocol import frames, messages

MODULES = (frames, messages)

INTEGERS = (
    0, 1, 2, 3, 5, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    2**88 - 1, 2**88, 2**256, -1, -2, -(2**31), -(2**63), -(2**63) - 1, 10**400,
)  # fmt: skip
LENGTHS = (0, 1, 4, 19, 20, 21, 31, 32, 33, 64, 65, 66, 300)
TEXTS = (
    "", "0x00", "shell", "\x00", "\x1b[2J", "{detail}", "{0.__class__}", "%s", "‮", "\ud800", "é", "x" * 5000,
    "served", "stopped_by_user", "arrears", "depin", "NoFreeSlot", "KernelStartFailed", "ConfigError", "PATH",
    "hmac-sha256", "hmac-nothing", "self", "code", "facts", "reason",
)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    "",
    "x",
    [],
    {},
    [[]],
    {"": {}},
    [None],
    10**30,
)


def unions() -> dict[str, Any]:
    """Name → what a decoder of the vocabulary reads: each union of tagged structs, and each such struct alone."""
    found: dict[str, Any] = {}
    for module in MODULES:
        for name, value in vars(module).items():
            kinds = typing.get_args(value) if isinstance(value, types.UnionType) else (value,)
            if all(tagged(kind) for kind in kinds):
                found[name] = value
    return found


def tagged(kind: Any) -> bool:
    """Whether it is a struct that names itself on the wire."""
    return (
        isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind is not msgspec.Struct
        and kind.__struct_config__.tag is not None
    )


def words() -> list[type[msgspec.Struct]]:
    """Every tagged struct, each once."""
    return [kind for kind in unions().values() if isinstance(kind, type)]


class Speaker:
    """Speaks for a peer. Everything follows from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._words = words()
        self._hints: dict[type, dict[str, Any]] = {}

    # -- words

    def word(self, kinds: Any = None, *, lie: float = 0.3) -> bytes:
        """One word of a union as JSON. `lie`: how often each field of it is something else than it should be."""
        choice = typing.get_args(kinds) or ((kinds,) if kinds is not None else self._words)
        return json.dumps(self.built(self.rng.choice(choice), lie)).encode(errors="replace")

    def built(self, kind: type, lie: float) -> dict[str, Any]:
        """A struct or dataclass as a JSON object."""
        rng = self.rng
        made: dict[str, Any] = {}
        if issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag is not None:
            config = kind.__struct_config__
            made[config.tag_field or "type"] = config.tag if rng.random() > lie / 20 else rng.choice(SHAPES)
        for name, hint in self._fields(kind):
            if rng.random() < lie / 10:
                continue
            made[name] = rng.choice(SHAPES) if rng.random() < lie / 3 else self.value(hint, lie)
        if rng.random() < lie / 10:
            made[rng.choice(TEXTS)] = rng.choice(SHAPES)
        return made

    def _fields(self, kind: type) -> Iterator[tuple[str, Any]]:
        if kind not in self._hints:
            named = (
                kind.__struct_fields__
                if issubclass(kind, msgspec.Struct)
                else [field.name for field in dataclasses.fields(kind)]
            )
            hints = typing.get_type_hints(kind, include_extras=True)
            self._hints[kind] = {name: hints[name] for name in named}
        yield from self._hints[kind].items()

    def value(self, hint: Any, lie: float) -> Any:
        """Something of a type, as JSON has it."""
        rng = self.rng
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self.value(arguments[0], lie)
        if isinstance(hint, typing.NewType):
            if hint.__name__ in ("Address", "NodeId") and rng.random() > lie:
                return self.octets(20 if hint.__name__ == "Address" else 32)
            return self.value(hint.__supertype__, lie)
        if origin in (types.UnionType, typing.Union):
            return self.value(rng.choice(arguments), lie)
        if origin is typing.Literal:
            return rng.choice(arguments)
        if origin is dict:
            key, item = arguments
            pairs = ((self.value(key, lie), self.value(item, lie)) for _ in range(rng.choice((0, 1, 2, 7))))
            return {str(k): v for k, v in pairs}
        if origin in (tuple, list, frozenset):
            if origin is tuple and arguments[-1] is not Ellipsis:
                return [self.value(each, lie) for each in arguments]
            return [self.value(arguments[0], lie) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
        if isinstance(hint, type):
            return self._plain(hint, lie)
        return rng.choice(SHAPES)

    def _plain(self, hint: type, lie: float) -> Any:
        rng = self.rng
        if dataclasses.is_dataclass(hint) or issubclass(hint, msgspec.Struct):
            return self.built(hint, lie)
        if issubclass(hint, enum.Enum):
            return rng.choice([each.value for each in hint])
        if hint is bool:
            return rng.random() < 0.5
        if issubclass(hint, int):
            return rng.choice(INTEGERS) if rng.random() < max(lie, 0.3) else rng.randrange(10)
        if hint is float:
            return rng.choice((0.0, -1.0, 1e308, 0.25))
        if hint is bytes:
            return self.octets(rng.choice(LENGTHS) if rng.random() < lie else rng.choice((32, 65)))
        if hint is str:
            return rng.choice(TEXTS)
        return None

    def octets(self, length: int) -> str:
        """Bytes as JSON has them."""
        return base64.b64encode(self.rng.randbytes(length)).decode()

    # -- bytes

    def framed(self, body: bytes) -> bytes:
        """A word with its length in front: mostly the right one."""
        lengths = (len(body), len(body), len(body), len(body) + 1, max(0, len(body) - 1), 2**32 - 1, 0)
        return struct.pack(">I", self.rng.choice(lengths) & 0xFFFFFFFF) + body

    def data(self, seq: int, *, lie: float = 0.3) -> bytes:
        """A data frame of a lane whose next number is `seq`."""
        rng = self.rng
        parts = [rng.randbytes(rng.choice((0, 1, 4, 9, 70))) for _ in range(rng.choice((1, 1, 2, 3, 9)))]
        if rng.random() < 0.5:
            parts[0] = self.word()
        lengths = [len(part) for part in parts]
        count = len(parts)
        if rng.random() < lie:
            seq = rng.choice((*(each for each in INTEGERS if 0 <= each < 2**64), seq + 1, max(0, seq - 1)))
        if rng.random() < lie / 3:
            count = rng.choice((0, count + 1, 2**15, 2**15 + 1, 2**16 - 1))
        if rng.random() < lie / 3:
            lengths[rng.randrange(len(lengths))] = rng.choice((0, 2**30, 2**31, 2**32 - 1))
        return struct.pack(">QH", seq, count) + struct.pack(f">{len(lengths)}I", *lengths) + b"".join(parts)

    def bent(self, data: bytes) -> bytes:
        """Bytes with a few things done to them."""
        rng = self.rng
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(out) + 1)
            match rng.randrange(6):
                case 0 if out:
                    out[at % len(out)] ^= 1 << rng.randrange(8)
                case 1 if out:
                    out[at % len(out)] = rng.randrange(256)
                case 2:
                    out[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 3:
                    del out[at : at + rng.randrange(1, 9)]
                case 4:
                    out[at:at] = out[at : at + rng.randrange(1, 200)]
                case _:
                    del out[at:]
        return bytes(out)

    def noise(self) -> bytes:
        """Bytes of no shape at all."""
        return self.rng.randbytes(self.rng.choice((0, 1, 4, 10, 14, 60, 300)))

    def spoken(self, honest: bytes) -> bytes:
        """What goes to a door: as it is, bent, or noise in its place."""
        chance = self.rng.random()
        if chance < 0.6:
            return honest
        return self.bent(honest) if chance < 0.92 else self.noise()
