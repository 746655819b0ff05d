"""The event loop that tunnels run on: uvloop where there is one, which takes a quarter less processor time per message.

Not on Windows, which uvloop does not know; there asyncio's selector loop serves, since the channels' sockets are
watched by their descriptors, which the other loop of that system cannot do. Rejected: a loop policy (it would change
the loops of the program that rents).
"""

from __future__ import annotations

import asyncio
import importlib
from typing import cast


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for one thread. Called by the consumer's runtime and by the agent's program, each once."""
    try:
        loop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.SelectorEventLoop()
    return cast("asyncio.AbstractEventLoop", loop)
