"""`make explore-arm`: compares a real KVM/arm64 with irqchipd, on new random programs.

    python -m tests.conformance.arm [--seconds S | --operations N] [--seed N] [--processes N] [--family F]...

Every difference is shown as the shortest trace that has it. Exit status: 0 if there is none, or if no such KVM can be
had here, which is said; 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty

from irqchip_client.replay.in_process import replay
from tests.conformance.arm.families import FAMILIES, programs
from tests.conformance.arm.judge import Judge
from tests.conformance.arm.machine import ArmKvm
from tests.this_machine import MissingError

MAX_SHOWN = 3  # differences per family and process
PROGRESS_SECONDS = 60.0
ROOT = Path(__file__).parents[3]


@dataclass
class Report:
    """What was compared since the last report."""

    kernel: str
    operations: Counter[str] = field(default_factory=Counter)
    traces: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)


def explore(
    kvm: ArmKvm, families: Sequence[str], seeds: range, reports: multiprocessing.Queue[Report], stop: Event
) -> None:
    """Compare seed after seed, until told to stop."""
    shown: Counter[str] = Counter()
    with Judge(kvm, replay) as judge:
        for seed in seeds if seeds else count():
            if stop.is_set():
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
            report.kernel = judge.recorder(int(families[0][1])).kernel
            reports.put(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.arm", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to explore (default: 300)")
    parser.add_argument("--operations", type=int, help="how many operations to compare instead")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed (default: the time)")
    parser.add_argument("--processes", type=int, default=1, help="how many processes compare (default: 1)")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    return parser.parse_args()


def run(kvm: ArmKvm, arguments: argparse.Namespace) -> Report:
    """Explore in processes of their own, and gather their reports."""
    context = multiprocessing.get_context("spawn")
    reports: multiprocessing.Queue[Report] = context.Queue()
    stop = context.Event()
    families = arguments.family or list(FAMILIES)
    workers = [
        context.Process(
            target=explore,
            args=(kvm, families, range(arguments.seed + number, sys.maxsize, arguments.processes), reports, stop),
        )
        for number in range(arguments.processes)
    ]
    began = next_progress = time.monotonic()
    total = Report("")
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        try:
            report = reports.get(timeout=1.0)
        except Empty:
            continue
        for what in report.shown:
            print(what, flush=True)
        total.kernel = report.kernel
        total.traces += report.traces
        total.operations += report.operations
        total.differences += report.differences
        now = time.monotonic()
        if now >= next_progress:
            print(f"{total.operations.total()} operations so far, {now - began:.0f} s", flush=True)
            next_progress = now + PROGRESS_SECONDS
        enough = arguments.operations
        if total.operations.total() >= enough if enough else now - began >= arguments.seconds:
            stop.set()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process that compares has failed: its traceback is above")
    return total


def main() -> int:
    """Explore, and print what was compared."""
    arguments = _arguments()
    cache = ROOT / ".pytest_cache" / "d" / "arm64"
    cache.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            kvm = ArmKvm(cache, Path(folder))
        except MissingError as error:
            print(f"skipped: no arm64 KVM can be made here {error}", file=sys.stderr)
            return 0
        total = run(kvm, arguments)
    print(f"Linux {total.kernel}, seeds from {arguments.seed}, {time.monotonic() - began:.0f} s")
    print(f"{total.traces} traces, {total.operations.total()} operations: {json.dumps(total.operations)}")
    print(f"traces that differ: {total.differences.total()} {json.dumps(total.differences)}", flush=True)
    return bool(total.differences)


if __name__ == "__main__":
    sys.exit(main())
