"""Run the fuzzer: `python -m tests.fuzz --frames 1000000 --seed 1`."""

from __future__ import annotations

import argparse
import logging
import random
import time

import anyio

from tests.fuzz.run import plain
from tests.fuzz.words import Speaker
from tests.fuzz.worlds import knocked

WORLDS = 20
"""One frame in so many goes to a whole side: there it costs twenty times as much."""


def main() -> int:
    """Print what was knocked at and what came back; 1 if anything but the allowed errors did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    # What sides say of liars is for their owners.
    logging.disable(logging.WARNING)
    behind = asked.frames // WORLDS
    outcome = plain(asked.frames - behind, asked.seed)
    anyio.run(knocked, behind, Speaker(random.Random(asked.seed)), outcome)
    for name, count in sorted(outcome.knocks.items()):
        print(f"{name:36} {count:8,} frames, {outcome.refused[name]:8,} refused")
    for what, where in outcome.wrong.items():
        print(f"WRONG {what}\n{where}")
    print(f"{sum(outcome.knocks.values()):,} frames in {time.monotonic() - began:.0f} s, seed {asked.seed}")
    print(
        f"{len(outcome.wrong)} wrong; the process grew by {outcome.grown / 2**20:.1f} MiB after the first tenth"
    )
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
