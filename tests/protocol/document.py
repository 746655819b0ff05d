"""Writes the generated parts of docs/protocol.md from the code: `python -m tests.protocol.document --write`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; the text around it is written by hand. Without
`--write` it says whether the file is up to date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from jupyter_depin import errors, lifecycle, transport
from jupyter_depin.meter import payee, payer
from jupyter_depin.protocol import compressed, eip712, frames, identity, market, messages, voucher
from jupyter_depin.protocol.frames import PRIORITY, Data, Lane, encode_data, encode_message, longest
from jupyter_depin.protocol.reason import SENTENCES, EndReason
from jupyter_depin.tunnel import machine, pulse, states
from provider_kernel import visitors

FILE = Path(__file__).parent.parent.parent / "docs" / "protocol.md"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.document", description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring the file up to date")
    asked = parser.parse_args()
    written = FILE.read_text("utf-8")
    wanted = renewed(written)
    if asked.write:
        FILE.write_text(wanted, "utf-8")
    print("up to date" if wanted == written else "written" if asked.write else "out of date")
    return int(wanted != written and not asked.write)


def renewed(text: str) -> str:
    """The document with its generated parts as the code has them now."""
    return _PART.sub(lambda found: found[1] + PARTS[found[2]]() + "\n" + found[3], text)


# -- tables


def table(head: str, rows: Iterator[tuple[object, ...]] | list[tuple[object, ...]]) -> str:
    names = head.split("|")
    lines = ["| " + " | ".join(each.strip() for each in names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def first_paragraph(text: str | None) -> str:
    return inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " ")


def whole(text: str | None) -> str:
    return re.sub(r"\s+", " ", inspect.cleandoc(text or "")).strip()


def remarks(module: types.ModuleType) -> dict[str, str]:
    """Name → the docstring below it, for the constants of a module."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(module)).body
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        targets = statement.targets if isinstance(statement, ast.Assign) else ()
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = whole(str(after.value.value))
    return found


LIMITED = (transport, frames, compressed, messages, market, machine, pulse, visitors)


def limits() -> str:
    """Every public constant of the modules that set bounds."""
    rows: list[tuple[object, ...]] = []
    for module in LIMITED:
        said = remarks(module)
        for name, value in vars(module).items():
            ours = re.search(rf"^{name}\b.* = ", inspect.getsource(module), re.MULTILINE)
            if name.isupper() and name[0] != "_" and isinstance(value, int | bytes) and ours:
                if isinstance(value, bytes) and len(value) == 32:
                    continue
                shown = f"{value:,}" if isinstance(value, int) else _octets(value)
                rows.append((f"`{name}`", shown, said.get(name, "")))
    return table("name | value | what it is", rows)


def _octets(value: bytes) -> str:
    return f"`{value.decode()}`" if value.isascii() and value.decode().isprintable() else f"`{value.hex()}`"


def lanes() -> str:
    return table(
        "number | lane | priority | bytes of one message at most",
        [(int(lane), f"`{lane.name}`", PRIORITY[lane], f"{longest(lane):,}") for lane in Lane],
    )


