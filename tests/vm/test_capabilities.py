"""The capabilities that a VMM can enable, and their effects."""

from __future__ import annotations

import pytest

from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic import Features, Msr
from irqchipd.chips.lapic_registers import (
    BASE_BOOT_CPU,
    BASE_ENABLED,
    BASE_X2APIC,
    VERSION,
    VERSION_DIRECTED_EOI,
    Quirk,
    Reg,
)
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.architectures import Gic, check_extension
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.snapshot import X86
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.capabilities import Cap
from irqchipd.vm.x86.machine import X86Vm
from tests.vm.pc import MSI, Pc, refused

X2APIC = LAPIC_BASE | BASE_ENABLED | BASE_X2APIC
QUIRKS = Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE


def new_vm(*vcpus: int, cap: int = 0, argument: int = 0) -> X86Vm:
    vm = X86Vm("caps", clock=VirtualClock())
    vm.create_irqchip()
    if cap:
        vm.enable_cap(cap, 0, [argument])
    for vcpu in vcpus:
        vm.create_vcpu(vcpu)
    return vm


def moved(vm: X86Vm) -> X86Vm:
    return X86Vm.restored("moved", 255, vm.save())


@pytest.mark.parametrize("capability", [value for name, value in vars(Cap).items() if name.isupper()])
def test_check_extension_reports_what_can_be_enabled(capability: int) -> None:
    assert check_extension(X86, Gic(), capability)


# Quirks.


def test_without_its_quirk_lint0_of_the_boot_cpu_is_masked_also_after_a_reset_and_a_move() -> None:
    vm = new_vm(0, cap=Cap.DISABLE_QUIRKS2, argument=1)
    assert vm.get_lapic(0).lvt_lint0 == 0x1_0000
    vm.reset()
    assert vm.get_lapic(0).lvt_lint0 == 0x1_0000
    vm = moved(vm)
    vm.reset()
    assert vm.get_lapic(0).lvt_lint0 == 0x1_0000
    assert new_vm(0).get_lapic(0).lvt_lint0 == 0x700


def test_without_its_quirk_the_page_of_a_disabled_apic_belongs_to_the_region_there() -> None:
    vm = new_vm(0)
    vm.msr_write(0, Msr.APIC_BASE, LAPIC_BASE)
    assert vm.mmio_read(0, LAPIC_BASE, 4) == 0xFFFF_FFFF
    vm.enable_cap(Cap.DISABLE_QUIRKS2, 0, [4])
    assert vm.mmio_read(0, LAPIC_BASE, 4) is None
    assert vm.mmio_write(0, LAPIC_BASE, 4, 0) is False
    assert moved(vm).mmio_read(0, LAPIC_BASE, 4) is None


def test_unknown_quirks_are_refused_or_ignored_by_the_older_capability() -> None:
    vm = new_vm()
    with refused("EINVAL"):
        vm.enable_cap(Cap.DISABLE_QUIRKS2, 0, [2])
    vm.enable_cap(Cap.DISABLE_QUIRKS, 0, [(1 << 64) - 1])
    assert vm.save().disabled_quirks == QUIRKS


# The boot CPU.


def test_another_boot_cpu_can_be_chosen() -> None:
    vm = new_vm()
    vm.set_boot_vcpu(2)
    for vcpu in (0, 2):
        vm.create_vcpu(vcpu)
    for machine in (vm, moved(vm)):
        machine.reset()
        assert [machine.get_mp_state(vcpu) for vcpu in (0, 2)] == [MpState.UNINITIALIZED, MpState.RUNNABLE]
        assert [machine.msr_read(vcpu, Msr.APIC_BASE) for vcpu in (0, 2)] == [0xFEE0_0800, 0xFEE0_0900]
        assert [machine.get_lapic(vcpu).lvt_lint0 for vcpu in (0, 2)] == [0x1_0000, 0x700]


def test_the_boot_cpu_cannot_be_chosen_once_there_is_a_vcpu() -> None:
    with refused("EBUSY"):
        new_vm(0).set_boot_vcpu(1)
    with refused("EINVAL"):
        new_vm().set_boot_vcpu(4097)


