"""How many bytes of a talkative cell cross a slow link: as it is, compressed, and joined before that.

The cells run in a real kernel here; what it says is kept with the time at which it said it. So all three ways carry the
very same messages, and no figure depends on the machine. Joined is what a link gets that is half a second behind; that
a notebook shows the same in the end is checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from jupyter_client.session import Session

from jupyter_depin.coalescing.coalescer import Coalescer
from jupyter_depin.protocol.compressed import Compressor
from jupyter_depin.protocol.frames import Data, Lane, Part, encode_data
from tests.bench.kernels import started
from tests.bench.report import Benchmark, Line
from tests.coalescing.notebook import Notebook

_BEHIND_S = 0.5
Said = list[tuple[float, list[bytes]]]

_CELLS = {
    "bar": """
import sys, time
for i in range({count} + 1):
    done = "█" * (40 * i // {count})
    print(f"\\rEpoch 3: {{i / {count}:4.0%}}|{{done:40}}| {{i}}/{count} [{{i / 20:06.2f}}s, 20.01it/s]", end="", file=sys.stderr, flush=True)
    time.sleep(0.05)
""",
    "prints": """
import time
for i in range({count}):
    print(f"step {{i:5d}}: loss {{1 / (i + 1):.6f}}, accuracy {{1 - 1 / (i + 2):.4f}}", flush=True)
    time.sleep(0.05)
""",
    "display": """
import time
from IPython.display import HTML, display
shown = display(HTML(""), display_id=True)
for i in range({count}):
    rows = "".join(f"<tr><td>{{k}}</td><td>{{(i * k) % 97}}</td></tr>" for k in range(20))
    shown.update(HTML(f"<table>{{rows}}</table>"))
    time.sleep(0.05)
""",
    "widget": """
import time
from IPython.display import display
from ipywidgets import HTML, HBox, IntProgress
label, bar, clock = HTML(), IntProgress(max={count}), HTML()
display(HBox([label, bar, clock]))
for i in range({count}):
    label.value, bar.value, clock.value = f"{{i / {count}:4.0%}}", i + 1, f"{{i}}/{count} [{{i / 20:06.2f}}s, 20.01it/s]"
    time.sleep(0.05)
""",
}


def _said(session: Session, client: object, code: str) -> Said:
    """All that a kernel publishes about a cell, and when."""
    said: Said = []
    mine = client.execute(code)  # type: ignore[attr-defined]
    began = time.monotonic()
    while True:
        parts = client.iopub_channel.socket.recv_multipart()  # type: ignore[attr-defined]
        _, rest = session.feed_identities(parts)
        message = session.deserialize(rest)
        if message["parent_header"].get("msg_id") == mine:
            said.append((time.monotonic() - began, parts))
            if message["content"].get("execution_state") == "idle":
                return said
            assert message["msg_type"] != "error", message["content"]


def _joined(said: Said, session: Session) -> list[Sequence[Part]]:
    left: list[Sequence[Part]] = []
    coalescer, since = Coalescer(session.key, session.signature_scheme), 0.0
    for at, parts in said:
        if at - since >= _BEHIND_S:
            left += coalescer.take()
            since = at
        if not coalescer.put(parts):
            left += [*coalescer.take(), parts]
    return [*left, *coalescer.take()]


def _pieces(messages: Sequence[Sequence[Part]]) -> list[list[Part]]:
    return [
        encode_data(Data(Lane.IOPUB, seq, parts, sum(map(len, parts)))) for seq, parts in enumerate(messages)
    ]


def _plain(messages: Sequence[Sequence[Part]]) -> int:
    return sum(len(piece) for pieces in _pieces(messages) for piece in pieces)


def _compressed(messages: Sequence[Sequence[Part]]) -> int:
    compressor = Compressor()
    return sum(len(compressor.pack(pieces)) for pieces in _pieces(messages))


def _notebook(messages: Sequence[Sequence[Part]], key: bytes) -> Notebook:
    notebook, session = Notebook(), Session(key=key)
    for parts in messages:
        _, rest = session.feed_identities([bytes(part) for part in parts])
        notebook.take(session.deserialize(rest))
    return notebook


def _spared(name: str, quick: bool) -> Iterator[Line]:
    with started("local-provisioner") as manager:
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            session = Session(key=manager.session.key, signature_scheme=manager.session.signature_scheme)
            said = _said(session, client, _CELLS[name].format(count=20 if quick else 200))
        finally:
            client.stop_channels()
    whole = [parts for _, parts in said]
    joined = _joined(said, session)
    assert _notebook(joined, session.key).seen() == _notebook(whole, session.key).seen(), "it shows otherwise"
    value = _compressed(joined) / 1000
    yield Line(f"spared_{name}_kb", value, "kB", "plain", _plain(whole) / 1000)
    yield Line(f"spared_{name}_kb", value, "kB", "compressed only", _compressed(whole) / 1000)


BENCHMARKS = tuple(
    Benchmark(
        (f"spared_{name}_kb",),
        "lower",
        f"what a cell with {what} at 20 a second for 10 s sends to its renter over a slow link",
        partial(_spared, name),
    )
    for name, what in (
        ("bar", "a progress bar as text"),
        ("prints", "lines of print"),
        ("display", "a table that is updated"),
        ("widget", "a progress bar of three widgets"),
    )
)
