"""Gives the binding's objects back from the event loop, and never from inside the library.

The library tells Python of its progress while it holds the lock of the connection in question. Python may collect its
garbage at any moment, so also then; and an object of that connection that was part of the garbage waits, when it is
given back, for the lock that its own thread holds. Nothing in the process gets any further. An object that is `owned`
hands its place in the library to the loop instead, which gives it back where nothing is locked.

Rejected: keeping our objects out of reference cycles (the traceback of a failed call is one soon enough); replacing
`__del__` in the binding's classes (other users of it in the process would see that).
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def owned(thing: T) -> T:
    """An object of the binding, made safe to forget. Called on the loop, for every object that is kept."""
    holder: Any = thing
    kind: Any = type(thing)
    holder.__class__ = _patient(kind)
    holder._owner = asyncio.get_running_loop()
    return thing


def give_back(loop: asyncio.AbstractEventLoop, forget: Any, *arguments: Any) -> None:
    """Call `forget` from the loop; once that is closed, nothing holds a lock any more, and it is called here."""
    try:
        loop.call_soon_threadsafe(forget, *arguments)
    except RuntimeError:
        forget(*arguments)


@cache
def _patient(kind: Any) -> type:
    def __del__(thing: Any) -> None:
        handle = vars(thing).pop("_handle", None)
        if handle is not None:
            # An object of the plain kind takes the place over, and gives it back when the loop drops it.
            give_back(thing._owner, _drop, kind._uniffi_make_instance(handle))

    return type(kind.__name__, (kind,), {"__del__": __del__})


def _drop(thing: Any) -> None:
    """Do nothing: the last reference goes."""
