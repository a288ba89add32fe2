"""interrupts: /proc/interrupts of a VM."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

import irqchip_client

from ._common import command, pass_vm
from .durations import show_duration
from .output import echo_json, json_option

if TYPE_CHECKING:
    from irqchip_client import InterruptCount, InterruptCounts, Latency

# The chips' names by InterruptKind: arch/x86/kernel/i8259.c, apic/io_apic.c, apic/msi.c; drivers/irqchip/irq-gic-v3.c.
_CHIPS = {
    "PIC": "XT-PIC",
    "IOAPIC": "IO-APIC",
    "MSI": "PCI-MSI",
    "IPI": "IPI",
    "LOCAL": "Local",
    "GIC": "GIC",
    "S390": "s390",
    "OTHER": "other",
}


@command(example="")
@pass_vm
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to count, if the daemon does not count yet.",
)
@click.option("--latency", is_flag=True, help="Print the median and the 99th percentile of the times, too.")
@json_option
def interrupts(vm: irqchip_client.Vm, seconds: float, latency: bool, as_json: bool) -> None:
    """Print how often each vCPU took each interrupt, as /proc/interrupts does.

    A line has the GSI, or V and the vector if there is no GSI; a column for each vCPU; the chip; the vector or INTID
    with the trigger mode; and the clients that drive the GSI. The daemon begins to count at the first request. It stops
    a minute after the last request.

    --latency adds the time from the rise of the line to the acknowledgement, and from there to the end of interrupt,
    each as its median/99th percentile, rounded up to a power of two nanoseconds.
    """
    counts = vm.interrupts()
    if counts.counted_ns < seconds * 1e9:
        time.sleep(max(seconds - counts.counted_ns / 1e9, 0))
        counts = vm.interrupts()
    if as_json:
        echo_json(counts)
        return
    for line in table(counts, latency):
        click.echo(line)


def table(counts: InterruptCounts, latency: bool = False) -> list[str]:
    """The lines of /proc/interrupts."""
    ordered = sorted(counts.interrupts, key=lambda one: (one.gsi is None, one.gsi or 0, one.kind, one.number))
    labels = [label(one) for one in ordered]
    wide = max([3, *map(len, labels)])
    lines = [" " * (wide + 1) + "".join(f"{f'CPU{vcpu}':>11}" for vcpu in counts.vcpus)]
    for name, one in zip(labels, ordered, strict=True):
        numbers = "".join(f"{one.counts.get(vcpu, 0):>11}" for vcpu in counts.vcpus)
        times = f"  accept {_times(one.accept):<15} eoi {_times(one.eoi):<15}" if latency else ""
        lines.append(f"{name:>{wide}}:{numbers}  {chip(one):<15}{times}  {', '.join(one.clients)}".rstrip())
    return lines


def label(one: InterruptCount) -> str:
    """The first column: the GSI, or the vector."""
    return str(one.gsi) if one.gsi is not None else f"V{one.number}"


def chip(one: InterruptCount) -> str:
    """The chip, and the vector or INTID with the trigger mode."""
    return f"{_CHIPS[one.kind.name]:<8} {one.number}-{'level' if one.level else 'edge'}"


def _times(latency: Latency) -> str:
    median, slowest = latency.quantile(0.5), latency.quantile(0.99)
    return "-" if median is None or slowest is None else f"{show_duration(median)}/{show_duration(slowest)}"
