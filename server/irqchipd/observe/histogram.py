"""Times in buckets that are powers of two."""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 36  # the last but one is for 17 s; what takes longer is in the last


class Histogram:
    """How many times of at most 2 ** n ns there were that were longer than half of that, for each n; and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.sum = 0

    def add(self, nanoseconds: int) -> None:
        """Count a time. Threads may share a histogram: an update of an integer has no call in between."""
        bucket = (nanoseconds - 1).bit_length() if nanoseconds > 0 else 0
        if bucket >= BUCKETS:
            bucket = BUCKETS - 1
        self.buckets[bucket] += 1
        self.sum += nanoseconds

    def include(self, other: Histogram) -> None:
        """Count another's times as well."""
        self.buckets = [mine + its for mine, its in zip(self.buckets, other.buckets, strict=True)]
        self.sum += other.sum
