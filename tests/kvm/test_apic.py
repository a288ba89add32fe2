"""TPR and CR8, IA32_APIC_BASE and the x2APIC's registers agree in the guest, in KVM and in the daemon."""

from __future__ import annotations

import pytest

from irqchip_client import Client
from irqchip_client.kvm import GuestMemory, KvmVcpu, KvmVm, Start, StartMode, guest_tsc_khz, why_not
from tests.kvm import guests
from tests.kvm.machine import APIC, COUNT, ENTRY, FAULT_HANDLER, HANDLER, Machine

CPUID_APIC = 1 << 9
CPUID_X2APIC, CPUID_TSC_DEADLINE = 1 << 21, 1 << 24
BASE = 0x1B


def test_cpuid_reports_the_features(machine: Machine) -> None:
    machine.load_protected(guests.IDENTIFIES)
    machine.cpu.run()
    assert machine.word(COUNT) >> 24 == 0
    assert machine.word(COUNT + 4) & (CPUID_X2APIC | CPUID_TSC_DEADLINE) == CPUID_X2APIC
    assert machine.word(COUNT + 8) & CPUID_APIC
    assert machine.word(COUNT + 12) == int.from_bytes(b"KVMK", "little")
    machine.vm.create_vcpu(5)
    with KvmVcpu(machine.kvm, machine.vm, 5, machine.devices) as cpu:
        machine.devices.stop = cpu.stop
        cpu.start(Start(StartMode.PROTECTED, ENTRY))
        cpu.run()
    assert machine.word(COUNT) >> 24 == 5


def test_cr8_and_tpr_mask_and_unmask(machine: Machine) -> None:
    machine.memory.write(HANDLER, guests.LONG_HANDLER)
    machine.load_long(guests.MASKS)
    machine.cpu.run()
    # CR8 of 5 is a TPR of 50h, and masks; 4 unmasks. A TPR of 70h is a CR8 of 7, and masks; 0 unmasks.
    # A KVM without an exit for that (some emulate it) unmasks with the next exit, at u.
    assert machine.devices.said.replace(b"u", b"") == b"\x50mI\x07mI\x00"


def test_the_apic_moves_and_is_disabled_and_refuses_invalid_values(machine: Machine) -> None:
    machine.memory.write(FAULT_HANDLER, guests.FAULT_HANDLER)
    machine.load_long(guests.BASE)
    machine.cpu.run()
    version = 0x0005_0014
    assert [machine.word(address) for address in (0x500, 0x504, 0x508, 0x510)] == [
        version,
        0xFFFF_FFFF,  # at the old address
        0xFFFF_FFFF,  # disabled
        version,
    ]
    assert not machine.word(0x50C) & CPUID_APIC
    assert machine.devices.said == b"G"  # from disabled to x2APIC
    assert machine.vcpu.msr_read(BASE).data == APIC | 0x900


def test_an_x2apic(machine: Machine) -> None:
    machine.memory.write(FAULT_HANDLER, guests.FAULT_HANDLER)
    machine.memory.write(HANDLER, guests.X2APIC_HANDLER)
    machine.load_long(guests.X2APIC)
    machine.cpu.run()
    assert machine.word(0x504) == 0x0005_0014
    assert machine.devices.said == b"GmI"
    assert machine.vcpu.msr_read(BASE).data == APIC | 0xD00


def test_cr8_of_a_disabled_apic_is_its_tpr(machine: Machine) -> None:
    machine.load_long(guests.CR8_DISABLED)
    machine.cpu.run()
    assert machine.word(COUNT) == 5
    assert machine.vcpu.lapic().tpr == 0x50


def test_the_apics_timer_has_the_modes_in_cpuid(machine: Machine) -> None:
    """Without the TSC deadline feature bit 18 of the timer's LVT entry stays 0."""
    machine.vcpu.mmio_write(APIC + 0xF0, 0x1FF)
    machine.vcpu.mmio_write(APIC + 0x320, 0x7_0031)
    assert machine.vcpu.mmio_read(APIC + 0x320).data == 0x3_0031


def test_a_tsc_deadline_timer_goes_by_the_guests_tsc(irqchip_client: Client) -> None:
    if reason := why_not():
        pytest.skip(reason)
    if not guest_tsc_khz():
        pytest.skip("this KVM does not report a guest's deadlines")
    with GuestMemory(1 << 20) as memory, KvmVm(memory) as kvm:
        machine = Machine(irqchip_client, kvm, memory, guest_tsc_khz())
        with machine.cpu:
            machine.memory.write(HANDLER, guests.APIC_HANDLER)
            machine.load_long(guests.DEADLINES)
            machine.cpu.run()
        assert machine.devices.said == bytes(6)  # each time not early, over, and as it was written
        assert machine.word(COUNT) == 2