@pytest.mark.parametrize("bits", [0, BASE_BOOT_CPU])
def test_init_starts_the_vcpu_with_the_boot_cpus_bit(bits: int) -> None:
    pc = Pc(2)
    pc.vm.msr_write(0, Msr.APIC_BASE, LAPIC_BASE | BASE_ENABLED | bits)
    pc.vm.signal_msi(MSI, 0x500)
    assert pc.vm.get_mp_state(0) is (MpState.RUNNABLE if bits else MpState.INIT_RECEIVED)


# vCPU ids.


def test_the_limit_of_ids_holds_and_is_set_once() -> None:
    vm = new_vm(cap=Cap.MAX_VCPU_ID, argument=3)
    vm.create_vcpu(2)
    with refused("EINVAL"):
        vm.create_vcpu(3)
    with refused("EINVAL"):
        vm.enable_cap(Cap.MAX_VCPU_ID, 0, [4])
    vm.enable_cap(Cap.MAX_VCPU_ID, 0, [3])
    with refused("EINVAL"):
        moved(vm).create_vcpu(3)


def test_the_first_vcpu_fixes_the_limit_of_ids() -> None:
    vm = new_vm(4095)
    with refused("EINVAL"):
        vm.enable_cap(Cap.MAX_VCPU_ID, 0, [8])
    with refused("EINVAL"):
        vm.create_vcpu(4096)


# 32-bit APIC IDs.


@pytest.mark.parametrize("flags", [0, 1])
def test_an_msi_reaches_a_wide_id_with_the_x2apic_api(flags: int) -> None:
    vm = new_vm(0, 300, cap=Cap.X2APIC_API, argument=flags)
    vm.set_mp_state(300, MpState.RUNNABLE)
    vm.msr_write(300, Msr.APIC_BASE, X2APIC)
    vm.msr_write(300, Msr.X2APIC + (Reg.SVR >> 4), 0x1FF)
    vm = moved(vm)
    vm.signal_msi(1 << 40 | MSI | 44 << 12, 0x41)
    assert vm.ack_interrupt(300) == ((0x41, False) if flags else None)
    if flags:
        with refused("EINVAL"):
            vm.signal_msi(1 << 32 | MSI, 0x41)
    assert vm.get_lapic(300).id == (300 if flags else 300 << 24 & 0xFFFF_FFFF)


def test_without_the_broadcast_quirk_ffh_is_one_x2apic() -> None:
    for flags, takers in ((0, [0, 1]), (2, [])):
        vm = new_vm(0, 1, cap=Cap.X2APIC_API, argument=flags)
        for vcpu in (0, 1):
            vm.msr_write(vcpu, Msr.APIC_BASE, X2APIC | (BASE_BOOT_CPU if not vcpu else 0))
            vm.msr_write(vcpu, Msr.X2APIC + (Reg.SVR >> 4), 0x1FF)
        vm.signal_msi(MSI | 0xFF << 12, 0x41)
        assert [vcpu for vcpu in (0, 1) if vm.ack_interrupt(vcpu)] == takers


def test_a_vm_has_more_vcpus_than_an_xapic_can_address() -> None:
    vm = new_vm(*range(MAX_VCPUS), cap=Cap.X2APIC_API, argument=3)
    for vcpu in range(MAX_VCPUS):
        vm.msr_write(vcpu, Msr.APIC_BASE, X2APIC, host=True)
        vm.msr_write(vcpu, Msr.X2APIC + (Reg.SVR >> 4), 0x1FF)
    vm = X86Vm.restored("moved", MAX_VCPUS, vm.save())
    for vcpu in range(MAX_VCPUS):
        assert vm.signal_msi(vcpu >> 8 << 40 | MSI | (vcpu & 0xFF) << 12, 0x41) == 1
        assert vm.ack_interrupt(vcpu) == (0x41, False)
    vm.msr_write(3, Msr.X2APIC + (Reg.ICR >> 4), (1 << 64) - (1 << 32) | 0x42)  # to all
    vm.msr_write(3, Msr.X2APIC + (Reg.ICR >> 4), 17 << 48 | 1 << 32 + 15 | 1 << 11 | 0x43)  # to 287, logically
    for vcpu in range(MAX_VCPUS):
        vm.msr_write(vcpu, Msr.X2APIC + (Reg.EOI >> 4), 0)
    assert [vm.ack_interrupt(vcpu) for vcpu in (0, 280, 287)] == [(0x42, False), (0x42, False), (0x43, False)]


