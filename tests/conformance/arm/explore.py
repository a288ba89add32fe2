"""Compares a real KVM/arm64 with irqchipd on new random programs, in processes of their own."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Empty

from tests.conformance.arm.families import gic_of, programs
from tests.conformance.arm.judge import Judge, Replay
from tests.conformance.arm.machine import ArmKvm

MAX_SHOWN = 3  # differences per family and process
PROGRESS_SECONDS = 60.0


@dataclass
class Report:
    """What was compared since the last report, or in all."""

    kernel: str
    operations: Counter[str] = field(default_factory=Counter)
    traces: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sum up."""
        self.kernel = other.kernel
        self.traces += other.traces
        self.operations += other.operations
        self.differences += other.differences


def explore(
    kvm: ArmKvm, irqchipd: Replay, families: Sequence[str], seeds: range, reports: Queue[Report], stop: Event
) -> None:
    """Compare seed after seed, until told to stop, or until nobody is there to be told what is found."""
    parent = multiprocessing.parent_process()
    shown: Counter[str] = Counter()
    with Judge(kvm, irqchipd) as judge:
        for seed in seeds:
            if stop.is_set() or not (parent is None or parent.is_alive()):
                return
            report = Report("")
            for trace, found in judge.compare(list(programs(families, [seed]))):
                report.traces += 1
                report.operations[trace.family] += len(trace.operations)
                if found:
                    report.differences[trace.family] += 1
                    shown[trace.family] += 1
                    if shown[trace.family] <= MAX_SHOWN:
                        report.shown.append(f"{trace.family}, seed {seed}:\n{judge.minimise(found)}")
            report.kernel = judge.recorder(gic_of(families[0])).kernel
            reports.put(report)


def run(
    kvm: ArmKvm,
    irqchipd: Replay,
    families: Sequence[str],
    seed: int,
    processes: int,
    enough: Callable[[Report], bool],
) -> Report:
    """Explore in processes of their own from a seed on, until the total of their reports is enough."""
    context = multiprocessing.get_context("spawn")
    reports: Queue[Report] = context.Queue()
    stop = context.Event()
    workers = [
        context.Process(
            target=explore,
            args=(kvm, irqchipd, families, range(seed + number, sys.maxsize, processes), reports, stop),
        )
        for number in range(processes)
    ]
    began = next_progress = time.monotonic()
    total = Report("")
    for worker in workers:
        worker.start()
    while True:
        ended = not any(worker.is_alive() for worker in workers)
        try:
            report = reports.get(timeout=1.0)
        except Empty:
            if ended:
                break
            if any(worker.exitcode for worker in workers):
                stop.set()
            continue
        total.add(report)
        for what in report.shown:
            print(what, flush=True)
        now = time.monotonic()
        if now >= next_progress:
            print(f"{total.operations.total()} operations so far, {now - began:.0f} s", flush=True)
            next_progress = now + PROGRESS_SECONDS
        if enough(total):
            stop.set()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process that compares has failed: its traceback is above")
    return total
