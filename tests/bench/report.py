"""What a benchmark is and how its figures are printed: one JSON object a line, beside a peer's figure.

A figure alone says more about the machine and its other work than about us; the ratio to a peer that was measured in
turns with ours says something on any machine. Rejected: pytest-benchmark (no peers, and thresholds in wall-clock time).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """One figure and its peer's. The value is None where this machine cannot make one (`why` says so)."""

    name: str
    value: float | None
    unit: str
    peer: str
    peer_value: float | None
    why: str = ""

    def __str__(self) -> str:
        fields = {key: round(v, 6) if isinstance(v, float) else v for key, v in asdict(self).items()}
        if not self.why:
            del fields["why"]
        ratio = self.value / self.peer_value if self.value is not None and self.peer_value else None
        return json.dumps(fields | {"ratio": None if ratio is None else round(ratio, 3)}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Some figures that are measured together. `run(quick)` yields them; `names` promises which.

    `better`: which way is better for value and ratio alike. `long`: it takes many minutes, and runs only when asked to.
    """

    names: tuple[str, ...]
    better: Literal["lower", "higher"]
    says: str
    run: Callable[[bool], Iterator[Line]]
    long: bool = False

    def chosen(self, words: Sequence[str]) -> bool:
        """Whether one of the words begins a name of this benchmark; no words choose all."""
        return not words or any(name.startswith(word) for name in self.names for word in words)


def quantile(samples: Sequence[float], share: float) -> float:
    """The sample below which `share` of the others lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def in_turns(blocks: int, *measures: Callable[[], list[float]]) -> list[list[float]]:
    """Call the measures A B C A B C …, so that a busy machine hits all, and return the samples of each."""
    samples: list[list[float]] = [[] for _ in measures]
    for _, (mine, measure) in itertools.product(range(blocks), enumerate(measures)):
        samples[mine] += measure()
    return samples
