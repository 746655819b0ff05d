"""`python -m tests.net.relay_death`: how long a cell waits when the relay dies under a relayed rental.

Prints the time from the death to the answer of a cell that was sent right after it, for each of some rentals.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.net.rental import Street, execute, leave, missing, street


def die(place: Street) -> float:
    """Rent over two relays, kill the one in use; the seconds until a cell is answered."""
    relays = [place.start_relay(), place.start_relay()]
    renter = place.rent(relays)
    execute(renter, "x = 41")
    (used,) = [relay for relay in relays if relay in place.path()]
    place.kill_relay(used)
    began = time.monotonic()
    assert execute(renter, "print(x + 1)") == ["42"]
    waited = time.monotonic() - began
    leave(renter)
    return waited


def main() -> int:
    """Run the program."""
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        with tempfile.TemporaryDirectory(prefix="depin-") as folder, street(Path(folder)) as place:
            print(f"{die(place):.2f} s from the relay's death to the answer", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
