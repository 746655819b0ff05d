"""Holds output back for a moment and gives out less of it, with the same outcome.

What may happen to a message that waits:
  - text of the same stream and cell is joined with the text just before it, and overwritten lines are folded;
  - an update of a display gives way to a later update of the same display;
  - a widget's state gives way to a later state that has all its keys, and is merged with one that follows it at once;
  - what a cell showed gives way to its `clear_output`, if that waits, once there is something new to show.
Nothing is moved over anything else. Whatever is none of these kinds (a status, a result, an error, a request for
input, a widget that opens, takes in outputs or says a word of its own) is a fence: what waits goes before it, and it goes at once.

Not left out is what does something when it is shown: scripts, and kinds that only a front end's extension knows.

Rejected: doing this in the tunnel (it is blind to content, and shall be), on the renter's side (the bytes have come by
then), and moving a widget's changes together over those of others (a link between two widgets sees their order).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from jupyter_depin.coalescing.said import Said, Writer, read
from jupyter_depin.coalescing.text import folded
from jupyter_depin.protocol.frames import Part

_ROUTING = frozenset({"msg_id", "outputs"})
"""Keys of the output widget's state: they say where the outputs that follow are shown."""
_OUTPUTS = frozenset({"stream", "display_data", "clear_output"})
_HARMLESS = frozenset({"text/plain", "text/latex", "image/png", "image/jpeg", "image/gif", "image/webp"})
_WATCHED = frozenset({"text/html", "text/markdown", "image/svg+xml"})
_LIVELY = re.compile(rb"<(script|iframe|object|embed|link|style)|\\u|\bon\w+\s*=|javascript:", re.IGNORECASE)
"""In the JSON of these kinds: what may do something to the page, or may hide it."""

_text = msgspec.json.Decoder(str).decode
_flag = msgspec.json.Decoder(bool).decode
_values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True, eq=False)
class _Waiting:
    said: Said
    size: int
    gone: bool = False
    texts: list[str] = field(default_factory=list)
    state: dict[str, msgspec.Raw] | None = None
    wait: bool = False
    inert: bool = False


class Coalescer:
    """The output of one kernel that waits. Synchronous; driven by the provider's `Joining`.

    `size`: bytes that came in and wait.
    """

    def __init__(self, key: bytes, scheme: str) -> None:
        self._writer = Writer(key, scheme)
        self._waiting: list[_Waiting] = []
        self._displays: dict[tuple[str, str], _Waiting] = {}
        self._comms: dict[str, _Waiting] = {}
        self.size = 0

    def put(self, parts: Sequence[Part]) -> bool:
        """Keep a message until `take`. False: it is a fence, and was not kept."""
        said = read(parts)
        if said is None:
            return False
        new = _Waiting(said, sum(map(len, parts)))
        try:
            return self._put(new)
        except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
            return False

    def take(self) -> list[Sequence[Part]]:
        """All that waits, in order."""
        waiting, self._waiting = self._waiting, []
        self._displays.clear()
        self._comms.clear()
        self.size = 0
        left: list[_Waiting] = []
        for each in waiting:
            if each.gone:
                continue
            # What stood between two texts may have given way meanwhile.
            if each.texts and left and _one_text(left[-1], each):
                left[-1].texts += each.texts
            else:
                left.append(each)
        return [self._written(each) for each in left]

    # --

    def _put(self, new: _Waiting) -> bool:
        said = new.said
        match said.kind:
            case "stream":
                return self._stream(new)
            case "display_data":
                # Under a name that others have too it changes what they show, wherever that is.
                new.inert = _inert(said) and not _named(said)
                self._shows(said.parent)
            case "update_display_data":
                new.inert = _inert(said)
                name = (said.parent, _text(_values(said.content["transient"])["display_id"]))
                older = self._displays.get(name)
                if older is not None and older.inert:
                    older.gone = True
                self._displays[name] = new
            case "clear_output":
                new.wait = _flag(said.content["wait"])
                if not new.wait:
                    self._erase(said.parent, len(self._waiting))
            case "comm_msg":
                if not self._comm(new):
                    return False
                if new.gone:
                    return True
            case _:
                return False
        self._waiting.append(new)
        self.size += new.size
        return True

    def _stream(self, new: _Waiting) -> bool:
        _text(new.said.content["name"])
        new.texts.append(_text(new.said.content["text"]))
        new.inert = True
        self._shows(new.said.parent)
        last = self._last()
        self.size += new.size
        if last is not None and _one_text(last, new):
            last.texts += new.texts
        else:
            self._waiting.append(new)
        return True

    def _comm(self, new: _Waiting) -> bool:
        comm = _text(new.said.content["comm_id"])
        older = self._comms.pop(comm, None)
        data = _values(new.said.content["data"])
        if _text(data["method"]) != "update":
            # Whoever hears it may look at what is shown by then.
            return False
        if bytes(data.get("buffer_paths", b"[]")).strip() != b"[]":
            return True
        state = new.state = _values(data["state"])
        if _ROUTING & state.keys():
            return False
        self._comms[comm] = new
        if older is not None and older.state is not None and older.said.framing == new.said.framing:
            if older.state.keys() <= state.keys():
                older.gone = True
            elif older is self._last():
                older.gone = True
                new.state = older.state | state
        return True

    def _shows(self, parent: str) -> None:
        """Something is shown in a cell: its last `clear_output` that waits takes effect now."""
        for i in range(len(self._waiting) - 1, -1, -1):
            each = self._waiting[i]
            if each.said.parent == parent and each.said.kind in _OUTPUTS and not each.gone:
                if each.wait:
                    self._erase(parent, i)
                    each.wait = False
                return

    def _erase(self, parent: str, end: int) -> None:
        for each in self._waiting[:end]:
            if each.said.parent == parent and each.said.kind in _OUTPUTS:
                each.gone = each.gone or each.inert or each.said.kind == "clear_output"

    def _last(self) -> _Waiting | None:
        while self._waiting and self._waiting[-1].gone:
            self._waiting.pop()
        return self._waiting[-1] if self._waiting else None

    def _written(self, each: _Waiting) -> Sequence[Part]:
        said = each.said
        if each.texts:
            text = folded("".join(each.texts))
            if len(each.texts) > 1 or text != each.texts[0]:
                return self._writer.write(said, said.content | {"text": text})
        elif each.state is not None:
            data = _values(said.content["data"])
            if each.state.keys() != _values(data["state"]).keys():
                return self._writer.write(said, said.content | {"data": data | {"state": each.state}})
        return said.parts


def _one_text(before: _Waiting, after: _Waiting) -> bool:
    return (
        bool(before.texts)
        and before.said.framing == after.said.framing
        and bytes(before.said.content["name"]) == bytes(after.said.content["name"])
    )


def _named(said: Said) -> bool:
    return b"display_id" in bytes(said.content.get("transient", b""))


def _inert(said: Said) -> bool:
    """Whether nobody misses what was shown when something else is shown in its place."""
    for kind, value in _values(said.content["data"]).items():
        if kind not in _HARMLESS and (kind not in _WATCHED or _LIVELY.search(bytes(value))):
            return False
    return True
