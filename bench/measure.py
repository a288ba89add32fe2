"""Measuring things beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

# What to do, how often a round, and how many operations one is.
Work = tuple[Callable[[], object], int, int]

REST = 0.005  # seconds, for whoever polls to give up


class Series:
    """Times of one thing, microseconds."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(values)

    @property
    def median(self) -> float:
        """Half of them are less."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """99 of 100 are less."""
        return self.values[len(self.values) * 99 // 100]


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures that are promised."""

    name: str
    value: float
    unit: str
    goal: float
    at_least: bool = False

    @classmethod
    def ratio(cls, name: str, measured: Series, reference: Series, goal: float) -> Self:
        """Of two medians."""
        return cls(name, measured.median / reference.median, "ratio", goal)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def round_robin(work: Mapping[str, Work], rounds: int, pause: float = 0.0) -> dict[str, Series]:
    """Do each in turn, round after round, and time every single one. The first rounds only warm up.

    A pause before each has everybody block, and the processors rest, as where there is little to do: without it the
    scheduler may keep both ends on one processor, which then never rests.
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
