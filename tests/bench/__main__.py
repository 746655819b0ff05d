"""Run benchmarks: `python -m tests.bench [NAME …] [--list] [--quick] [--long]`. A NAME is the beginning of a figure's name."""

from __future__ import annotations

import argparse

from tests.bench import channels, class_notebook, cuts, gateway, idle, interrupt, lossy, money, spared, start

BENCHMARKS = (
    *channels.BENCHMARKS,
    *cuts.BENCHMARKS,
    *gateway.BENCHMARKS,
    *class_notebook.BENCHMARKS,
    *idle.BENCHMARKS,
    *interrupt.BENCHMARKS,
    *lossy.BENCHMARKS,
    *money.BENCHMARKS,
    *spared.BENCHMARKS,
    *start.BENCHMARKS,
)


def main() -> int:
    """Print one JSON object a figure; the ratio is ours to the peer's."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="the beginning of a figure's name; none: all"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, no figures to keep")
    parser.add_argument("--long", action="store_true", help="also those that take many minutes")
    asked = parser.parse_args()
    chosen = [
        benchmark
        for benchmark in BENCHMARKS
        if benchmark.chosen(asked.names) and (asked.list or asked.long or not benchmark.long)
    ]
    if not chosen:
        parser.error(f"there is no benchmark {' or '.join(asked.names)}")
    for benchmark in chosen:
        if asked.list:
            print(f"{', '.join(benchmark.names)} ({benchmark.better} is better): {benchmark.says}")
            continue
        for line in benchmark.run(asked.quick):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
