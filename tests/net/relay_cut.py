"""`python -m tests.net.relay_cut [SECONDS [ROUNDS]]`: how long work waits after an outage of the renter's network, over a relay.

Prints, for each round, the time from the mending to the answer of a cell that was sent while every packet was lost.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.world import hear, tell
from tests.net.rental import Street, execute, leave, missing, street

_SILENCE = """
table ip silence {
    chain input {
        type filter hook input priority 0;
        iifname "wan" drop
    }
    chain output {
        type filter hook output priority 0;
        oifname "wan" drop
    }
}
"""


def cut(place: Street, seconds: float, rounds: int) -> Iterator[float]:
    """Rent over one relay, and cut the renter off again and again; the seconds until a cell is answered."""
    renter = place.rent([place.start_relay()])
    for number in range(rounds):
        assert execute(renter, f"x = {number}") == []
        place.consumer.firewall(_SILENCE)
        tell(renter, "print(x + 1)")
        time.sleep(seconds)
        place.consumer.firewall("")
        began = time.monotonic()
        heard = hear(renter, "idle")
        yield time.monotonic() - began
        assert f"stdout {number + 1}" in heard
    leave(renter)


def main() -> int:
    """Run the program."""
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    seconds, rounds = (*map(int, sys.argv[1:]), *(20, 3)[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory(prefix="depin-") as folder, street(Path(folder)) as place:
        for waited in cut(place, seconds, rounds):
            print(f"{waited:.2f} s from the mending to the answer", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
