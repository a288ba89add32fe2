"""A program for the machine of standard_kvm.py: compares the kernel's trace with that of irqchipctl, line by line.

    python -m tests.nested.trace

The same programs run on the kernel's own irqchip, traced by tracefs, and on a VM of a daemon, traced by
`irqchipctl trace`. Whole lines are compared, but for task, process, CPU, flags and time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from difflib import unified_diff
from pathlib import Path
from random import Random

from irqchip_client import IrqchipError, MpState, Session, Vm, cli, ops
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client.replay.daemon import CALLS
from irqchip_client.replay.in_process import accept
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from tests.conformance.families import FAMILIES
from tests.conformance.guest import HANDLER_PORT, NO_REGISTER
from tests.conformance.kernel_machine import KernelMachine, ends_what_it_delivers
from tests.conformance.kvm import Kvm
from tests.conformance.machines import EOI_MSR, UNCLAIMED, Op, eoi_address
from tests.conformance.tracefs import LINE, KernelTrace, tracefs

TRACEPOINTS = (
    *("kvm_pio", "kvm_mmio", "kvm_msr"),
    *("kvm_set_irq", "kvm_pic_set_irq", "kvm_ioapic_set_irq", "kvm_msi_set_irq"),
    *("kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_inj_virq", "kvm_eoi", "kvm_ack_irq"),
)
RANDOM = ("lines", "pic", "apic", "service", "messages")  # families of random programs: one of each beside story()
SEED = 0
SECONDS = 150.0  # for each start of a process, and for the command's last line
LAST = 4095  # the GSI whose line is the last of a trace
FORKING = multiprocessing.get_context("forkserver")  # a Python takes seconds to start there
FORKING.set_forkserver_preload(["irqchip_client.cli.trace"])

LEVEL, LOGICAL, MASKED = 1 << 15, 1 << 11, 1 << 16
PRIMARY, SECONDARY = 0x20, 0xA0  # the PICs' first ports


def story() -> list[Op]:
    """What a guest with two vCPUs and its devices do with the interrupt controllers, in the order of a boot.

    PICs are initialised and interrupt; IOAPIC and local APICs take over; IPIs, MSIs and routes come.
    """
    ops: list[Op] = [["create_irqchip"], ["create_vcpu", 0], ["create_vcpu", 1]]

    def out(port: int, *values: int) -> None:
        ops.extend(["pio_write", 0, port, 1, value] for value in values)

    def lapic(vcpu: int, register: int, value: int) -> None:
        ops.append(["mmio_write", vcpu, LAPIC_BASE + register, 4, value])

    def program(pin: int, entry: int) -> None:
        for register, value in ((0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xFFFF_FFFF)):
            ops.append(["mmio_write", 0, IOAPIC_BASE, 4, register])
            ops.append(["mmio_write", 0, IOAPIC_BASE + 0x10, 4, value])

    def line(gsi: int, *levels: int) -> None:
        ops.extend(["irq_line", gsi, level] for level in levels)

    for port, icws in ((PRIMARY, (0x20, 4, 1)), (SECONDARY, (0x28, 2, 1))):
        out(port, 0x11)
        out(port + 1, *icws, 0)
    lapic(0, Reg.LVT_LINT0, 0x700)  # ExtINT: the PICs' output
    lapic(0, Reg.SVR, 0x1FF)
    line(4, 1, 0, 1, 1, 0)
    line(10, 1)
    ops.extend((["take", 0], ["pio_read", 0, PRIMARY, 1], ["take", 0]))
    out(SECONDARY, 0x20)
    out(PRIMARY, 0x20, 0x64, 0x0B)
    line(10, 0)
    out(0x4D1, 0x04)  # line 10 is level-triggered
    line(10, 1)
    ops.append(["take", 0])
    out(SECONDARY, 0x62)
    out(PRIMARY, 0x62)
    line(10, 0)
    out(PRIMARY + 1, 0xFF)
    out(SECONDARY + 1, 0xFF)
    line(4, 1, 0)  # masked
    lapic(0, Reg.LVT_LINT0, MASKED)

    for vcpu in (0, 1):
        lapic(vcpu, Reg.SVR, 0x1FF)
        lapic(vcpu, Reg.LDR, 1 << 24 + vcpu)
    program(16, 1 << 56 | LEVEL | 0x61)
    program(17, 3 << 56 | LOGICAL | 0x71)
    program(4, 0x51)
    line(16, 1)
    ops.append(["take", 1])  # and again, as the line is high
    line(16, 0)
    ops.append(["take", 1])
    line(17, 1, 0)
    ops.extend((["take", 0], ["take", 1]))
    line(4, 1, 1, 0, 1)  # coalesced until the interrupt is taken
    ops.append(["take", 0])
    lapic(0, Reg.TPR, 0x60)
    line(4, 0, 1)
    ops.append(["take", 0])
    lapic(0, Reg.TPR, 0)
    lapic(0, Reg.EOI, 0)  # nothing is in service

    for high, low in ((1, 0x4041), (2, 0x4842), (0, 0x8_4043), (0, 0xC_4044), (0, 0x4_4045)):
        lapic(0, Reg.ICR2, high << 24)
        lapic(0, Reg.ICR, low)
    ops.extend(["take", vcpu] for vcpu in (1, 1, 1, 1, 0, 0))
    ops.append(["signal_msi", 0xFEE0_1000, 0x81, 0])
    ops.append(["signal_msi", 0xFEE0_300C, 0x4182, 0])  # lowest priority of both
    ops.extend((["take", 1], ["take", 0], ["take", 1]))
    ops.append(["set_gsi_routing", [[5, "irqchip", 2, 16], [6, "msi", 0xFEE0_0000, 0x91], [7, "irqchip", 0, 7]]])
    line(5, 1)
    line(6, 1, 0)
    line(7, 1, 0)
    line(8, 1)  # leads nowhere
    ops.extend((["take", 1], ["take", 0]))
    line(5, 0)
    ops.extend((["msr_write", 0, Msr.APIC_BASE, LAPIC_BASE | 0xD00], ["msr_read", 0, Msr.X2APIC + 8]))  # x2APIC
    ops.extend((["msr_write", 0, Msr.X2APIC + 0x30, 0x1_0000_4047], ["msr_read", 0, Msr.X2APIC + 0xE]))  # and a fault
    ops.extend((["signal_msi", 0xFEE0_0000, 0x83, 0], ["take", 0], ["take", 1]))
    for mode in (0x4500, 0x4611, 0x4400):  # INIT, start-up and NMI
        ops.append(["msr_write", 0, Msr.X2APIC + 0x30, 1 << 32 | mode])
    return ops


def programs() -> Iterator[tuple[str, list[Op]]]:
    """The programs and their names."""
    yield "story", story()
    for family in RANDOM:
        yield f"{family}-{SEED}", FAMILIES[family](Random(f"{family} {SEED}"))


class OnDaemon:
    """A VM of a daemon, on which the SDK performs operations; some are refused, as the kernel refuses them."""

    def __init__(self, vm: Vm, session: Session) -> None:
        self._vm = vm
        self._session = session

    def perform(self, op: Op) -> None:
        """Perform an operation."""
        name, *arguments = op
        with suppress(IrqchipError):
            own = getattr(self, name, None)
            if own is not None:
                own(*arguments)
            else:
                self._session.run([CALLS[name](*arguments)])

    def create_irqchip(self) -> None:
        self._vm.create_irqchip()

    def create_vcpu(self, vcpu: int) -> None:
        self._vm.create_vcpu(vcpu).set_mp_state(MpState.RUNNABLE)

    def irq_line(self, gsi: int, level: int) -> None:
        self._vm._call(ops.irq_line(gsi, bool(level)))  # of no Session: its source is 0, as the kernel's is

    def irq_line_without_status(self, gsi: int, level: int) -> None:
        self._vm._call(ops.irq_line(gsi, bool(level), without_status=True))

    def take(self, vcpu: int) -> None:
        """As KernelMachine's guest does."""
        cpu = self._session.vcpu(vcpu)
        if cpu.acknowledge() is not None and cpu.msr_write(EOI_MSR, 0).fault:
            cpu.mmio_write(eoi_address(cpu.msr_read(Msr.APIC_BASE).data), 0)

    def ack_lapic(self, vcpu: int) -> None:
        state = LapicRegisters.unpack(self._session.run([ops.get_lapic(vcpu)])[0].kvm_struct)
        if accept(state) >= 0:
            self.set_lapic(vcpu, state.pack().hex())

    def set_lapic(self, vcpu: int, page: str) -> None:
        self._session.run([ops.set_lapic(vcpu, bytes.fromhex(page))])

    def get_lapic_page(self, vcpu: int) -> None:
        self._session.run([ops.get_lapic(vcpu)])


