"""The kernel's trace of random programs and irqchipd's, line by line, but for the columns of task, CPU and time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from random import Random

import pytest

from irqchip_client import Architecture, TraceEvent
from irqchip_client._events import trace_from_proto
from irqchip_client.cli.ftrace import Ftrace
from irqchipd.edge.trace import TraceLog
from irqchipd.edge.trace_filter import Filter
from irqchipd.vm.sources import PIT, RESAMPLERS
from tests.conformance.compare import Comparison
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.families import FAMILIES
from tests.conformance.kernel_machine import KernelMachine
from tests.conformance.machines import Op
from tests.conformance.tracefs import KernelTrace, NoTracefsError, tracefs

FORMATS = {
    "kvm_pio": "pio_%s at 0x%x size %d count %d val 0x%x %s",
    "kvm_mmio": "mmio %s len %u gpa 0x%llx val 0x%llx",
    "kvm_msr": "msr_%s %x = 0x%llx%s",
    "kvm_cr": "cr_%s %x = 0x%lx",
    "kvm_set_irq": "gsi %u level %d source %d",
    "kvm_pic_set_irq": "chip %u pin %u (%s%s)%s",
    "kvm_ioapic_set_irq": "pin %u dst %x vec %u (%s|%s|%s%s)%s",
    "kvm_ioapic_delayed_eoi_inj": "dst %x vec %u (%s|%s|%s%s)",
    "kvm_msi_set_irq": "dst %llx vec %u (%s|%s|%s%s)",
    "kvm_apic_ipi": "dst %x vec %u (%s|%s|%s|%s|%s)",
    "kvm_apic_accept_irq": "apicid %x vec %u (%s|%s)",
    "kvm_inj_virq": "%s 0x%x%s",
    "kvm_eoi": "apicid %x vector %d",
    "kvm_ack_irq": "irqchip %s pin %u",
}
TRACEPOINTS = (
    "kvm_set_irq",
    "kvm_pic_set_irq",
    "kvm_ioapic_set_irq",
    "kvm_ioapic_delayed_eoi_inj",
    "kvm_msi_set_irq",
    "kvm_apic_ipi",
    "kvm_apic_accept_irq",
    "kvm_eoi",
    "kvm_ack_irq",
)
# KVM: kvm_host.h KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, i8254.h KVM_PIT_IRQ_SOURCE_ID.
KERNELS_SOURCES = {"1": str(RESAMPLERS), "2": str(PIT)}
SEEDS = range(3)
LIMIT = 100_000
# A guest's handler runs in the first ones, and how it ends the interrupt is the test's business. What an irqfd does, a
# thread of the kernel does.
NOT_COMPARED = {"take", "take_if_enabled", "visit", "await_tick", "pio_touch", "take_nmis", "assert_gsi", "drop"}
# With a split irqchip KVM also traces the MSIs to which GSIs lead when it looks which EOIs concern them: that is no
# interrupt (x86 irq.c kvm_scan_ioapic_routes).
NOT_AN_INTERRUPT = {"split": "kvm_msi_set_irq"}


@pytest.fixture(scope="module")
def kernel_trace() -> Iterator[KernelTrace]:
    try:
        with tracefs() as folder, closing(KernelTrace(folder, TRACEPOINTS)) as trace:
            yield trace
    except NoTracefsError as error:
        pytest.skip(str(error))


def of_the_kernel(machine: KernelMachine, trace: KernelTrace, ops: list[Op]) -> list[list[str]]:
    trace.take()
    for number, op in enumerate(ops):
        trace.mark(str(number))
        machine.perform(op)
    after = trace.take()
    return [[comparable(line) for line in after[str(number)]] for number in range(len(ops))]


def comparable(line: str) -> str:
    """A line with irqchipd's numbers: a high level is 1, and the sources that the kernel has itself are the last."""
    line = re.sub(r"^(kvm_set_irq: .*) level -?[1-9]\d*", r"\1 level 1", line)
    found = re.match(r"(kvm_set_irq: .* source )(\d+)$", line)
    return line if found is None else found[1] + KERNELS_SOURCES.get(found[2], found[2])


def of_irqchipd(machine: DaemonMachine, ops: list[Op]) -> list[list[str]]:
    log = TraceLog(machine.vm, LIMIT, lambda: None)
    machine.vm.attach(log)
    reader, ftrace = log.open(Filter(TRACEPOINTS)), Ftrace(Architecture.X86)
    seen: list[list[str]] = []
    for op in ops:
        machine.perform(op)
        events = [trace_from_proto(message) for message in iter(partial(log.read, reader), None)]
        seen.append([f"{e.tracepoint}: {ftrace.body(e)}" for e in events if isinstance(e, TraceEvent)])
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trace_is_the_kernels(live: Comparison, kernel_trace: KernelTrace, family: str) -> None:
    lines = 0
    for seed in SEEDS:
        ops = FAMILIES[family](Random(f"{family} {seed}"))
        with closing(live.new_kernel()) as kernel, closing(live.new_daemon()) as daemon:
            assert isinstance(kernel, KernelMachine)
            assert isinstance(daemon, DaemonMachine)
            theirs, ours = of_the_kernel(kernel, kernel_trace, ops), of_irqchipd(daemon, ops)
        if left_out := NOT_AN_INTERRUPT.get(family):
            theirs, ours = (
                [[e for e in of_op if not e.startswith(left_out)] for of_op in all_] for all_ in (theirs, ours)
            )
        for number, op in enumerate(ops):
            if op[0] not in NOT_COMPARED:
                assert ours[number] == theirs[number], f"family {family}, seed {seed}, after {ops[:number]}: {op}"
                lines += len(theirs[number])
    assert lines or family in ("raw_pit",), "nothing was traced"


def test_every_field_and_format_is_the_kernels(kernel_trace: KernelTrace) -> None:
    """Where the kernel's formats change, so must irqchipctl's."""
    formats = {name: kernel_trace.format(name).split("print fmt: ")[1].split('", ')[0] for name in FORMATS}
    assert formats == {name: f'"{text}' for name, text in FORMATS.items()}
