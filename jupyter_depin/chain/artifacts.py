"""The compiled contracts: calls, answers, events and errors by name, from the committed files in `abi/`.

web3's contract objects would do this too, but each of them wants a provider, and deploying, reading and testing do not
share one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from jupyter_depin.protocol.eip712 import keccak256


def _type(parameter: Mapping[str, Any]) -> str:
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(_type, parameter['components']))}){kind.removeprefix('tuple')}"


def _signature(entry: Mapping[str, Any]) -> bytes:
    return keccak256(f"{entry['name']}({','.join(map(_type, entry['inputs']))})".encode())


class Artifact:
    """One contract: what `compile.mjs` wrote for it."""

    def __init__(self, name: str, abi: Iterable[Mapping[str, Any]], bytecode: bytes) -> None:
        self.name = name
        self.bytecode = bytecode
        self.abi = list(abi)
        self._constructor: list[str] = []
        self._functions: dict[str, tuple[bytes, list[str], list[str]]] = {}
        self._errors: dict[bytes, tuple[str, list[str]]] = {}
        self._events: dict[bytes, Mapping[str, Any]] = {}
        for entry in self.abi:
            types = [_type(p) for p in entry.get("inputs", [])]
            if entry["type"] == "constructor":
                self._constructor = types
            elif entry["type"] == "function":
                outputs = [_type(p) for p in entry["outputs"]]
                self._functions[entry["name"]] = (_signature(entry)[:4], types, outputs)
            elif entry["type"] == "error":
                self._errors[_signature(entry)[:4]] = (entry["name"], types)
            elif entry["type"] == "event":
                self._events[_signature(entry)] = entry

    def creation(self, *arguments: Any) -> bytes:
        """The data of the transaction that deploys the contract."""
        return self.bytecode + encode(self._constructor, arguments)

    def call(self, function: str, *arguments: Any) -> bytes:
        """The data of a call. Structs are tuples, addresses and fixed bytes are bytes."""
        selector, inputs, _ = self._functions[function]
        return selector + encode(inputs, arguments)

    def result(self, function: str, data: bytes) -> tuple[Any, ...]:
        """What a call returned. Addresses are hex text. Raises `ValueError` for data that is no such answer."""
        try:
            return tuple(decode(self._functions[function][2], data))
        except DecodingError as error:
            raise ValueError(f"{self.name}.{function} answered {len(data)} bytes") from error

    def error(self, data: bytes) -> tuple[str, tuple[Any, ...]] | None:
        """The custom error in a revert's data, by its selector, or None."""
        known = self._errors.get(data[:4])
        if known is None:
            return None
        name, types = known
        try:
            return name, tuple(decode(types, data[4:]))
        except DecodingError:
            return None

    def topic(self, event: str) -> bytes:
        """The first topic of an event's logs."""
        return next(topic for topic, entry in self._events.items() if entry["name"] == event)

    def event(self, topics: list[bytes], data: bytes) -> tuple[str, dict[str, Any]] | None:
        """A log's event and its values by name, or None for a foreign log. Indexed values must be static ones."""
        entry = self._events.get(topics[0]) if topics else None
        if entry is None:
            return None
        indexed = [p for p in entry["inputs"] if p["indexed"]]
        others = [p for p in entry["inputs"] if not p["indexed"]]
        values = dict(zip((p["name"] for p in others), decode([_type(p) for p in others], data), strict=True))
        for parameter, topic in zip(indexed, topics[1:], strict=True):
            values[parameter["name"]] = decode([_type(parameter)], topic)[0]
        return entry["name"], values


@cache
def artifact(name: str) -> Artifact:
    """A committed contract by its name: SessionVault, ProviderRegistry or DemoToken."""
    found = json.loads(files("jupyter_depin.chain").joinpath("abi", f"{name}.json").read_text())
    return Artifact(name, found["abi"], bytes.fromhex(found["bytecode"][2:]))
