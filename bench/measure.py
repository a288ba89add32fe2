"""Measuring several things under the same conditions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

# The function, how often to call it per round, and how many operations one call makes.
Work = tuple[Callable[[], object], int, int]

PAUSE = 500e-6  # seconds before each operation that blocks
REST = 0.005  # seconds, longer than any side polls


class Series:
    """The times of one benchmark, in microseconds."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(values)

    @property
    def median(self) -> float:
        """Half of the times are shorter."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """99 of 100 times are shorter."""
        return self.values[len(self.values) * 99 // 100]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with a goal."""

    name: str
    value: float
    unit: str
    goal: float
    at_least: bool = False

    @classmethod
    def ratio(cls, name: str, measured: Series, reference: Series, goal: float, *, at_least: bool = False) -> Self:
        """The ratio of two medians."""
        return cls(name, measured.median / reference.median, "ratio", goal, at_least)

    def is_met_by(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return value >= self.goal if self.at_least else value <= self.goal


def round_robin(work: Mapping[str, Work], rounds: int, pause: float = 0.0) -> dict[str, Series]:
    """Call the functions in turn, round after round, and time every call. The first rounds only warm up.

    A pause before each call lets all processes block and the processors idle, as under a light load. Without it the
    scheduler may keep both ends on one processor, which then never idles.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    warm = max(rounds // 10, 1)
    for turn in range(rounds + warm):
        for name, (do, count, operations) in work.items():
            time.sleep(REST)
            do()
            for _ in range(count):
                if pause:
                    time.sleep(pause)
                begun = time.perf_counter_ns()
                do()
                elapsed = time.perf_counter_ns() - begun
                if turn >= warm:
                    times[name].append(elapsed / operations / 1e3)
    return {name: Series(values) for name, values in times.items()}
