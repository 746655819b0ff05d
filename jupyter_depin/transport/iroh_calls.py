"""The three calls of the iroh binding that carry every byte, made fast and safe to cancel.

The generated binding is correct, but for a kernel's traffic it falls short in some ways, each answered here:

* it copies written bytes one by one in Python (about 9 MB/s): `FastCalls.lowered` moves them at once;
* around each of the half dozen steps of a call it makes a new status and a few generators: `_Library.step` keeps one;
* a thread of the library that reports progress becomes a Python thread each time, with memory mapped and unmapped for
  it: `_Library._on_progress` lets it stay one;
* a call that the library completes at once still takes a turn through the event loop: `Call` notices and goes on;
* a cancelled call drops its result, so that bytes or a stream that had just arrived would be lost: a `Call` outlives
  the task that waits for it, and the next waiter gets its result.

All this leans on inner names of the binding. `choose` therefore compares them, and a few samples, with the binding's
own work when the module is imported; where anything differs, the binding's own calls are used: slower, but right.

Rejected: replacing functions inside the binding's module (other users of it in the process would see that); an asyncio
task per call, shielded from its waiter (one more turn of the loop per message, and nobody to own the task).
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from iroh import iroh_ffi

from jupyter_depin.transport.iroh_free import give_back

Buffer = bytes | memoryview

log = logging.getLogger(__name__)

_WRITABLE = 0x200
"""CPython's flag for a memoryview that may be written through."""

_TURNS = 32
"""How many calls in a row may complete at once before the event loop gets its turn."""


class Pending(Protocol):
    """A call whose result waits for whoever asks next."""

    def now(self) -> bool:
        """Whether it is over already; its result is dropped then. Raises what the library raises."""

    async def wait(self) -> Any:
        """Return the result. When the waiter is cancelled, the next `wait` goes on where it stopped."""


class Calls(Protocol):
    """What the adapter needs for each message. The arguments are the binding's own objects."""

    def read(self, half: Any, limit: int) -> Pending:
        """Begin to read at most `limit` bytes."""

    def write(self, half: Any, data: Buffer) -> Pending:
        """Begin to write `data`, which is copied before this returns."""

    def accept(self, connection: Any) -> Pending:
        """Begin to wait for the peer's next stream."""


class _PlainCall:
    """A call of the binding's own. What arrives in the very moment of a cancellation is lost."""

    def __init__(self, call: Callable[..., Any], *args: object) -> None:
        self._call = call
        self._args = args

    def now(self) -> bool:
        return False

    async def wait(self) -> Any:
        return await self._call(*self._args)


class PlainCalls:
    """The binding as it is: what `choose` falls back to."""

    def read(self, half: Any, limit: int) -> Pending:
        """Begin to read at most `limit` bytes."""
        return _PlainCall(half.read, limit)

    def write(self, half: Any, data: Buffer) -> Pending:
        """Begin to write `data`."""
        return _PlainCall(half.write_all, data)

    def accept(self, connection: Any) -> Pending:
        """Begin to wait for the peer's next stream."""
        return _PlainCall(connection.accept_bi)