def of_the_kernel(kvm: Kvm, trace: KernelTrace, program: Sequence[Op]) -> list[str]:
    """The kernel's lines."""
    lines: list[str] = []
    trace.take()
    with closing(KernelMachine(kvm)) as machine:
        answers = []
        for number, op in enumerate(program):
            trace.mark(str(number))
            answers.append(machine.perform(op))
        after = trace.take()
    for number, answer in enumerate(answers):
        lines += [comparable(line) for line in after[str(number)] if is_compared(answer, line)]
    return lines


def is_compared(answer: object, line: str) -> bool:
    """Whether irqchipd has a kernel's line, which belongs to an operation with this answer, too.

    Not those of accesses that KernelMachine makes for itself, or that the kernel leaves to user space. And the kernel
    injects an interrupt again when the guest exits in the middle of the delivery.
    """
    if f"pio_write at {HANDLER_PORT:#x} " in line or f"read len 8 gpa {NO_REGISTER:#x} " in line:
        return False
    if line.startswith("kvm_inj_virq") and line.endswith("[reinjected]"):
        return False
    return answer != UNCLAIMED or not line.startswith(("kvm_pio", "kvm_mmio"))


def comparable(line: str) -> str:
    """A line with irqchipd's numbers: a high level is 1."""
    return re.sub(r"^(kvm_set_irq: .*) level -?[1-9]\d*", r"\1 level 1", line)


