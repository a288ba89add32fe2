"""The table of a guest's exits, for `run --stats`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

import irqchip_client

from .output import echo_table

if TYPE_CHECKING:
    from irqchip_client.vmm.exit_stats import ExitCount, ExitStats

HEADERS = ("EXIT", "AT", "ANSWERED BY", "COUNT", "COUNT%", "TIME%", "MIN", "AVG", "MAX", "DAEMON")
Owner = Callable[["ExitCount"], str | None]


@contextmanager
def shown_exits(vm: irqchip_client.Vm, daemon: str) -> Iterator[ExitStats]:
    """Counts exits, and prints the table at SIGUSR1 and after the body. For the main thread.

    daemon  the daemon's name in the table
    """
    from irqchip_client.vmm.exit_stats import ExitStats

    stats = ExitStats()
    began = time.monotonic()

    def show() -> None:
        counts = stats.counts()
        for line in summary(counts, time.monotonic() - began):
            click.echo(line, err=True)
        echo_table(HEADERS, table(counts, owner_of(vm), daemon), err=True)

    # In a thread of its own: the main thread may be in a call of the SDK, which holds its locks.
    before = signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=show, daemon=True).start())
    try:
        yield stats
    finally:
        signal.signal(signal.SIGUSR1, before)
        show()


def table(counts: Sequence[ExitCount], owner: Owner, daemon: str) -> Iterator[tuple[object, ...]]:
    """The rows, the most frequent first."""
    from irqchip_client.vmm.exit_stats import Answerer

    exits, time_ns = sum(row.count for row in counts), sum(row.total_ns for row in counts)
    for row in counts:
        by = row.by.value if row.by is not Answerer.DAEMON else owner(row) or daemon
        yield (
            *(row.kind, "" if row.at is None else f"{row.at:x}", by, row.count),
            *(_percent(row.count, exits), _percent(row.total_ns, time_ns)),
            *(f"{ns / 1000:.1f}us" for ns in (row.min_ns, row.total_ns / row.count, row.max_ns)),
            row.operations,
        )


def summary(counts: Sequence[ExitCount], seconds: float) -> Iterator[str]:
    """The sums of the rows."""
    from irqchip_client.vmm.exit_stats import Answerer

    exits = sum(row.count for row in counts)
    asked = sum(row.count for row in counts if row.by is Answerer.DAEMON)
    batches = sum(row.operations for row in counts)
    yield f"{exits} exits in {seconds:.1f} s; {_percent(asked, exits)} % answered by the daemon, in {batches} batches"


def owner_of(vm: irqchip_client.Vm) -> Owner:
    """Names the other process that has an exit's port or address now."""
    regions = []
    with suppress(irqchip_client.IrqchipError):  # the VM is deleted, for example
        regions = [(region, session.client) for session in vm.info().sessions for region in session.regions]

    def owner(row: ExitCount) -> str | None:
        if row.at is None or not row.kind.startswith(("io", "mmio")):
            return None
        space = irqchip_client.Space.PIO if row.kind.startswith("io") else irqchip_client.Space.MMIO
        at = row.at
        return next(
            (
                client
                for region, client in regions
                if region.space is space and region.address <= at < region.address + region.length
            ),
            None,
        )

    return owner


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "0.0"
