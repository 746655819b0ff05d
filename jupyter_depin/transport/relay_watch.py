"""Which relays can be reached again after they could not: found out beside each dial through them.

The library keeps one TCP connection with a relay. After an outage it takes up to 20 s to find it dead, then dials with
pauses that double up to 16 s, whatever becomes of the network meanwhile, and nothing in the binding tells it to hurry.
So relayed work went on up to 17 s after the mending (measured: outages of 20 and 60 s). A new endpoint, though, dials its
relay at once. So a TCP connection of our own knocks at the relay whenever a node is dialled through it, one packet
while nobody answers; when a knock is answered after others were not, the endpoint is worth replacing.

A name is looked up seldom: each look-up takes one of the process's few threads for as long as the system's resolver is
patient. Knocks in between go to the address that answered last.

Rejected: the library's news of its home relay (they do not tell a living connection from a dead one); a new endpoint for
each dial (a handshake with the relay twice a second, and the relay sends a node's packets to its newest connection).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute

Place = tuple[str, int]
Knock = Callable[[str, int], Awaitable[Place | None]]

_KNOCK_S = 1.0
_NAME_PAUSE_S = 5.0
"""The least time between two look-ups of a relay's name."""
_PORTS = {"http": 80, "https": 443}


async def knock(host: str, port: int) -> Place | None:
    """Where a server answered over TCP, or None when none did within a second. Never raises. For `RelayWatch`."""
    try:
        with anyio.fail_after(_KNOCK_S):
            stream = await anyio.connect_tcp(host, port)
    except (OSError, TimeoutError, ValueError):
        return None
    address = stream.extra(SocketAttribute.remote_address)
    with anyio.CancelScope(shield=True):
        await stream.aclose()
    return str(address[0]), int(address[1])


class RelayWatch:
    """What the dials of one node learnt of relays. Made by `Homes`; relays are named by their URLs."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock
        self._places: dict[str, Place] = {}
        self._named_at: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}
        self._lost: set[str] = set()

    async def regained(self, relay: str) -> bool:
        """Knock at a relay; whether it answers and did not before. True until `renewed`. Called for each dial."""
        began = anyio.current_time()
        places = [self._places[relay]] if relay in self._places else []
        server = _server(relay)
        if server is not None and began - self._named_at.get(relay, -_NAME_PAUSE_S) >= _NAME_PAUSE_S:
            self._named_at[relay] = began
            places.append(server)
        if not places:
            return False
        answer = await self._first(places)
        if answer is not None:
            self._places[relay] = answer
            self._answered_at[relay] = anyio.current_time()
            return relay in self._lost
        # A knock of the outage may give up after a later one was answered.
        if began >= self._answered_at.get(relay, began):
            self._lost.add(relay)
        return False

    def renewed(self, relay: str) -> None:
        """What was lost with the relay was made anew."""
        self._lost.discard(relay)

    async def _first(self, places: list[Place]) -> Place | None:
        answers: list[Place] = []

        async def at(host: str, port: int) -> None:
            answer = await self._knock(host, port)
            if answer is not None:
                answers.append(answer)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for place in places:
                tasks.start_soon(at, *place)
        return answers[0] if answers else None


def _server(relay: str) -> Place | None:
    """Host and port of a relay's URL."""
    try:
        url = urlsplit(relay)
        port = url.port or _PORTS.get(url.scheme)
    except ValueError:
        return None
    return (url.hostname, port) if url.hostname and port else None
