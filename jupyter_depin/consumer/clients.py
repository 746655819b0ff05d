"""The Jupyter clients of one rental: their channels, which outlive the kernels and the links behind them.

Before the first launch there are none, and everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jupyter_depin.channels import ClientSide
from jupyter_depin.channels.sockets import Hold
from jupyter_depin.errors import DepinError, OutputGivenUp, OutputNotKept, RemoteProtocolError
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.messages import decode_output


class Clients:
    """What a rental says to its clients. `on_message` gets what they send, with the client's identity in front.

    `hold` is asked to keep a lane's messages back while they do not read.
    """

    def __init__(self, on_message: Callable[[Lane, list[Part]], None], hold: Hold) -> None:
        self._on_message, self._hold = on_message, hold
        self._side: ClientSide | None = None

    def serve(self, local: LocalInfo) -> None:
        """Be at these sockets, before a kernel is launched; what clients send waits for it. Raises `PortInUse`."""
        if self._side is None or not self._side.serves(local):
            self.close()
            self._side = ClientSide(local, self._on_message, self._hold)
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
        """Hand a kernel's message to the clients."""
        if lane is Lane.IOPUB and len(parts) == 1:
            self._missing(bytes(parts[0]))
        elif self._side is not None:
            self._side.deliver(lane, parts)

    def tell(self, error: DepinError) -> None:
        """Say it in the output of the cell that ran last."""
        if self._side is not None:
            self._side.say(f"[jupyter-depin] {error}")

    def pause(self, lane: Lane, paused: bool) -> None:
        """Stop or go on taking clients' messages of one lane."""
        if self._side is not None:
            self._side.pause(lane, paused)

    def _missing(self, data: bytes) -> None:
        try:
            word = decode_output(data)
        except RemoteProtocolError:
            # A kernel may say anything; a message of one part is none of Jupyter's.
            return
        kind = OutputGivenUp if word.restarted else OutputNotKept
        self.tell(kind(messages=f"{word.messages:,}", size=f"{word.size / 1e6:,.1f} MB"))

    def close(self) -> None:
        """Close their sockets. May be called twice."""
        side, self._side = self._side, None
        if side is not None:
            side.close()