# The bus of the APIC timers.


def test_the_timers_count_bus_cycles_also_after_a_move() -> None:
    vm = new_vm(0, cap=Cap.X86_APIC_BUS_CYCLES_NS, argument=25)
    for register, value in ((Reg.SVR, 0x1FF), (Reg.TIMER_DIVIDE, 0xB), (Reg.LVT_TIMER, 0x31)):
        vm.mmio_write(0, LAPIC_BASE + register, 4, value)
    vm.mmio_write(0, LAPIC_BASE + Reg.TIMER_INITIAL_COUNT, 4, 1000)
    vm.advance(10_000)
    vm = moved(vm)
    assert vm.mmio_read(0, LAPIC_BASE + Reg.TIMER_CURRENT_COUNT, 4) == 600
    vm.advance(14_999)
    assert vm.ack_interrupt(0) is None
    vm.advance(1)
    assert vm.ack_interrupt(0) == (0x31, False)


@pytest.mark.parametrize("periodic", [0, 1 << 17])
def test_the_longest_count_of_the_slowest_bus_can_be_moved(periodic: int) -> None:
    vm = new_vm(0, cap=Cap.X86_APIC_BUS_CYCLES_NS, argument=33_554_432)
    for register, value in ((Reg.SVR, 0x1FF), (Reg.TIMER_DIVIDE, 0xA), (Reg.LVT_TIMER, 0x31 | periodic)):
        vm.mmio_write(0, LAPIC_BASE + register, 4, value)
    vm.mmio_write(0, LAPIC_BASE + Reg.TIMER_INITIAL_COUNT, 4, 0xFFFF_FFFF)
    vm.advance(1 << 61)
    vm = moved(vm)
    vm.advance(1 << 60)
    moved(vm)


def test_the_bus_is_set_before_there_are_vcpus_and_after_the_irqchip() -> None:
    with refused("ENXIO"):
        X86Vm("bare").enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [10])
    for argument in (0, 33_554_433):
        with refused("EINVAL"):
            new_vm().enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [argument])
    with refused("EINVAL"):
        new_vm(0).enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [10])


# CPUID.


def test_a_guest_without_x2apic_cannot_enable_it_or_exceed_its_address_width() -> None:
    vm = new_vm(0)
    vm.set_cpuid(0, Features(x2apic=False, address_bits=36))
    for machine in (vm, moved(vm)):
        assert machine.msr_write(0, Msr.APIC_BASE, X2APIC) == FAULT
        assert machine.msr_write(0, Msr.APIC_BASE, X2APIC, host=True) == FAULT
        assert machine.msr_write(0, Msr.APIC_BASE, 1 << 36 | LAPIC_BASE | BASE_ENABLED) == FAULT
        assert machine.msr_write(0, Msr.APIC_BASE, 1 << 35 | LAPIC_BASE | BASE_ENABLED) == 0


def test_a_guest_without_tsc_deadline_has_two_modes_of_the_timer() -> None:
    pc = Pc()
    pc.vm.set_cpuid(0, Features(tsc_deadline=False))
    pc.lapic_write(0, Reg.LVT_TIMER, 0x7_0031)
    assert pc.vm.get_lapic(0).lvt_timer == 0x3_0031


