"""The Jupyter clients of one rental: their channels, which outlive the kernels and the links behind them.

Before the first launch there are none, and everything here does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jupyter_depin.channels import ClientSide
from jupyter_depin.channels.header import is_reply_to_cell, is_stream, parent
from jupyter_depin.channels.lanes import Hold
from jupyter_depin.consumer.launching import Launching
from jupyter_depin.consumer.replay import Replay
from jupyter_depin.errors import DepinError, OutputGivenUp, OutputNotKept, RemoteProtocolError
from jupyter_depin.protocol.frames import Lane, Part, too_big
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.messages import (
    Ended,
    KernelExited,
    LeaseFact,
    OutputMissing,
    Settled,
    SettleFailed,
    decode_output,
)
from jupyter_depin.tunnel.events import Kept


class Clients:
    """What a rental says to its clients. `on_message` gets what they send, with the client's identity in front.

    `hold` is asked to keep a lane's messages back while they do not read, or are given what was kept for them; `later`
    calls back after some seconds; `came`: the bytes that came over the link so far, or None while there is none.
    """

    def __init__(
        self,
        on_message: Callable[[Lane, list[Part]], None],
        hold: Hold,
        later: Callable[[float, Callable[[], None]], None],
        came: Callable[[], int | None],
    ) -> None:
        self._on_message, self._hold = on_message, hold
        self._side: ClientSide | None = None
        self._replay = Replay(later, lambda held: hold(Lane.IOPUB, held, "replay"), came)
        self._request = self._asked_before = b""
        self._over = False

    def serve(self, local: LocalInfo) -> None:
        """Be at these sockets, before a kernel is launched; what clients send waits for it. Raises `PortInUse`."""
        self._replay.release()
        if self._side is None or not self._side.serves(local):
            self.close()
            self._side = ClientSide(local, self._on_message, self._hold, self._too_big)
        self._side.beating = True
        self._side.attend(False)

    def attend(self) -> None:
        """The kernel is there: what clients send is taken."""
        if self._side is not None:
            self._side.attend(True)

    def kernel_gone(self) -> None:
        """There is no kernel any more: its heart stops, and what clients send waits."""
        if self._side is not None:
            self._side.beating = False
            self._side.attend(False)

    def deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        """Hand a kernel's message to the clients, in its time."""
        if lane is Lane.IOPUB and (self._replay.active or len(parts) == 1):
            self._take(parts)
        elif self._replay.active and is_reply_to_cell(parts):
            # Programs that run notebooks take the reply for the end of the output.
            self._replay.behind(lambda: self._deliver(lane, parts), sum(map(len, parts)))
        else:
            self._deliver(lane, parts)

    def expect(self, kept: Mapping[Lane, Kept], launching: Launching | None) -> None:
        """The link is back: so much output was kept while it was down, and comes now."""
        # What a kernel said before another one was asked for keeps nobody waiting, nor does anything after the end.
        if Lane.IOPUB in kept and not self._over and not (launching and launching.under_way):
            self._asked_before = self._side.last_request if self._side is not None else b""
            self._replay.expect(kept[Lane.IOPUB])

    def in_turn(self, fact: LeaseFact, take: Callable[[LeaseFact], None]) -> None:
        """Take what the provider says; of the end only when the clients have all the output that came before."""
        if isinstance(fact, KernelExited | Ended | Settled | SettleFailed):
            self._replay.after(partial(take, fact))
        else:
            take(fact)

    def hurry(self) -> None:
        """The lease is over: what waits for them is given out at once, and nothing waits any more."""
        self._over = True
        self._replay.release()

    def tell(self, error: DepinError) -> None:
        """Say it in the output of the cell that ran last."""
        if self._side is not None:
            self._side.say(f"[jupyter-depin] {error}")

    def pause(self, lane: Lane, paused: bool) -> None:
        """Stop or go on taking clients' messages of one lane."""
        if self._side is not None:
            self._side.pause(lane, paused)

    def _too_big(self, lane: Lane, size: int, parts: int) -> None:
        self.tell(too_big(size, parts, lane))

    def _deliver(self, lane: Lane, parts: Sequence[Part]) -> None:
        if self._side is not None:
            self._side.deliver(lane, parts)

    def _take(self, parts: Sequence[Part]) -> None:
        size, word = sum(map(len, parts)), _word(parts)
        give = partial(self._give, parts) if word is None else partial(self._tell_missing, word)
        if self._replay.active:
            if self._is_new(parts):
                # The kernel has said it after all that was kept, however much was announced.
                self._replay.all_came()
            counted = size if word is not None or is_stream(parts) else 0
            self._replay.take(give, size, counted, stands_for=1 if word is None else word.messages)
        else:
            give()

    def _is_new(self, parts: Sequence[Part]) -> bool:
        """Whether it belongs to a cell that was given since the link is back."""
        asked = self._side.last_request if self._side is not None else self._asked_before
        return asked != self._asked_before and _belongs(parts, asked)

    def _give(self, parts: Sequence[Part]) -> None:
        self._request = parent(parts)
        self._deliver(Lane.IOPUB, parts)

    def _tell_missing(self, word: OutputMissing) -> None:
        kind = OutputGivenUp if word.restarted else OutputNotKept
        error = kind(messages=f"{word.messages:,}", size=f"{word.size / 1e6:,.1f} MB")
        if self._side is not None:
            # What is missing followed on what was given out last.
            self._side.say(f"[jupyter-depin] {error}", self._request)

    def close(self) -> None:
        """Close their sockets. May be called twice."""
        self._replay.release()
        side, self._side = self._side, None
        if side is not None:
            side.close()


def _belongs(parts: Sequence[Part], request: bytes) -> bool:
    """Whether a kernel's message names the request with this header as its cause."""
    try:
        name = str(json.loads(request)["msg_id"]).encode()
    except (ValueError, KeyError, TypeError):
        # A client may say anything.
        return False
    return bool(name) and name in parent(parts)


def _word(parts: Sequence[Part]) -> OutputMissing | None:
    """A word of the provider's between the kernel's messages."""
    if len(parts) == 1:
        try:
            return decode_output(bytes(parts[0]))
        except RemoteProtocolError:
            # A kernel may say anything.
            pass
    return None
