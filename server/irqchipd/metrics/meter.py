"""The daemon's measurements of itself for Prometheus, with --metrics: the hooks, and the families."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from time import perf_counter_ns
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from irqchip.builds import is_compiled
from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.daemon_calls import wrap_daemon_calls
from irqchipd.edge.events import QueueMeter, measure_queues
from irqchipd.edge.operations import wrap_operations
from irqchipd.limits import Limits
from irqchipd.observe.counters import COUNTED, Counters
from irqchipd.observe.histogram import BUCKETS, Histogram
from irqchipd.timers import Timers
from irqchipd.vm.machine import Vm
from irqchipd.vm.registry import Registry

TIMED: Final = 16  # of this many calls of an operation, the first is timed; of calls in slices, all
_LEAST: Final = 10  # the first bucket has all times up to 2 ** 10 ns


class _Call:
    """One operation's calls, the times of some, and the number of refused calls."""

    __slots__ = ("count", "errors", "times")

    def __init__(self) -> None:
        self.count = 0
        self.times = Histogram()
        self.errors = 0


class Meter(Collector):
    """Measures a daemon from now on, for the rest of the process. Any thread may collect.

    labelled is the most VMs that have counters of their own, besides those of all VMs together.
    """

    def __init__(self, registry: Registry, timers: Timers, quota: SessionQuota, limits: Limits, labelled: int) -> None:
        self._quota = quota
        self._limits = limits
        self._most = labelled
        self._lock = threading.Lock()
        self._counters: dict[Vm, Counters] = {}
        self._labelled: dict[str, Counters] = {}
        self._gone = Counters()  # of deleted VMs
        self._calls: dict[str, _Call] = {}
        self._queues = QueueMeter()
        measure_queues(self._queues)
        wrap_operations(self._timed)
        wrap_daemon_calls(self._timed)
        self._lateness = timers.lateness = Histogram()
        registry.on_made = self._made

    # Hooks.

    def _timed(self, name: str, call: Callable[..., Any], in_slices: bool) -> Callable[..., Any]:
        measured = self._calls.setdefault(name, _Call())
        add = measured.times.add

        def timed(*arguments: Any) -> Any:
            measured.count = count = measured.count + 1
            if count % TIMED != 1:
                try:
                    return call(*arguments)
                except BaseException:
                    measured.errors += 1
                    raise
            begun = perf_counter_ns()
            try:
                return call(*arguments)
            except BaseException:
                measured.errors += 1
                raise
            finally:
                add(perf_counter_ns() - begun)

        def timed_slices(*arguments: Any) -> Any:
            measured.count += 1
            begun = perf_counter_ns()
            try:
                return (yield from call(*arguments))
            except BaseException:
                measured.errors += 1
                raise
            finally:
                add(perf_counter_ns() - begun)

        return timed_slices if in_slices else timed

    def _made(self, vm: Vm) -> None:
        counters = Counters()
        vm.attach(counters, partial(self._deleted, vm))
        with self._lock:
            self._counters[vm] = counters
            if len(self._labelled) < self._most:
                self._labelled[vm.name] = counters

    def _deleted(self, vm: Vm) -> None:
        with self._lock:
            counters = self._counters.pop(vm)
            self._gone.include(counters)
            if self._labelled.get(vm.name) is counters:
                del self._labelled[vm.name]

    # Families.

    def collect(self) -> Iterable[Metric]:
        """All families, with their current values."""
        with self._lock:
            total = Counters()
            total.include(self._gone)
            for counters in self._counters.values():
                total.include(counters)
            vms = list(self._counters)
            labelled = dict(self._labelled)
        yield from _of_vms("irqchipd", (), {(): total})
        if self._most:
            yield from _of_vms("irqchipd_vm", ("vm",), {(name,): counters for name, counters in labelled.items()})
        yield from self._of_operations()
        lateness = HistogramMetricFamily(
            "irqchipd_timer_lateness_seconds", "How long after its time the timers' thread rang an alarm"
        )
        lateness.add_metric((), *_buckets(self._lateness))
        yield lateness
        yield from self._of_daemon(vms)

    def _of_operations(self) -> Iterator[Metric]:
        times = HistogramMetricFamily(
            "irqchipd_operation_seconds",
            f"Time in an operation, of one in {TIMED}; without its transport and the answer of a region's owner",
            labels=("operation",),
        )
        counts = CounterMetricFamily("irqchipd_operations", "Operations but halts", labels=("operation",))
        errors = CounterMetricFamily(
            "irqchipd_operation_errors", "Operations that ended with an error", labels=("operation",)
        )
        for name, call in self._calls.items():
            if call.count:
                counts.add_metric((name,), call.count)
                times.add_metric((name,), *_buckets(call.times))
                errors.add_metric((name,), call.errors)
        yield counts
        yield times
        yield errors

    def _of_daemon(self, vms: Sequence[Vm]) -> Iterator[Metric]:
        build = "compiled" if is_compiled("irqchipd.vm.machine") else "pure"
        backlogged = sum(vm.agenda.backlog is not None for vm in vms)
        yield InfoMetricFamily("irqchipd_build", "This irqchipd", {"version": version("irqchipd"), "build": build})
        for name, text, value in (
            ("vms", "VMs", len(vms)),
            ("sessions", "Sessions and Watches", self._quota.used),
            ("sessions_peak", "The most Sessions and Watches at a time", self._quota.peak),
            ("regions", "Regions and doorbells that Sessions have claimed", sum(vm.region_count for vm in vms)),
            (
                "backlogged_vms",
                "VMs with notifications left for later",
                backlogged,
            ),
            ("queued_events", "Events that wait for the clients of Sessions", self._queues.queued),
            ("queued_events_peak", "The most events that waited in one Session", self._queues.peak),
        ):
            yield GaugeMetricFamily(f"irqchipd_{name}", text, value)
        yield CounterMetricFamily(
            "irqchipd_dropped_events", "Events dropped as a Session's queue was full", self._queues.dropped
        )
        limit = GaugeMetricFamily("irqchipd_limit", "The daemon's limits", labels=("limit",))
        for name in ("vms", "sessions", "queued_events"):
            limit.add_metric((name,), getattr(self._limits, name))
        yield limit


def _of_vms(prefix: str, labels: Sequence[str], counted: dict[tuple[str, ...], Counters]) -> Iterator[Metric]:
    """The families of VMs' counters, by the values of the labels."""
    families: dict[str, CounterMetricFamily] = {}
    for name, (metric, chip, text) in COUNTED.items():
        every = (*labels, "chip") if chip else labels
        family = families.setdefault(metric, CounterMetricFamily(f"{prefix}_{metric}", text, labels=every))
        for values, counters in counted.items():
            family.add_metric((*values, chip) if chip else values, getattr(counters, name))
    yield from families.values()
    halts = HistogramMetricFamily(f"{prefix}_halt_seconds", "How long halts took", labels=labels)
    for values, counters in counted.items():
        halts.add_metric(values, *_buckets(counters.halts))
    yield halts


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """A histogram's buckets, cumulative as for Prometheus, and the sum; seconds."""
    buckets, total, nanoseconds = [], 0, histogram.sum
    for number, count in enumerate(list(histogram.buckets)):
        total += count
        if _LEAST <= number < BUCKETS - 1:
            buckets.append((repr((1 << number) / 1e9), float(total)))
    return [*buckets, ("+Inf", float(total))], nanoseconds / 1e9