def type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return hint.__name__
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(each) for each in arguments)
    if origin is typing.Literal:
        return " or ".join(f'"{each}"' for each in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is dict:
        return f"object of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if origin is tuple:
        inner = [type_name(each) for each in arguments if each is not Ellipsis]
        return f"array of {inner[0]}" if Ellipsis in arguments else f"array ({', '.join(inner)})"
    names = {
        int: "integer",
        bytes: "base64",
        str: "text",
        bool: "true/false",
        type(None): "null",
        float: "number",
    }
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def fields(kind: type) -> Iterator[tuple[str, Any, str]]:
    """(name, type, "no" or its default) of each field."""
    hints = typing.get_type_hints(kind)
    if issubclass(kind, msgspec.Struct):
        for each in msgspec.structs.fields(kind):
            default = "" if each.default is msgspec.NODEFAULT else msgspec.json.encode(each.default).decode()
            if each.default_factory is not msgspec.NODEFAULT:
                default = msgspec.json.encode(each.default_factory()).decode()
            yield each.name, hints[each.name], default
    else:
        for field in dataclasses.fields(kind):
            default = (
                "" if field.default is dataclasses.MISSING else msgspec.json.encode(field.default).decode()
            )
            yield field.name, hints[field.name], default


def described(kind: type, title: str) -> str:
    rows = [
        (f"`{name}`", type_name(hint), f"`{default}`" if default else "")
        for name, hint, default in fields(kind)
    ]
    text = f"#### {title}\n\n{whole(kind.__doc__)}\n"
    return text + ("\n" + table("field | type | if left out", rows) + "\n" if rows else "")


def tagged(kind: type) -> str:
    return f"`{kind.__struct_config__.tag}` ({kind.__name__})"  # type: ignore[attr-defined]


def group(*unions: Any) -> str:
    kinds = [kind for union in unions for kind in (typing.get_args(union) or (union,))]
    return "\n".join(described(kind, tagged(kind)) for kind in kinds).rstrip()


def unnamed() -> list[type]:
    """Tagged words of the vocabulary that are in none of the document's groups: they stand alone on a lane."""
    grouped = {kind for union in GROUPS.values() for kind in (typing.get_args(union) or (union,))}
    return [
        kind
        for module in (frames, messages)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
        if kind.__struct_config__.tag is not None
        and kind not in grouped
        and kind.__module__ == module.__name__
    ]


GROUPS: dict[str, Any] = {
    "control": frames.Control,
    "requests": messages.Request,
    "answers": messages.Answer,
    "orders": messages.LeaseOrder,
    "facts": messages.LeaseFact,
    "to_payer": messages.ToPayer,
    "to_payee": messages.VoucherGiven,
}


def values() -> str:
    kinds = (
        market.Asset, market.Offer, messages.SignedOffer, market.Lease, market.Terms, market.Opening,
    )  # fmt: skip
    return "\n".join(described(kind, kind.__name__) for kind in kinds).rstrip()


def signed_types() -> str:
    """The EIP-712 type strings, as the sources have them."""
    rows: list[tuple[object, ...]] = []
    for module in (eip712, identity, market, voucher):
        for statement in ast.parse(inspect.getsource(module)).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                arguments = statement.value.args
                if (
                    len(arguments) == 1
                    and isinstance(arguments[0], ast.Constant)
                    and isinstance(arguments[0].value, bytes)
                ):
                    said = arguments[0].value.decode()
                    rows.append((f"`{said}`", f"`{eip712.keccak256(said.encode()).hex()}`"))
    return table("type string | keccak-256", rows)


def reasons() -> str:
    return table("code | what a user reads", [(f"`{each.value}`", SENTENCES[each]) for each in EndReason])


def codes() -> str:
    """The errors that one side may tell the other."""

    def below(kind: type[errors.DepinError]) -> Iterator[type[errors.DepinError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    kinds = [k for top in (errors.LeaseError, errors.PaymentError, errors.SandboxError) for k in below(top)]
    return table(
        "code | sentence; facts in braces",
        [(f"`{kind.code}`", first_paragraph(kind.__doc__)) for kind in kinds],
    )


# -- diagrams


def diagram(steps: list[tuple[str, str, str]], meanings: dict[str, str]) -> str:
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {name}: {name}<br/>{meaning.rstrip('.')}" for name, meaning in meanings.items()]
    lines.append(f"    [*] --> {next(iter(meanings))}")
    joined: dict[tuple[str, str], list[str]] = {}
    for before, cause, after in steps:
        joined.setdefault((before, after), []).append(cause)
    lines += [f"    {before} --> {after}" + (f": {', '.join(causes)}" if any(causes) else "")
              for (before, after), causes in joined.items()]  # fmt: skip
    return "\n".join([*lines, "```"])


def member_remarks(kind: type[enum.Enum]) -> dict[str, str]:
    """The docstring below each member."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    said: dict[str, str] = {}
    for statement, after in pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(after, ast.Expr):
            said[statement.targets[0].id] = str(ast.literal_eval(after.value)).split(";")[0].split(".")[0]
    return {each.name: said.get(each.name, "") for each in kind}


def tunnel_diagram() -> str:
    steps = [(before.name, cause, after.name) for (before, cause), after in states.TRANSITIONS.items()]
    return diagram(steps, {each.name: each.value for each in states.State})


def meter_diagram(module: Any) -> str:
    steps = [
        (before.name, step.name.lower().replace("_", " "), after.name)
        for (before, step), after in module.TRANSITIONS.items()
    ]
    return diagram(steps, member_remarks(module.State))


def lifecycle_diagram() -> str:
    steps = [
        (before.name, "", after.name)
        for before, afters in lifecycle.TRANSITIONS.items()
        for after in lifecycle.State
        if after in afters
    ]
    return diagram(steps, member_remarks(lifecycle.State))


# -- test vectors

SAMPLES: dict[str, Any] = {
    "Address": bytes(range(1, 21)), "NodeId": bytes(range(32, 64)), "Amount": 1000, "Rate": 3600,
    "signature_scheme": "hmac-sha256", "signature": bytes(range(65)), "channel_id": bytes(range(64, 96)),
    "version": frames.VERSION, "received": {2: 1, 4: 7}, "served_ns": 5_000_000_000, "tick_s": 5, "arrears_s": 15,
    "grace_s": 60, "max_seconds": 3600, "decimals": 6, "symbol": "DEMO", "chain_id": 31337, "title": "A card, 24 GB",
    "facts": None, "code": "NoFreeSlot", "reason": "stopped_by_user", "transaction": "0x01", "epoch": 1, "signum": 2,
    "expires": 2_000_000_000, "accept_by": 1_900_000_000, "open_by": 1_900_000_150, "sequence": 3, "stderr": "killed",
    "status": -9, "open_fee": 0, "kept": {},
}  # fmt: skip


def sample(hint: Any, name: str = "") -> Any:
    """An example value of a type, the same each time."""
    if SAMPLES.get(name) is not None:
        return SAMPLES[name]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return SAMPLES.get(hint.__name__, sample(hint.__supertype__, name))
    if origin in (types.UnionType, typing.Union):
        return sample(arguments[0], name)
    if origin is typing.Literal:
        return arguments[0]
    if origin is typing.Annotated:
        return sample(arguments[0], name)
    if origin is dict:
        return {sample(arguments[0]): sample(arguments[1])}
    if origin is tuple:
        return tuple(sample(each) for each in arguments if each is not Ellipsis)
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, msgspec.Struct)):
        return hint(**{each: sample(kind, each) for each, kind, _ in fields(hint)})
    plain: dict[Any, Any] = {bytes: bytes(range(32)), int: 7, str: "x", bool: True, float: 0.5}
    return plain[hint]


def vectors() -> dict[str, bytes]:
    """Name → the bytes as they are on the wire."""
    plain = Data(Lane.SHELL, 5, [b"\0\0\0\1", b"", b"who"], 7)
    made = {
        "data frame 5 of a lane, parts 00000001, nothing, `who`": b"".join(map(bytes, encode_data(plain))),
        "the head that announces compressed bytes": frames.COMPRESSED,
        "the same data frame as a compressed stretch of its own": _stretch(plain),
    }
    for union in (*GROUPS.values(), *unnamed()):
        for kind in typing.get_args(union) or (union,):
            word = sample(kind)
            # Words of a lane are a message of one part; the others have their length in front.
            ahead = kind in typing.get_args(frames.Control | messages.Request | messages.Answer)
            made[tagged(kind)] = encode_message(word) if ahead else messages.encode(word)
    return made


def _stretch(frame: Data) -> bytes:
    """In the plainest form that zstd has, one raw block, since each version of the library packs in its own way."""
    body = b"".join(map(bytes, encode_data(frame)))
    block = (1 | len(body) << 3).to_bytes(3, "little")
    return frames.COMPRESSED + bytes.fromhex("28b52ffd20") + bytes([len(body)]) + block + body


def digests() -> dict[str, bytes]:
    """Name → what is signed, of the sample values."""
    asset, offer = sample(market.Asset), sample(market.Offer)
    terms, lease = sample(market.Terms), sample(market.Lease)
    channel = terms.channel_id(asset.domain)
    return {
        "domain separator": asset.domain.separator,
        "offer": offer.digest(),
        "lease (and `lease_hash`)": lease.digest(asset.domain),
        "terms: the channel id": channel,
        "open, deposit 1000, open_by 1900000150": market.open_digest(asset.domain, channel, sample(market.Amount), 1_900_000_150),
        "voucher of 1000": voucher.Voucher(channel, sample(market.Amount)).digest(asset.domain),
        "attach of the sample node": voucher.attach_digest(asset.domain, channel, SAMPLES["NodeId"]),
        "close": market.close_digest(asset.domain, channel),
    }  # fmt: skip


def vector_list() -> str:
    lines = []
    for name, raw in vectors().items():
        shown = raw[4:] if raw[4:5] == b"{" else raw if raw[:1] == b"{" else None
        lines.append(f"{name}\n\n```\n{raw.hex()}\n" + (f"{shown.decode()}\n" if shown else "") + "```\n")
    return "\n".join(lines).rstrip()


def digest_list() -> str:
    return table(
        "of the samples above | digest", [(name, f"`{raw.hex()}`") for name, raw in digests().items()]
    )


def alone() -> str:
    return "\n".join(described(kind, tagged(kind)) for kind in unnamed()).rstrip() or "There are none."


PARTS: dict[str, Callable[[], str]] = {
    "limits": limits,
    "lanes": lanes,
    **{name: (lambda union=union: group(union)) for name, union in GROUPS.items()},  # type: ignore[misc]
    "alone": alone,
    "values": values,
    "signed": signed_types,
    "reasons": reasons,
    "codes": codes,
    "tunnel": tunnel_diagram,
    "payer": lambda: meter_diagram(payer),
    "payee": lambda: meter_diagram(payee),
    "lifecycle": lifecycle_diagram,
    "vectors": vector_list,
    "digests": digest_list,
}

if __name__ == "__main__":
    raise SystemExit(main())
