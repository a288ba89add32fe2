"""Interrupts from the daemon's chips reach a guest, each exactly once and on time."""

from __future__ import annotations

import struct
import threading
from unittest.mock import Mock

import pytest

from irqchip_client import Client, Session, connect
from irqchip_client._daemon import Daemon
from irqchip_client.kvm import GuestMemory, KvmVm, why_not
from irqchip_client.kvm.ioctls import Run
from irqchip_client.kvm.stepping import Stepping
from irqchip_client.vmm.exit_stats import ExitStats
from tests.kvm import guests
from tests.kvm.machine import (
    APIC,
    COUNT,
    FAULT_HANDLER,
    GDT,
    GDTR,
    HANDLER,
    IOAPIC,
    LONG_ENTRY,
    LONG_IDT,
    NMI_HANDLER,
    VECTOR,
    Machine,
)
from tests.waiting import PATIENCE, eventually


def test_the_pic_wakes_a_guest_that_halts(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.HALTS)
    with machine.running() as done, machine.vm.session("device") as session:
        machine.wait_until_halted()
        session.line(4).pulse()
        done.result(PATIENCE)
    assert machine.devices.said == b"I"


def test_the_pic_interrupts_a_guest_that_spins(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.SPINS)
    with machine.running() as done, machine.vm.session("device") as session:
        session.line(4).pulse()
        done.result(PATIENCE)
    assert machine.devices.said == b"I"


def test_an_interrupt_waits_until_interrupts_are_on(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.SHUT)
    with machine.vm.session("device") as session:

        def interrupt(byte: int) -> None:
            if byte == ord("d"):
                session.line(4).pulse()

        machine.devices.on_say = interrupt
        machine.cpu.run()
    assert machine.devices.said == b"dsIe"


def test_the_local_apics_interrupt_comes_behind_the_pics(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.OPENS)
    machine.vcpu.mmio_write(APIC + 0xF0, 0x1FF)
    with machine.vm.session("device") as session:

        def interrupt(byte: int) -> None:
            if byte == ord("d"):
                session.line(4).pulse()
                session.signal_msi(APIC, 0x25)

        machine.devices.on_say = interrupt
        machine.cpu.run()
    assert machine.devices.said == b"dIIe"


@pytest.mark.parametrize("pulses", [300])
def test_no_interrupt_is_lost_whatever_the_guest_is_doing(machine: Machine, pulses: int) -> None:
    machine.memory.write(HANDLER, guests.PIC_HANDLER)
    machine.load_real(guests.COUNTS)
    with machine.running() as done, machine.vm.session("device") as session:
        for count in range(pulses):
            eventually(lambda count=count: machine.word(COUNT) & 0xFFFF == count)  # type: ignore[misc]
            session.line(4).pulse()
        done.result(PATIENCE)
    assert machine.devices.said == b"I" * pulses


def test_a_thousand_apic_timer_interrupts(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.APIC_HANDLER)
    machine.vcpu.mmio_write(APIC + 0x3E0, 0b1011)  # divides by 1: a count is a nanosecond
    machine.load_long(guests.TIMER)
    machine.vcpu.mmio_write(APIC + 0x320, VECTOR)
    machine.cpu.run()
    assert machine.word(COUNT) == 1000


def test_a_self_ipi_arrives_at_most_one_instruction_later(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.APIC_HANDLER)
    machine.load_long(guests.SELF_IPIS)
    machine.cpu.run()
    assert machine.devices.said == b"+"


def test_behind_an_interrupt_of_the_local_apic_no_window_is_asked_for(irqchip_client: Client) -> None:
    """So it is three operations: the write to ICR, the acknowledgement and the EOI."""
    if reason := why_not():
        pytest.skip(reason)
    stats, ipis, asked = ExitStats(), 100, []
    with GuestMemory(1 << 20) as memory, KvmVm(memory) as kvm:
        machine = Machine(irqchip_client, kvm, memory, exits=stats)
        machine.devices.on_say = lambda _: asked.append(machine.cpu._run[Run.REQUEST_INTERRUPT_WINDOW])
        with machine.cpu:
            machine.memory.write(HANDLER, guests.APIC_HANDLER)
            machine.load_long(guests.SELF_IPIS)
            machine.cpu.run()
        assert machine.word(COUNT) == ipis
    assert asked == [0]  # at the end, which some KVMs reach before they look for a window
    assert sum(row.operations for row in stats.counts()) < 3 * ipis + 20


