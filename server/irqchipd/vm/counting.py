"""The counts of a VM's interrupts, which are kept while somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from irqchipd.observe.histogram import Histogram
from irqchipd.observe.latency import Latencies, Wiring
from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Alarm

KEPT_NS: Final = 60_000_000_000  # after the last question


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
    """What was counted for how long, nanoseconds; and the vCPUs."""

    nanoseconds: int
    vcpus: list[int]
    interrupts: list[InterruptInfo]


class Counting:
    """Attaches an observer with the first question, and detaches it when there was none for KEPT_NS."""

    def __init__(self, agenda: Agenda, wiring: Wiring, detach: Callable[[Observer], None]) -> None:
        self._agenda = agenda
        self._wiring = wiring
        self._detach = detach
        self._alarm = Alarm(0, self._forget, agenda.share, timeout=True)
        self.counted: Latencies | None = None

    def ask(self) -> tuple[Latencies, bool]:
        """What counts, and whether this began just now; to be called in a turn."""
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
    """A histogram as it is now."""
    copied = Histogram()
    copied.include(histogram)
    return copied
