"""Whatever loop a machine has, it watches the descriptors of the channels' sockets."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import os
from contextlib import closing

import pytest

from jupyter_depin.drivers.loop import new_event_loop


def reads(loop: asyncio.AbstractEventLoop) -> bytes:
    reader, writer = os.pipe()

    async def main() -> bytes:
        read: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(reader, lambda: read.set_result(os.read(reader, 10)))
        os.write(writer, b"news")
        try:
            return await read
        finally:
            loop.remove_reader(reader)

    try:
        return loop.run_until_complete(main())
    finally:
        os.close(reader)
        os.close(writer)


def test_it_is_uvloop_where_there_is_one():
    uvloop = pytest.importorskip("uvloop", reason="this system has no uvloop")
    with closing(new_event_loop()) as loop:
        assert isinstance(loop, uvloop.Loop)
        assert reads(loop) == b"news"


def test_it_is_asyncios_own_where_there_is_none(monkeypatch):
    def missing(name: str, *args: object) -> object:
        if name == "uvloop":
            raise ImportError(name)
        return builtins.__import__(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with closing(new_event_loop()) as loop:
        assert isinstance(loop, asyncio.SelectorEventLoop)
        assert reads(loop) == b"news"
