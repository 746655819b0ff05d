"""Makes whatever a rented kernel's streams bring arrive later: put on PYTHONPATH by `tests.suites --delay-ms`.

Python reads this file at its start, in the suite's process as in the agent's, so that the delay is there in both
directions. It waits for the transport's adapter to be imported and slows its streams down; programs that do not use it
notice nothing. Reading goes on meanwhile, as on a long way. Rejected: a proxy for the packets (two nodes of one machine
find a way past it), a network of its own for each agent (the suites start and kill programs by their own rules).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

_SLOWED = "jupyter_depin.transport.iroh_connection"
_READ = 1 << 18
_AHEAD = 256
"""Reads that may be under way: more than anybody sends in a round trip of these tests."""

Read = Callable[[Any, int], Awaitable[bytes]]


class _Way:
    """What is under way on one stream, each piece with the time at which it arrives."""

    def __init__(self, stream: Any, read: Read, delay_s: float) -> None:
        self._stream, self._read, self._delay_s = stream, read, delay_s
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[float, bytes | Exception]] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Semaphore(_AHEAD)
        self._task = asyncio.create_task(self._go_on())
        self._rest = b""

    async def _go_on(self) -> None:
        last = False
        while not last:
            await self._room.acquire()
            try:
                piece: bytes | Exception = await self._read(self._stream, _READ)
                last = not piece
            except Exception as error:
                piece, last = error, True
            self._pieces.append((self._loop.time() + self._delay_s, piece))
            self._news.set()

    async def arrive(self, limit: int) -> bytes:
        if not self._rest:
            while not self._pieces:
                self._news.clear()
                await self._news.wait()
            due, piece = self._pieces[0]
            while (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            if isinstance(piece, Exception):
                raise piece
            if piece:
                self._pieces.popleft()
                self._room.release()
            self._rest = piece
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data


def _slow_down(module: ModuleType, delay_s: float) -> None:
    stream_type: Any = module.IrohStream
    read: Read = stream_type.read
    ways: WeakKeyDictionary[Any, _Way] = WeakKeyDictionary()

    async def late(stream: Any, limit: int) -> bytes:
        if stream not in ways:
            ways[stream] = _Way(stream, read, delay_s)
        return await ways[stream].arrive(limit)

    stream_type.read = late


class _Finder(MetaPathFinder):
    """Finds the adapter as everybody does, and slows it down when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _SLOWED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        loader: Loader | None = spec.loader
        assert loader is not None
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _slow_down(module, float(os.environ["DEPIN_DELAY_MS"]) / 1000)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "DEPIN_DELAY_MS" in os.environ:
    sys.meta_path.insert(0, _Finder())