class _Slot:
    """Where a thread of the library leaves word that a call can go on."""

    __slots__ = ("code", "loop", "polling", "waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.code: int | None = None
        self.polling = True
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Library:
    """The inner names of the binding that the fast calls use, looked up once. Raises `AttributeError` without them."""

    def __init__(self, binding: Any) -> None:
        lib = binding._UniffiLib
        self.start_read = lib.uniffi_iroh_ffi_fn_method_recvstream_read
        self.start_write = lib.uniffi_iroh_ffi_fn_method_sendstream_write_all
        self.start_accept = lib.uniffi_iroh_ffi_fn_method_connection_accept_bi
        self.clone_receiver = lib.uniffi_iroh_ffi_fn_clone_recvstream
        self.clone_sender = lib.uniffi_iroh_ffi_fn_clone_sendstream
        self.alloc = lib.ffi_iroh_ffi_rustbuffer_alloc
        self.free = lib.ffi_iroh_ffi_rustbuffer_free
        self.of_bytes, self.of_nothing, self.of_handle = (
            tuple(
                getattr(lib, f"ffi_iroh_ffi_rust_future_{step}_{kind}")
                for step in ("poll", "complete", "free")
            )
            for kind in ("rust_buffer", "void", "u64")
        )
        self.as_streams = binding._UniffiFfiConverterTypeBiStream
        self.as_error = binding._UniffiFfiConverterTypeIrohError__as_error
        self.new_status = binding._UniffiRustCallStatus.default
        self.check = binding._uniffi_check_call_status
        self.status = self.new_status()
        self.ready = binding._UNIFFI_RUST_FUTURE_POLL_READY
        self.callback = binding._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK(self._on_progress)
        self.slots: dict[int, _Slot] = {}
        self.numbers = itertools.count(1)
        self.turns = _TURNS
        self.threads = threading.local()

    def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the library that tells by a status whether it went well. Raises what it says."""
        result = function(*arguments, ctypes.byref(self.status))
        if self.status.code:
            failed, self.status = self.status, self.new_status()
            self.check(self.as_error, failed)
        return result

    def lifted(self, buffer: Any) -> bytes:
        """The bytes in a buffer of the library's, after their length in four bytes; gives the buffer back."""
        try:
            data: bytes = buffer.data[4 : buffer.len]
            return data
        finally:
            self.step(self.free, buffer)

    def _on_progress(self, number: int, code: int) -> None:
        if not hasattr(self.threads, "stays"):
            self.threads.stays = True
            # Never released on purpose: the library has few threads, and they last as long as the process.
            ctypes.pythonapi.PyGILState_Ensure()
        slot = self.slots.pop(number)
        # The order matters: `wait` clears `polling` before it looks at `code`, so one of the two sees the other.
        slot.code = code
        if not slot.polling:
            try:
                slot.loop.call_soon_threadsafe(slot.wake)
            except RuntimeError:
                log.debug("An event loop was closed before a call on it had ended")


class Call:
    """One call into the library, without a task of its own, kept when its waiter is cancelled."""

    __slots__ = ("_complete", "_free", "_future", "_library", "_lift", "_poll", "_slot")

    def __init__(
        self, library: _Library, kind: tuple[Any, ...], future: int, lift: Callable[[Any], Any] | None
    ) -> None:
        self._library = library
        self._poll, self._complete, self._free = kind
        self._future = future
        self._lift = lift
        self._slot: _Slot | None = None

    async def wait(self) -> Any:
        """Return the result, once. Raises what the library raises."""
        library = self._library
        library.turns -= 1
        if library.turns <= 0:
            library.turns = _TURNS
            await asyncio.sleep(0)
        while True:
            slot = self._slot or self._ask()
            if slot.code is None:
                library.turns = _TURNS
                slot.waiter = slot.loop.create_future()
                await slot.waiter
            self._slot = None
            if slot.code == library.ready:
                return self._result()

    def now(self) -> bool:
        """Whether it is over already; its result is dropped then. Raises what the library raises."""
        slot = self._slot or self._ask()
        if slot.code != self._library.ready:
            return False
        self._slot = None
        self._result()
        return True

    def _ask(self) -> _Slot:
        slot = self._slot = _Slot(asyncio.get_running_loop())
        number = next(self._library.numbers)
        self._library.slots[number] = slot
        self._poll(self._future, self._library.callback, number)
        slot.polling = False
        return slot

    def _result(self) -> Any:
        future, self._future = self._future, 0
        try:
            result = self._library.step(self._complete, future)
        finally:
            self._free(future)
        return None if self._lift is None else self._lift(result)

    def __del__(self) -> None:
        if self._future and self._slot is not None:
            give_back(self._slot.loop, self._free, self._future)
        elif self._future:
            self._free(self._future)


class FastCalls:
    """The binding's calls without its detours. Made by `choose` only, which checks that they fit."""

    def __init__(self, binding: Any) -> None:
        self._library = _Library(binding)
        self._view = ctypes.pythonapi.PyMemoryView_FromMemory
        self._view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
        self._view.restype = ctypes.py_object

    def read(self, half: Any, limit: int) -> Pending:
        """Begin to read at most `limit` bytes."""
        library = self._library
        future = library.start_read(library.step(library.clone_receiver, half._handle), limit)
        return Call(library, library.of_bytes, future, library.lifted)

    def write(self, half: Any, data: Buffer) -> Pending:
        """Begin to write `data`, which is copied before this returns."""
        library = self._library
        handle = library.step(library.clone_sender, half._handle)
        future = library.start_write(handle, self.lowered(data))
        return Call(library, library.of_nothing, future, None)

    def accept(self, connection: Any) -> Pending:
        """Begin to wait for the peer's next stream."""
        library = self._library
        future = library.start_accept(connection._uniffi_clone_handle())
        return Call(library, library.of_handle, future, library.as_streams.lift)

    def lowered(self, data: Buffer) -> Any:
        """`data` in a buffer of the library's: its length in four bytes, then itself, copied once."""
        size = len(data)
        buffer = self._library.step(self._library.alloc, size + 4)
        view = self._view(ctypes.addressof(buffer.data.contents), size + 4, _WRITABLE)
        view[:4] = size.to_bytes(4, "big")
        view[4:] = data
        buffer.len = size + 4
        return buffer

    def check(self, binding: Any) -> None:
        """Compare with the binding's own work. Raises `ValueError` on any difference."""
        if self._library.alloc.restype is not binding._UniffiRustBuffer:
            raise ValueError("buffers have another form")
        converter = binding._UniffiFfiConverterBytes
        for sample in (b"", b"\x00\xff", bytes(range(256)) * 5, memoryview(b"between")[1:4]):
            ours, theirs = self.lowered(sample), converter.lower(bytes(sample))
            same = ours.data[: ours.len] == theirs.data[: theirs.len] and ours.capacity >= ours.len
            # Lifting also gives the buffers back.
            if (converter.lift(ours), self._library.lifted(theirs)) != (sample, sample) or not same:
                raise ValueError("bytes cross differently")


def choose(binding: Any = iroh_ffi) -> Calls:
    """The fast calls where they fit the installed binding, else the plain ones. Called once, at import."""
    try:
        fast = FastCalls(binding)
        fast.check(binding)
    except Exception as error:  # Whatever a changed binding does here, its own calls still work.
        log.warning("This version of iroh is unknown (%s): large outputs will travel slowly", error)
        return PlainCalls()
    return fast
