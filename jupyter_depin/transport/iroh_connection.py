"""Connections and streams of iroh as the ports of this package. `iroh.py` makes them; they die with their endpoint.

The library keeps a node's port until the last object of that node is gone: connections and streams as well as the
endpoint. So everything here can be taken away from whoever still holds it (`let_go`).
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import iroh
from iroh import iroh_ffi

from jupyter_depin.errors import ConnectionLost
from jupyter_depin.protocol.identity import NodeId, node_id
from jupyter_depin.transport import Path
from jupyter_depin.transport.iroh_calls import Pending, choose
from jupyter_depin.transport.iroh_errors import forgo_traces, ignored, plain, told
from jupyter_depin.transport.iroh_free import owned

_CHUNK = 1 << 18
"""Bytes handed to the library in one piece: bounds the copy that a huge output needs."""

_READ = 1 << 18
"""The library makes a buffer of the whole limit for each read, so a larger one costs more than it brings."""
_IDLE_READ = 1 << 12
"""The limit where little comes: that buffer lies in memory for as long as a stream is silent. It grows as more comes."""

forgo_traces()
_calls = choose()


def renew_calls() -> None:
    """Take the calls of a binding that was loaded anew. Called by `bind` in a forked process."""
    global _calls
    forgo_traces()
    _calls = choose()


class IrohConnection:
    """A connection with one peer (port `Connection`). Made by an endpoint."""

    def __init__(self, connection: iroh.Connection) -> None:
        self._connection: iroh.Connection | None = owned(connection)
        self._streams: weakref.WeakSet[IrohStream] = weakref.WeakSet()
        self._peer = node_id(connection.remote_id().to_bytes())
        self._protocol = bytes(connection.alpn())
        self._reason: str | None = None
        self._accepting: list[Pending] = []

    @property
    def peer(self) -> NodeId:
        """The node at the other end, proven by its key."""
        return self._peer

    @property
    def protocol(self) -> bytes:
        """What both ends agreed to speak."""
        return self._protocol

    @property
    def ended(self) -> bool:
        """Whether it has ended, as far as this side knows. For `IrohEndpoint.idle`."""
        return self._why() is not None

    def path(self) -> Path | None:
        """The path in use, or None while it is not known. The round-trip time is in whole milliseconds."""
        paths = self._connection.paths() if self._connection is not None else []
        # The library selects one path for each peer: a second connection of that peer, say of another home, has its
        # own path, which is not called so.
        for path in [each for each in paths if each.is_selected] or (paths if len(paths) == 1 else []):
            return Path(relayed=path.is_relay, remote=path.remote_addr, rtt_ms=float(path.rtt_ms))
        return None

    async def open_stream(self) -> IrohStream:
        """Open a stream of our own. Raises `ConnectionLost`."""
        with self.translated():
            return self._adopt(await self._held().open_bi())

    async def accept_stream(self) -> IrohStream:
        """Wait for the peer's next stream; a cancelled wait loses none. Raises `ConnectionLost`."""
        call = self._accepting.pop() if self._accepting else _calls.accept(self._held())
        try:
            with self.translated():
                return self._adopt(await call.wait())
        except asyncio.CancelledError:
            self._accepting.append(call)
            raise

    async def close(self, reason: str = "") -> None:
        """End the connection; the peer reads `reason`. Never raises."""
        if self._connection is None:
            return
        # The library would forget why the peer had closed.
        self._reason = self._why() or reason or "closed on this side"
        with ignored():
            self._connection.close(0, reason.encode())

    async def closed(self) -> str:
        """Wait until the connection has ended, by whatever cause, and return the reason."""
        cause = "the library failed"
        with ignored():
            if self._connection is not None:
                cause = await self._connection.closed()
        return self._reason or plain(cause)

    async def bear_no_more(self) -> None:
        """End the connection when the peer opens a one-way stream, for as long as it lives. For `IrohEndpoint`.

        Nobody reads those, and a peer could fill a hundred of them.
        """
        held = self._connection
        if held is None:
            return
        waiting = asyncio.ensure_future(held.accept_uni())
        del held
        try:
            await asyncio.wait({waiting})
            if waiting.exception() is None:
                await self.close("it opened a one-way stream")
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, iroh.IrohError, iroh_ffi.InternalError):
                await waiting

    def let_go(self) -> None:
        """Give the library's objects back, once the node is closed. For `IrohEndpoint.close`."""
        if self._connection is not None:
            self._reason = self._why() or "this node was closed"
            self._connection = None
        self._accepting.clear()
        for stream in list(self._streams):
            stream.let_go(self._reason or "")

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the library's errors into `ConnectionLost`, with the connection's own reason where it has ended."""
        try:
            yield
        except (iroh.IrohError, iroh_ffi.InternalError) as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> ConnectionLost:
        """The same for one error. For streams, whose every read and write would pay for a generator."""
        return ConnectionLost(detail=self._why() or told(error))

    def _why(self) -> str | None:
        """Why the connection has ended, or None while it has not."""
        if self._reason is None and self._connection is not None:
            cause = self._connection.close_reason()
            return None if cause is None else plain(cause)
        return self._reason

    def _held(self) -> iroh.Connection:
        if self._connection is None:
            raise ConnectionLost(detail=self._reason or "")
        return self._connection

    def _adopt(self, halves: iroh.BiStream) -> IrohStream:
        adopted = IrohStream(self, halves)
        self._streams.add(adopted)
        return adopted


class IrohStream:
    """A stream of bytes in both directions (port `Stream`). Made by a connection, which it keeps alive.

    A cancelled `read` loses nothing: the next one gets what came meanwhile. After a cancelled `write` nobody knows how
    much was sent, so this direction of the stream is over and every later `write` raises `ConnectionLost`.
    """

    def __init__(self, connection: IrohConnection, halves: iroh.BiStream) -> None:
        self._connection = connection
        self._receiver: Any = owned(halves.recv())
        self._sender: Any = owned(halves.send())
        self._reading: Pending | None = None
        self._room = _IDLE_READ
        self._surplus = b""
        self._over: str | None = None
        self._priority: int | None = None
        self._late: bytes | memoryview = b""
        self._writing: Pending | None = None

    async def read(self, limit: int) -> bytes:
        """Return 1 … `limit` bytes as soon as there are any; b"" when the peer finished. Raises `ConnectionLost`."""
        if not self._surplus:
            if self._receiver is None:
                raise ConnectionLost(detail=self._over or "")
            reading = self._reading = self._reading or _calls.read(self._receiver, min(limit, self._room))
            try:
                data: bytes = await reading.wait()
            except (iroh.IrohError, iroh_ffi.InternalError) as error:
                self._reading = None
                raise self._connection.lost(error) from error
            self._reading = None
            if len(data) >= self._room:
                self._room = min(4 * self._room, _READ)
            elif len(data) < _IDLE_READ:
                self._room = _IDLE_READ
            if len(data) <= limit:
                return data
            # An earlier, cancelled read had asked for more.
            self._surplus = data
        data, self._surplus = self._surplus[:limit], self._surplus[limit:]
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Hand over all of `data`; it is copied once. Raises `ConnectionLost`."""
        if self._over is not None:
            raise ConnectionLost(detail=self._over)
        sender = self._sender
        try:
            if self._priority is not None:
                await sender.set_priority(self._priority)
                self._priority = None
            small = len(data) <= _CHUNK and isinstance(data, bytes)
            view = data if small else memoryview(data).cast("B")
            for start in range(0, len(view), _CHUNK):
                await _calls.write(sender, view[start : start + _CHUNK]).wait()
        except (iroh.IrohError, iroh_ffi.InternalError) as error:
            raise self._connection.lost(error) from error
        except asyncio.CancelledError:
            self._over = "an earlier write was interrupted"
            raise

    def begin(self, data: bytes | memoryview) -> bool:
        """Begin to hand over all of `data`, and say whether that is done. Raises `ConnectionLost`."""
        if self._over is not None:
            raise ConnectionLost(detail=self._over)
        if self._priority is not None or len(data) > _CHUNK:
            self._late = data
            return False
        try:
            writing = _calls.write(self._sender, data)
            if writing.now():
                return True
        except (iroh.IrohError, iroh_ffi.InternalError) as error:
            raise self._connection.lost(error) from error
        self._writing = writing
        return False

    async def settled(self) -> None:
        """Wait until what `begin` began is handed over. Raises `ConnectionLost`."""
        late, self._late = self._late, b""
        writing, self._writing = self._writing, None
        if late:
            await self.write(late)
        elif writing is not None:
            try:
                await writing.wait()
            except (iroh.IrohError, iroh_ffi.InternalError) as error:
                raise self._connection.lost(error) from error
            except asyncio.CancelledError:
                self._over = "an earlier write was interrupted"
                raise

    async def finish(self) -> None:
        """Say that nothing more is written; saying it again does nothing. Raises `ConnectionLost`."""
        if self._over is None:
            self._over = "this side had finished the stream"
            with self._connection.translated():
                await self._sender.finish()

    def set_priority(self, priority: int) -> None:
        """Streams of a higher priority are sent first. Holds from the next `write` on."""
        self._priority = priority

    def let_go(self, reason: str) -> None:
        """Give the library's objects back, once the node is closed. For `IrohConnection.let_go`."""
        self._over = reason
        self._receiver = self._sender = self._reading = self._writing = None
