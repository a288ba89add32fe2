"""replay: golden traces, against a daemon or the chips alone."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from irqchip_client.replay.traces import Done, Mismatch, Trace, TraceError, load_traces

from ._common import command, number
from .output import echo_table

SHOWN = 20  # mismatches
PROGRESS_EVERY = 5.0  # seconds, if no terminal shows a bar

Run = Callable[[Sequence[Trace], Done], None]


@dataclass(slots=True)
class Tally:
    """The counts for the traces of a family, or for all."""

    traces: int = 0
    operations: int = 0
    mismatches: int = 0
    # From the beginning of the first trace to the end of the last.
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds if self.seconds else 0.0


class Report:
    """Gathers the results of traces: mismatches, and a tally per family."""

    def __init__(self) -> None:
        self.families: dict[str, Tally] = {}
        self.total = Tally()
        self.mismatches: list[Mismatch] = []
        self.start()

    def start(self) -> None:
        """Call this before the first trace."""
        self._begun = self._last = time.perf_counter()

    def add(self, trace: Trace, mismatches: list[Mismatch]) -> None:
        """Call this after a trace. Families come one by one, so the time since the last trace is this family's."""
        now = time.perf_counter()
        family = self.families.setdefault(trace.family, Tally())
        family.seconds += now - self._last
        self.total.seconds = now - self._begun
        self._last = now
        for tally in (family, self.total):
            tally.traces += 1
            tally.operations += len(trace.operations)
            tally.mismatches += len(mismatches)
        self.mismatches += mismatches


@command(example="trace.jsonl")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--in-process", is_flag=True, help="Replay against the chips alone, in this process, without a daemon.")
@click.option(
    "--jobs", type=number(1, 1024), help="How many traces run at a time against a daemon.  [default: 16]", metavar="N"
)
@click.option(
    "--family", "families", multiple=True, metavar="F", help="Replay only traces of this family. May be repeated."
)
@click.pass_obj
def replay(
    target: str | None, files: Sequence[Path], in_process: bool, jobs: int | None, families: Sequence[str]
) -> None:
    """Replay golden traces, and compare the answers.

    The answers are compared with those that the kernel gave. Each trace runs in a VM of its own, which the command
    deletes afterwards. A trace runs to its end, even after a mismatch. Operations are numbered from 0, by their
    position in the trace's "ops". A file has a JSON object per line, and may be gzipped.

    The last line is "N traces, M operations, K mismatches". Exit status: 0 if there is no mismatch; 1 if there is one,
    or the daemon fails; 2 if a file cannot be used, and then nothing runs.
    """
    if in_process and jobs:
        raise click.UsageError(
            "--jobs is for a daemon; --in-process runs one trace after the other: leave one of them out"
        )
    traces = _load(files, families)
    run = _in_process() if in_process else _against_daemon(target, jobs or 16)
    # The traces are many objects that stay: without this, garbage collection takes a fifth of the time.
    gc.freeze()
    report = Report()
    with _progress(traces, report) as done:
        run(traces, done)
    _print(report)
    sys.exit(1 if report.mismatches else 0)


class _Unusable(click.ClickException):
    exit_code = 2


def _load(files: Sequence[Path], families: Sequence[str]) -> list[Trace]:
    """The traces of the wanted families, family by family."""
    try:
        traces = [trace for file in files for trace in load_traces(file)]
        found = list(dict.fromkeys(trace.family for trace in traces))
        if missing := [family for family in families if family not in found]:
            raise TraceError(f"no trace is of family {', '.join(missing)}; there are {', '.join(found)}")
    except TraceError as error:
        raise _Unusable(str(error)) from error
    return sorted(
        (trace for trace in traces if not families or trace.family in families),
        key=lambda trace: found.index(trace.family),
    )


def _in_process() -> Run:
    try:
        from irqchip_client.replay.in_process import replay_all
    except ImportError as error:
        raise click.ClickException(f"--in-process needs the package irqchipd beside irqchip_client: {error}") from error
    return replay_all


def _against_daemon(target: str | None, jobs: int) -> Run:
    from irqchip_client.replay.daemon import replay_all

    return partial(replay_all, target, jobs)


@contextmanager
def _progress(traces: Sequence[Trace], report: Report) -> Iterator[Done]:
    """Yields the function to call after each trace: it adds to the report, and shows the progress."""
    last = time.monotonic()

    def done(trace: Trace, mismatches: list[Mismatch]) -> None:
        nonlocal last
        report.add(trace, mismatches)
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY:
            last = now
            total = report.total
            click.echo(f"{total.traces} of {len(traces)} traces, {total.mismatches} mismatches", err=True)

    if not sys.stderr.isatty():
        report.start()
        yield done
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(traces))

        def moved(trace: Trace, mismatches: list[Mismatch]) -> None:
            report.add(trace, mismatches)
            progress.update(bar, advance=1, description=trace.family)

        report.start()
        yield moved


def _print(report: Report) -> None:
    # Traces that run at once end in any order.
    report.mismatches.sort(key=lambda mismatch: (mismatch.trace.family, mismatch.trace.seed, mismatch.number))
    if report.mismatches:
        click.echo("Not answered as the kernel did (operations are numbered from 0):")
    for mismatch in report.mismatches[:SHOWN]:
        click.echo(mismatch)
    if len(report.mismatches) > SHOWN:
        click.echo(f"and {len(report.mismatches) - SHOWN} more")
    headings = ("family", "traces", "operations", "mismatches", "operations/s")
    rows = [
        (name, tally.traces, tally.operations, tally.mismatches, f"{tally.rate:.0f}")
        for name, tally in [*report.families.items(), ("all", report.total)]
    ]
    echo_table(headings, rows)
    total = report.total
    click.echo(f"{total.traces} traces, {total.operations} operations, {total.mismatches} mismatches")
