"""Ten device processes and two vCPU processes on one VM at once: nothing is lost, nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from irqchip_client import Chip, Client, InterruptSource, Line, TimedOut, Vm, connect, ops
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE, eventually

PULSES = 150
PIC_VECTOR = 0x20
# Edge-triggered lines of the PICs: status 1 means that the edge was latched and will be acknowledged once.
EDGE_GSIS = [1, 3, 4, 5, 6, 9, 10, 12]
# Level-triggered pins of the IOAPIC, with vector 0x60 + pin.
LEVEL_GSIS = [20, 21]
HELD_GSI = 23  # another pin, whose interrupt is never taken
LAPIC_EOI = 0xFEE0_00B0

CONTEXT = multiprocessing.get_context("spawn")


def edges(target: str, vm: str, gsi: int, through_session: bool, report: Connection) -> None:
    """A device process that pulses its line. It reports how many edges were delivered."""
    with connect(target) as client:
        machine = client.vm(vm)
        if through_session:
            with machine.session(f"edges {gsi}") as session:
                report.send(pulse(session.line(gsi)))
        else:
            report.send(pulse(machine.line(gsi)))


def pulse(line: Line) -> int:
    """Pulse a line many times and count the delivered edges."""
    return sum(line.pulse() == 1 for _ in range(PULSES))


def levels(target: str, vm: str, gsi: int, report: Connection) -> None:
    """A device process that raises and lowers its line. It reports how many of its raises were delivered."""
    delivered = 0
    with connect(target) as client, client.vm(vm).session(f"levels {gsi}") as session:
        line = session.line(gsi)
        for _ in range(PULSES):
            delivered += line.raise_() == 1
            time.sleep(0.001)
            line.lower()
    report.send(delivered)


def hold(target: str, vm: str, gsi: int, report: Connection) -> None:
    """A device process that raises its line and never lowers it."""
    with connect(target) as client, client.vm(vm).session(f"holds {gsi}") as session:
        session.line(gsi).raise_()
        report.send(os.getpid())
        time.sleep(600)


def vcpu(target: str, vm: str, number: int, stop: Any, report: Connection) -> None:
    """A vCPU process: it takes and ends interrupts, and reports how often each vector came."""
    taken: Counter[int] = Counter()
    with connect(target) as client, client.vm(vm).session(f"vcpu {number}", vcpus=[number]) as session:
        cpu = session.vcpu(number)
        while True:
            while (interrupt := cpu.acknowledge()) is not None:
                taken[interrupt.vector] += 1
                if interrupt.source == InterruptSource.PIC:
                    line = interrupt.vector - PIC_VECTOR
                    end = [ops.pio_write(number, 0x20, 0x62 if line >= 8 else 0x60 | line)]
                    if line >= 8:
                        end.insert(0, ops.pio_write(number, 0xA0, 0x60 | line - 8))
                    session.run(end)
                else:
                    cpu.mmio_write(LAPIC_EOI, 0)
            if stop.is_set():
                break
            try:
                session.next_event(timeout=0.1)
            except TimedOut:
                continue
    report.send(taken)


def program(client: Client) -> Vm:
    """A VM whose vCPU 0 takes the PICs' interrupts and whose vCPU 1 takes the IOAPIC's."""
    vm = client.create_vm()
    vm.create_irqchip()
    cpus = [vm.create_vcpu(number) for number in range(2)]
    for cpu in cpus:
        cpu.mmio_write(0xFEE0_00F0, 0x1FF)
    for base, vector, cascade in ((0x20, PIC_VECTOR, 4), (0xA0, PIC_VECTOR + 8, 2)):
        for port, value in ((base, 0x11), (base + 1, vector), (base + 1, cascade), (base + 1, 0x01), (base + 1, 0)):
            cpus[0].pio_write(port, value)
    for pin in LEVEL_GSIS:
        for register, value in ((0x11 + 2 * pin, 1 << 24), (0x10 + 2 * pin, 0x60 + pin | 1 << 15)):
            cpus[0].mmio_write(0xFEC0_0000, register)
            cpus[0].mmio_write(0xFEC0_0010, value)
    return vm


class Worker:
    """A process that runs one of the functions above, and its report."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=function, args=(*arguments, theirs))
        self.process.start()

    def report(self) -> Any:
        """The process's report."""
        assert self._pipe.poll(90), "a process hangs"
        return self._pipe.recv()

    def last_report(self) -> Any:
        """The report of a process that then exits successfully."""
        result = self.report()
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0
        return result


def test_ten_devices_and_two_vcpus_at_once(irqchip_server: Daemon, irqchip_client: Client) -> None:
    machine = program(irqchip_client)
    on_vm = (irqchip_server.target, machine.name)
    stop = CONTEXT.Event()
    cpus = [Worker(vcpu, *on_vm, number, stop) for number in range(2)]
    holder = Worker(hold, *on_vm, HELD_GSI)
    devices = {gsi: Worker(edges, *on_vm, gsi, index % 2 == 0) for index, gsi in enumerate(EDGE_GSIS)}
    devices |= {gsi: Worker(levels, *on_vm, gsi) for gsi in LEVEL_GSIS}
    try:
        holder.report()
        assert held(machine)
        holder.process.kill()
        eventually(lambda: not held(machine))

        delivered = {gsi: worker.last_report() for gsi, worker in devices.items()}
        deadline = time.monotonic() + PATIENCE
        while any(machine.get_irqchip(chip).irr for chip in Chip) and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        taken = sum((worker.last_report() for worker in cpus), Counter[int]())
    finally:
        stop.set()
        for worker in [*cpus, holder, *devices.values()]:
            worker.process.kill()
            worker.process.join()

    assert {gsi: taken[PIC_VECTOR + gsi] for gsi in EDGE_GSIS} == {gsi: delivered[gsi] for gsi in EDGE_GSIS}
    assert all(delivered[gsi] > 0 for gsi in devices)
    # A level still high at its EOI is delivered again, so an interrupt can be taken more often than it was raised.
    assert all(taken[0x60 + gsi] >= delivered[gsi] for gsi in LEVEL_GSIS)
    ioapic = machine.get_irqchip(Chip.IOAPIC)
    assert ioapic.irr == 0
    assert not any(entry.remote_irr for entry in ioapic.entries)
    assert machine.info().sessions == ()


def held(machine: Vm) -> bool:
    """Whether the IOAPIC sees the held line high."""
    return bool(machine.get_irqchip(Chip.IOAPIC).irr >> HELD_GSI & 1)
