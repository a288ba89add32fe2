"""The counts of a VM's interrupts, which are kept while clients ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from irqchipd.observe.histogram import Histogram
from irqchipd.observe.latency import Latencies, Wiring
from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Alarm

KEPT_NS: Final = 60_000_000_000  # after the last request


@dataclass(frozen=True, slots=True)
class InterruptInfo:
    """The counts of one interrupt; see observe/latency.py, Line."""

    kind: int
    gsi: int
    number: int
    level: bool
    sources: list[str]
    counts: dict[int, int]
    accept: Histogram
    eoi: Histogram


@dataclass(frozen=True, slots=True)
class InterruptCounts:
    """The counts, the nanoseconds that they cover, and the vCPUs."""

    nanoseconds: int
    vcpus: list[int]
    interrupts: list[InterruptInfo]


class Counting:
    """Attaches an observer at the first request, and detaches it after KEPT_NS without a request."""

    def __init__(self, agenda: Agenda, wiring: Wiring, detach: Callable[[Observer], None]) -> None:
        self._agenda = agenda
        self._wiring = wiring
        self._detach = detach
        self._alarm = Alarm(0, self._forget, agenda.share, timeout=True)
        self.counted: Latencies | None = None

    def ask(self) -> tuple[Latencies, bool]:
        """The observer that counts, and whether it was attached just now; to be called in a turn."""
        began = self.counted is None
        if self.counted is None:
            self.counted = Latencies(self._wiring, self._agenda.deadlines.now, self._agenda.defer)
        self._agenda.deadlines.set(self._alarm, self._agenda.deadlines.now() + KEPT_NS)
        return self.counted, began

    def _forget(self) -> None:
        counted, self.counted = self.counted, None
        if counted is not None:
            self._detach(counted)

    def end(self) -> None:
        """The VM is deleted."""
        self._agenda.deadlines.set(self._alarm, None)


def copy_of(histogram: Histogram) -> Histogram:
    """A copy of a histogram."""
    copied = Histogram()
    copied.include(histogram)
    return copied
