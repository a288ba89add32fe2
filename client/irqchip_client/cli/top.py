"""top: the VMs' interrupts, live."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import click

import irqchip_client

from ._common import command, connect, with_others
from .durations import show_duration
from .interrupts import chip, label

if TYPE_CHECKING:
    from rich.text import Text

    from irqchip_client import InterruptCount, InterruptCounts

_BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_SHOWN = 20  # rates in a sparkline
_MOST_VMS = 64  # each costs a call


class _Row(NamedTuple):
    """An interrupt of a VM, with its rates a second, the last one last."""

    vm: str
    one: InterruptCount
    rates: list[float]


class History:
    """The counts of the last time, and the rates since."""

    def __init__(self) -> None:
        self._last: dict[object, tuple[int, int]] = {}
        self._rates: dict[object, deque[float]] = {}

    def rows(self, asked: dict[str, InterruptCounts]) -> list[_Row]:
        """A row for each interrupt, the most frequent first. Forgets interrupts that are gone."""
        rows: list[_Row] = []
        rates: dict[object, deque[float]] = {}
        last: dict[object, tuple[int, int]] = {}
        for vm, counts in asked.items():
            for one in counts.interrupts:
                key = vm, one.kind, one.gsi, one.number
                total = sum(one.counts.values())
                before, then = self._last.get(key, (0, 0))
                if counts.counted_ns < then:  # the daemon has begun to count again
                    before, then = 0, 0
                seconds = (counts.counted_ns - then) / 1e9
                rates[key] = self._rates.get(key, deque(maxlen=_SHOWN))
                rates[key].append((total - before) / seconds if seconds > 0 else 0.0)
                last[key] = total, counts.counted_ns
                rows.append(_Row(vm, one, list(rates[key])))
        self._last, self._rates = last, rates
        return sorted(rows, key=lambda row: (-row.rates[-1], row.vm, row.one.kind, row.one.gsi or 0, row.one.number))


def sparkline(rates: list[float]) -> str:
    """A bar for each rate, as high as its share of the highest."""
    highest = max(rates, default=0.0)
    top = len(_BARS) - 1
    return "".join(_BARS[min(ceil(rate * top / highest), top) if highest else 0] for rate in rates)


@command(example="")
@click.argument("vms", nargs=-1, metavar="[VM]...")
@click.option(
    "--interval", type=click.FloatRange(0.1, 50), default=1.0, show_default=True, help="Seconds between two updates."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N updates.")
def top(vms: tuple[str, ...], interval: float, count: int | None) -> None:
    """Show the interrupts of VMs live, the most frequent first, until Ctrl-C.

    Without VM, the first 64 VMs are shown. A line has the interrupts a second, a sparkline of the last 20 rates, and
    the medians of the times to the acknowledgement and from there to the end of interrupt. If the output is no
    terminal, each update is a block of lines with tabs between their columns; without --count there is one.
    """
    from rich.console import Console
    from rich.live import Live

    client, history = connect(), History()
    console = Console()
    with suppress(KeyboardInterrupt):
        _ask(client, vms)  # the counting begins
        if not console.is_terminal:
            for _ in range(count or 1):
                time.sleep(interval)
                for row in history.rows(_ask(client, vms)):
                    click.echo("\t".join(_cells(row)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            updates = 0
            while count is None or updates < count:
                time.sleep(interval)
                asked = _ask(client, vms)
                live.update(_screen(history.rows(asked), len(asked), console.height), refresh=True)
                updates += 1


def _ask(client: irqchip_client.Client, names: tuple[str, ...]) -> dict[str, InterruptCounts]:
    asked = {}
    for name in names or [vm.name for vm in client.vms()][:_MOST_VMS]:
        try:
            asked[name] = client.vm(name).interrupts()
        except irqchip_client.NotFound as error:
            if names:
                raise with_others(client, name, error) from None
    return asked


_HEADERS = ("VM", "IRQ", "RATE/S", "", "TOTAL", "ACCEPT", "EOI", "CHIP", "CLIENTS")


def _cells(row: _Row) -> list[str]:
    one = row.one
    accept, eoi = one.accept.quantile(0.5), one.eoi.quantile(0.5)
    return [
        row.vm,
        label(one),
        f"{row.rates[-1]:.1f}",
        sparkline(row.rates),
        str(sum(one.counts.values())),
        "-" if accept is None else show_duration(accept),
        "-" if eoi is None else show_duration(eoi),
        chip(one),
        ", ".join(one.clients),
    ]


def _screen(rows: list[_Row], vms: int, height: int) -> Text:
    """A line for each row, as far as the height allows; a narrow terminal has the first columns."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    total = sum(row.rates[-1] for row in rows)
    title = f"{vms} VM{'' if vms == 1 else 's'}, {total:.1f} interrupts a second, {time.strftime('%H:%M:%S')}"
    lines = [_HEADERS, *map(_cells, rows[: max(height - 2, 1)])]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    text = Text(title, no_wrap=True, overflow="crop")
    for line, style in zip(lines, ["bold"] + [""] * len(rows), strict=False):
        cells = (set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True))
        text.append("\n" + "  ".join(cells).rstrip(), style)
    return text