def test_nmis_to_itself_and_to_a_spinning_and_a_halted_vcpu(machine: Machine) -> None:
    machine.memory.write(NMI_HANDLER, guests.NMI_HANDLER)
    machine.load_long(guests.SELF_NMI)  # with interrupts off
    with machine.running() as done:
        eventually(lambda: machine.devices.said == b"Na")
        machine.vcpu.nmi()
        machine.wait_until_halted()
        machine.vcpu.nmi()
        done.result(PATIENCE)
    assert machine.devices.said == b"NaNN"


@pytest.mark.parametrize(("kind", "error_code"), [(0x8E00, 0x20), (0x0E00, 0x60 * 8 + 2)], ids=["segment", "gate"])
def test_a_fault_of_an_int_without_a_present_handler_returns_to_the_int(
    machine: Machine, kind: int, error_code: int
) -> None:
    memory = machine.memory
    memory.write(FAULT_HANDLER, guests.NOT_PRESENT_HANDLER)
    machine.load_long(guests.ABSENT_HANDLER)
    memory.write(GDT + 0x20, struct.pack("<Q", 0x00AF_1B00_0000_FFFF))
    memory.write(GDTR, struct.pack("<H", 0x27))
    memory.write(LONG_IDT + 16 * 0x60, struct.pack("<HHHHQ", HANDLER, 0x20, kind, 0, 0))
    memory.write(LONG_IDT + 16 * 11, struct.pack("<HHHHQ", FAULT_HANDLER, 0x18, 0x8E00, 0, 0))
    machine.cpu.run()
    assert (machine.word(0x500), machine.word(0x508)) == (error_code, LONG_ENTRY + 8)


def test_two_pending_nmis_come_one_after_the_other(machine: Machine) -> None:
    machine.memory.write(NMI_HANDLER, guests.NMI_HANDLER)
    machine.load_long(guests.COUNTED_NMIS)
    machine.cpu.run()
    machine.vcpu.nmi()
    machine.vcpu.nmi()
    machine.cpu.run()
    assert machine.devices.said == b"NN\x02"


def test_a_level_interrupt_of_a_device_in_another_thread(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.LEVEL_HANDLER)
    machine.load_long(guests.LEVEL)
    low, high = 0x10 + 2 * 11, 0x10 + 2 * 11 + 1  # the registers of GSI 11's redirection entry
    for register, value in ((high, 0), (low, 1 << 15 | VECTOR)):
        machine.vcpu.mmio_write(IOAPIC, register)
        machine.vcpu.mmio_write(IOAPIC + 0x10, value)
    served = threading.Semaphore(0)
    machine.devices.on_say = lambda _: served.release()

    def drive(session: Session) -> None:
        for _ in range(50):
            session.line(11).raise_()
            served.acquire(timeout=PATIENCE)
            session.line(11).lower()

    with machine.vm.session("device") as session:
        device = threading.Thread(target=drive, args=(session,))
        device.start()
        # The line falls some time after the EOI, so an interrupt may come twice, but none is left pending.
        machine.cpu.run()
        machine.devices.on_say(0)
        device.join(PATIENCE)
    assert machine.word(COUNT) >= 50
    assert not device.is_alive()


@pytest.mark.parametrize("long", [False, True], ids=["protected", "64-bit"])
def test_software_interrupts_and_their_ends(machine: Machine, long: bool) -> None:
    if long:
        machine.memory.write(HANDLER, guests.LONG_HANDLER)
        machine.load_long(guests.LONG_SOFTWARE)
    else:
        machine.memory.write(HANDLER, guests.SOFTWARE_HANDLER)
        machine.load_protected(guests.SOFTWARE)
    machine.cpu.run()
    assert bytes(machine.devices.said) == (b"I3In" if long else b"H3HnHi")


@pytest.mark.parametrize("where", ["daemon", "embedded"])
def test_stores_that_interrupt_nothing_are_not_followed_by_single_steps(
    irqchip_server: Daemon, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    steps = Mock(return_value=False)
    monkeypatch.setattr(Stepping, "step", steps)
    target = "embedded:" if where == "embedded" else irqchip_server.target
    with connect(target) as client, GuestMemory(1 << 20) as memory, KvmVm(memory) as kvm:
        machine = Machine(client, kvm, memory)
        with machine.cpu:
            machine.load_real(guests.STORES)
            machine.cpu.run()
        machine.vm.delete()
    assert len(machine.devices.said) == 1000
    assert not steps.called