def print_trace(target: str, vm: str, path: str) -> None:
    """`irqchipctl trace`, in a process of its own."""
    os.environ["IRQCHIP_TARGET"] = target
    with Path(path).open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    cli.main(["trace", vm, *TRACEPOINTS])


def of_irqchipctl(daemon: Daemon, name: str, program: Sequence[Op], path: Path) -> list[str]:
    """The lines of `irqchipctl trace`."""
    with daemon.connect() as client:
        vm = client.create_vm(name)
        tracer = FORKING.Process(target=print_trace, args=(daemon.target, name, str(path)))
        tracer.start()
        await_text(path, "TIMESTAMP")
        with vm.session() as session:
            machine = OnDaemon(vm, session)
            for op in program:
                machine.perform(op)
            vm.line(LAST).raise_()
        await_text(path, f"gsi {LAST} ")
        os.kill(tracer.pid or 0, signal.SIGINT)
        tracer.join(SECONDS)
        assert tracer.exitcode == 0, tracer.exitcode
    events = [found["event"] for line in path.read_text().splitlines() if (found := LINE.search(line))]
    return events[:-1]


def await_text(path: Path, text: str) -> None:
    """Wait until a file has some text."""
    deadline = time.monotonic() + SECONDS
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {SECONDS:g} s"
        time.sleep(0.05)


def main() -> int:
    """Compare all programs; returns 1 if a line differs."""
    kvm = Kvm()
    ends_what_it_delivers(kvm)  # which makes a VM of its own, when asked first
    counts: Counter[str] = Counter()
    differing = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        daemon = stack.enter_context(start_daemon(arguments=["--max-events", "65536"], timeout=SECONDS))
        trace = stack.enter_context(closing(KernelTrace(stack.enter_context(tracefs()), TRACEPOINTS)))
        for name, program in programs():
            theirs = of_the_kernel(kvm, trace, program)
            ours = of_irqchipctl(daemon, name, program, folder / name)
            counts.update(line.partition(":")[0] for line in theirs)
            print(f"{name}: {len(program)} operations, {len(theirs)} lines", flush=True)
            if ours != theirs:
                differing += 1
                print(*unified_diff(theirs, ours, "the kernel", "irqchipctl trace", lineterm=""), sep="\n", flush=True)
    print(f"lines: {json.dumps(counts)}", flush=True)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