def test_a_change_of_cpuid_keeps_the_timers_mode_also_after_a_move() -> None:
    pc = Pc()
    pc.lapic_write(0, Reg.LVT_TIMER, 0x4_0031)
    pc.vm.set_cpuid(0, Features(tsc_deadline=False))
    for vm in (pc.vm, moved(pc.vm)):
        vm.msr_write(0, Msr.TSC_DEADLINE, 1 << 40)
        assert vm.msr_read(0, Msr.TSC_DEADLINE) == 1 << 40


def test_a_split_irqchips_version_follows_the_cpuid() -> None:
    vm = X86Vm("split")
    vm.enable_cap(Cap.SPLIT_IRQCHIP, 0, [24])
    vm.create_vcpu(0)
    assert vm.get_lapic(0).version == VERSION | VERSION_DIRECTED_EOI
    vm.set_cpuid(0, Features(x2apic=False))
    assert vm.get_lapic(0).version == moved(vm).get_lapic(0).version == VERSION


@pytest.mark.parametrize("bits", [0, 31, 53])
def test_physical_addresses_have_32_to_52_bits(bits: int) -> None:
    with refused("EINVAL"):
        new_vm(0).set_cpuid(0, Features(address_bits=bits))


# MSRs.


def test_what_a_guest_adds_to_its_tsc() -> None:
    vm = new_vm(0)
    vm.msr_write(0, Msr.TSC_ADJUST, 500)
    assert vm.msr_read(0, Msr.TSC) == 500
    vm.msr_write(0, Msr.TSC, 800)
    assert vm.msr_read(0, Msr.TSC_ADJUST) == 800
    vm.msr_write(0, Msr.TSC, 900, host=True)
    assert vm.msr_read(0, Msr.TSC_ADJUST) == 800
    vm.msr_write(0, Msr.TSC_ADJUST, 5, host=True)
    for machine in (vm, moved(vm)):
        assert machine.msr_read(0, Msr.TSC) == 900
        assert machine.msr_read(0, Msr.TSC_ADJUST) == 5


def test_a_vmms_access_does_not_count_as_an_entry_into_the_guest() -> None:
    pc = Pc()
    before = pc.vm.save().vcpus[0].scan
    pc.vm.signal_msi(MSI, 0x41)
    pc.vm.set_lapic(0, pc.vm.get_lapic(0))
    assert pc.vm.save().vcpus[0].scan
    pc.vm.msr_read(0, Msr.APIC_BASE, host=True)
    pc.vm.msr_write(0, Msr.APIC_BASE, LAPIC_BASE | BASE_ENABLED, host=True)
    assert pc.vm.save().vcpus[0].scan
    pc.vm.msr_read(0, Msr.APIC_BASE)
    assert not pc.vm.save().vcpus[0].scan
    assert isinstance(before, bool)


@pytest.mark.parametrize("base", [LAPIC_BASE, X2APIC])
def test_cr8_is_tpr_whatever_the_mode(base: int) -> None:
    vm = new_vm(0)
    vm.msr_write(0, Msr.APIC_BASE, base)
    vm.cr8_write(0, 5)
    assert vm.cr8_read(0) == 5
    assert vm.get_lapic(0).tpr == 0x50
    with refused("EINVAL"):
        vm.cr8_write(0, 16)


# The RTC's line without a status, and the older state of the PIT.


def test_the_rtcs_line_without_a_status_is_delivered_before_the_last_ticks_eoi() -> None:
    pc = Pc()
    pc.program(8, 0x31)
    statuses = [pc.vm.irq_line(8, level) for level in (True, False, True)]
    assert statuses == [2, 2, 0]  # counted by the PIC and the IOAPIC
    assert pc.vm.irq_line(8, True, line_status=False) == 2
    assert pc.vm.irq_line(8, False, line_status=False) == 2


def test_the_older_pit_state_leaves_the_flags() -> None:
    pc = Pc(pit=True)
    state = pc.vm.get_pit()
    pc.vm.set_pit(state.pack()[:72] + (2).to_bytes(40, "little"))
    pc.vm.set_pit(state.pack()[:72])
    assert pc.vm.get_pit().flags == 2
    with refused("EINVAL"):
        pc.vm.set_pit(bytes(73))
