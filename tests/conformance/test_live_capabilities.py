"""A VM's and its vCPUs' settings: capabilities, CPUID, events, and a VMM's accesses in place of the guest."""

from __future__ import annotations

from random import Random

import pytest

from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU, BASE_ENABLED, BASE_X2APIC, LapicRegisters, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.capabilities import CAPABILITIES, MAX_VCPU_ID, Cap
from irqchipd.vm.x86.vcpu_state import MP_STATES
from tests.conformance.compare import Comparison
from tests.conformance.kvm import Kvm
from tests.conformance.machines import Op
from tests.conformance.test_live_acks import agree
from tests.conformance.test_live_vcpus import INIT, SIPI, base, msi, write

X2APIC = BASE_ENABLED | BASE_X2APIC
REMOTE_READ = 0x300
ONE: list[Op] = [["create_irqchip"], ["create_vcpu", 0]]
TWO: list[Op] = [*ONE, ["create_vcpu", 1]]


def x2apic(vcpu: int, register: int, value: int) -> Op:
    return ["msr_write", vcpu, Msr.X2APIC + (register >> 4), value]


def ioapic(register: int, value: int) -> list[Op]:
    return [["mmio_write", 0, IOAPIC_BASE, 4, register], ["mmio_write", 0, IOAPIC_BASE + 0x10, 4, value]]


def has_more_ids(kvm: Kvm) -> bool:
    """Whether this kernel was built for more vCPU ids than 4,096."""
    return kvm.check_extension(Cap.MAX_VCPU_ID) > MAX_VCPU_ID + 1


# Answers of CheckExtension.


def test_a_capability_is_1_where_the_kernels_is(kvm: Kvm) -> None:
    """Numbers may differ where the two differ: vCPUs, ids, quirks, flags of the x2APIC API."""
    for capability, value in CAPABILITIES.items():
        kernel = kvm.check_extension(capability)
        assert kernel == value or (value > 1 and kernel), capability


# KVM_ENABLE_CAP.

ARGUMENTS: dict[int, list[int]] = {
    Cap.DISABLE_QUIRKS: [0, 1, 4, 5, 1 << 40, (1 << 64) - 1],
    Cap.DISABLE_QUIRKS2: [0, 1, 4, 5, 1 << 11, 1 << 40, (1 << 64) - 1],
    Cap.X2APIC_API: [0, 1, 2, 3, 16, 1 << 40],
    Cap.MAX_VCPU_ID: [0, 1, 3, 4096, 4097, 1 << 40],
    Cap.X86_APIC_BUS_CYCLES_NS: [0, 1, 25, 33_554_432, 33_554_433, 1 << 40],
}


@pytest.mark.parametrize("capability", ARGUMENTS)
def test_capabilities_can_be_enabled_as_in_the_kernel(live: Comparison, kvm: Kvm, capability: int) -> None:
    for argument in ARGUMENTS[capability]:
        if capability == Cap.MAX_VCPU_ID and argument > MAX_VCPU_ID + 1 and has_more_ids(kvm):
            continue
        enable: Op = ["enable_cap", capability, argument]
        agree(live, enable, enable, ["create_irqchip"], enable, ["create_vcpu", 0], enable, ["create_vcpu", 3], enable)
        agree(live, ["enable_cap", Cap.SPLIT_IRQCHIP, 24], enable, ["create_vcpu", 0], enable)
        agree(live, enable, ["enable_cap", capability, 1], ["create_irqchip"], ["create_vcpu", 0], ["create_vcpu", 2])


def test_lint0_of_the_boot_cpu_is_masked_without_its_quirk(live: Comparison) -> None:
    pages: list[Op] = [["get_lapic_page", vcpu] for vcpu in (0, 1)]
    for quirks in (0, 1, 4, 5):
        agree(live, ["enable_cap", Cap.DISABLE_QUIRKS2, quirks], *TWO, *pages, msi(0, INIT), *pages)
        agree(live, *TWO, *pages, ["enable_cap", Cap.DISABLE_QUIRKS2, quirks], *pages, msi(0, INIT), *pages)


def test_the_page_of_a_disabled_apic_is_unclaimed_without_its_quirk(live: Comparison) -> None:
    accesses: list[Op] = [["mmio_read", 0, LAPIC_BASE + Reg.ID, 4], write(0, Reg.TPR, 0x20), ["get_lapic_page", 0]]
    for quirks in (0, 1, 4):
        for bits in (0, BASE_ENABLED, X2APIC):
            agree(live, *ONE, ["enable_cap", Cap.DISABLE_QUIRKS2, quirks], base(0, bits), *accesses)


# KVM_SET_BOOT_CPU_ID.


@pytest.mark.parametrize("boot", [0, 1, 3, 4095, 4096, 4097, 5000])
def test_the_boot_cpu_is_chosen_before_the_first_vcpu(live: Comparison, kvm: Kvm, boot: int) -> None:
    if boot > MAX_VCPU_ID + 1 and has_more_ids(kvm):
        pytest.skip("this kernel was built for more vCPU ids")
    rest: list[Op] = []
    for vcpu in (0, 1, 3):
        rest += [["create_bare_vcpu", vcpu], ["get_mp_state", vcpu], ["set_boot_cpu_id", boot]]
        rest += [["get_lapic_page", vcpu]]
    bases: list[Op] = [["host_msr_read", vcpu, Msr.APIC_BASE] for vcpu in (0, 1, 3)]
    agree(live, ["set_boot_cpu_id", boot], ["create_irqchip"], ["set_boot_cpu_id", boot], *rest, *bases)
    agree(live, ["set_boot_cpu_id", boot], *rest)
    for limit in (3, 4, 4096):
        caps: list[Op] = [["enable_cap", Cap.MAX_VCPU_ID, limit], ["set_boot_cpu_id", boot]]
        agree(live, *caps, ["create_irqchip"], *rest)
        agree(live, *reversed(caps), ["create_irqchip"], *rest)


@pytest.mark.parametrize("boot", [0, 1])
def test_init_starts_the_vcpu_with_the_boot_cpus_bit(live: Comparison, boot: int) -> None:
    states: list[Op] = [["get_mp_state", 0], ["get_mp_state", 1], ["get_lapic_page", 0], ["get_lapic_page", 1]]
    for bits in (0, BASE_BOOT_CPU):
        for vcpu in (0, 1):
            ops: list[Op] = [["set_boot_cpu_id", boot], *TWO, ["get_mp_state", 0], ["get_mp_state", 1]]
            agree(live, *ops, base(vcpu, BASE_ENABLED | bits), msi(0, INIT), msi(1, INIT), *states)


# The guest's CPUID.

LACKS: list[list[str]] = [[], ["x2apic"], ["tsc_deadline"], ["x2apic", "tsc_deadline"]]


@pytest.mark.parametrize("lacks", LACKS, ids=" ".join)
def test_a_local_apics_features_follow_the_cpuid(live: Comparison, lacks: list[str]) -> None:
    ops: list[Op] = [["create_bare_vcpu", 0], ["set_cpuid", 0, lacks, 40], ["get_lapic_page", 0]]
    for lvt in (0x7_0031, 0x5_0031, 0x3_0031, 0x1_0031):
        ops += [["set_lapic", 0, LapicRegisters(svr=0x1FF, lvt_timer=lvt).pack().hex()], ["get_lapic_page", 0]]
    for bits in (X2APIC, BASE_ENABLED, 1 << 39 | BASE_ENABLED, 1 << 40 | BASE_ENABLED, 0, X2APIC):
        ops += [["host_msr_write", 0, Msr.APIC_BASE, LAPIC_BASE | bits], ["host_msr_read", 0, Msr.APIC_BASE]]
        ops += [["get_lapic_page", 0]]
    for value in (5, 1 << 63):
        ops += [["host_msr_write", 0, Msr.TSC_ADJUST, value], ["host_msr_read", 0, Msr.TSC_ADJUST]]
    for first in (["create_irqchip"], ["enable_cap", Cap.SPLIT_IRQCHIP, 24]):
        agree(live, first, *ops)


@pytest.mark.parametrize("lacks", LACKS, ids=" ".join)
def test_the_values_a_guest_may_write_follow_the_cpuid(live: Comparison, lacks: list[str]) -> None:
    ops: list[Op] = [*ONE, ["set_cpuid", 0, lacks, 40], write(0, Reg.SVR, 0x1FF)]
    for lvt in (0x7_0031, 0x5_0031, 0x3_0031, 0x1_0031):
        ops += [write(0, Reg.LVT_TIMER, lvt), ["mmio_read", 0, LAPIC_BASE + Reg.LVT_TIMER, 4], ["get_lapic_page", 0]]
        ops += [["msr_write", 0, Msr.TSC_DEADLINE, 1 << 62], ["msr_read", 0, Msr.TSC_DEADLINE]]
    ops += [["msr_write", 0, Msr.TSC_ADJUST, 7], ["msr_read", 0, Msr.TSC_ADJUST]]
    agree(live, *ops, base(0, X2APIC), ["msr_read", 0, Msr.APIC_BASE], x2apic(0, Reg.LVT_TIMER, 0x7_0031))


@pytest.mark.parametrize("bits", range(36, 41))
def test_the_base_has_the_width_of_physical_addresses(live: Comparison, bits: int) -> None:
    ops: list[Op] = [["create_irqchip"], ["create_bare_vcpu", 0], ["set_cpuid", 0, [], bits]]
    for bit in range(64):
        value = (LAPIC_BASE | BASE_ENABLED) ^ 1 << bit
        ops += [["host_msr_write", 0, Msr.APIC_BASE, value], ["host_msr_read", 0, Msr.APIC_BASE]]
    agree(live, *ops)


@pytest.mark.parametrize("address", [0x1_0000_0000, 0x2_FEE0_0000, 0x7F_C123_4000, 0xFED0_0000])
def test_the_registers_are_at_the_base(live: Comparison, address: int) -> None:
    reads: list[Op] = [["mmio_read", 1, at + Reg.VERSION, 4] for at in (LAPIC_BASE, address)]
    ops: list[Op] = [*TWO, base(1, BASE_ENABLED, address), ["msr_read", 1, Msr.APIC_BASE], *reads]
    ops += [["mmio_write", 1, address + Reg.TPR, 4, 0x30], ["get_lapic_page", 1], msi(1, 0x41)]
    agree(live, *ops, base(1, BASE_ENABLED), *reads, ["get_lapic_page", 1])


# MSRs that a VMM writes.

MODES = {"disabled": 0, "xAPIC": BASE_ENABLED, "x2APIC": X2APIC, "invalid": BASE_X2APIC}


@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_a_vmm_can_set_any_mode_of_a_local_apic(live: Comparison, first: str, second: str) -> None:
    ops: list[Op] = [*TWO, write(1, Reg.ID, 7 << 24)]
    for mode in (first, second, first):
        ops += [["host_msr_write", 1, Msr.APIC_BASE, LAPIC_BASE | MODES[mode]], ["host_msr_read", 1, Msr.APIC_BASE]]
        ops += [["host_msr_read", 1, Msr.X2APIC + (Reg.ID >> 4)], ["get_lapic_page", 1], msi(1, 0x91), msi(7, 0x92)]
        ops += [["host_msr_write", 1, Msr.X2APIC + (Reg.TPR >> 4), 0x20], ["get_lapic_page", 1]]
    agree(live, *ops)


def test_tsc_adjust(live: Comparison) -> None:
    for value in (0, 1, 5000, 1 << 40, (1 << 64) - 5000):
        for name in ("msr", "host_msr"):
            write_, read = f"{name}_write", ["msr_read", 0, Msr.TSC_ADJUST]
            ops: list[Op] = [*ONE, [write_, 0, Msr.TSC_ADJUST, value], read, msi(0, INIT), read]
            agree(live, *ops, [write_, 0, Msr.TSC_ADJUST, 0], read, ["host_msr_read", 0, Msr.TSC_ADJUST])
    agree(live, *ONE, ["host_msr_write", 0, Msr.TSC, 1 << 50], ["msr_read", 0, Msr.TSC_ADJUST])


# CR8.


@pytest.mark.parametrize("bits", [0, BASE_ENABLED, X2APIC])
def test_cr8_is_tpr_whatever_the_mode(live: Comparison, bits: int) -> None:
    ops: list[Op] = [*ONE, write(0, Reg.TPR, 0x5F), ["cr8_read", 0], base(0, bits), ["cr8_read", 0]]
    for value in (0, 0xF, 3):
        ops += [["cr8_write", 0, value], ["cr8_read", 0], ["get_lapic_page", 0]]
    agree(live, *ops)


# KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS.


def test_the_number_of_pending_nmis(live: Comparison) -> None:
    nmis: list[Op] = [["nmi", 0], ["get_events", 0]] * 3
    agree(live, ["create_irqchip"], ["create_bare_vcpu", 0], *nmis)
    for injected in (0, 1):
        for masked in (0, 1):
            for pending in (None, 0, 1, 2, 255):
                events: Op = ["set_events", 0, [0, 0], injected, pending, masked, None]
                ops: list[Op] = [["create_irqchip"], ["create_bare_vcpu", 0]]
                agree(live, *ops, events, ["get_events", 0], *nmis)
                agree(live, *ops, *nmis, events, ["get_events", 0], *nmis)
                agree(live, *ops, events, msi(0, 0x400), ["get_events", 0], msi(0, INIT), ["get_events", 0])


def test_an_injected_interrupt_is_kept(live: Comparison) -> None:
    ops: list[Op] = [["create_irqchip"], ["create_bare_vcpu", 0]]
    for interrupt in ([1, 0x55], [1, 0xFF], [0, 0]):
        ops += [["set_events", 0, interrupt, 0, None, 0, None], ["get_events", 0]]
    agree(live, *ops, msi(0, INIT), ["get_events", 0])


@pytest.mark.parametrize("first", [[], [msi(1, SIPI | 0x12)], [msi(1, INIT), msi(1, SIPI | 0x12)]], ids=str)
def test_a_start_up_that_is_set_has_its_vector(live: Comparison, first: list[Op]) -> None:
    ops: list[Op] = [*TWO, *first, ["get_mp_state", 1]]
    sipi: list[Op] = [["set_mp_state", 1, MpState.SIPI_RECEIVED], ["get_mp_state", 1], ["start_page", 1]]
    agree(live, *ops, *sipi)
    agree(live, *ops, ["set_events", 1, [0, 0], 0, None, 0, 0x34], *sipi)


# Remote reads.


@pytest.mark.parametrize("state", [MpState.RUNNABLE, MpState.HALTED, MpState.AP_RESET_HOLD, MpState.INIT_RECEIVED])
def test_a_remote_read_wakes(live: Comparison, state: MpState) -> None:
    for later in MP_STATES:
        ops: list[Op] = [*TWO, ["set_mp_state", 1, state], msi(1, REMOTE_READ), ["get_mp_state", 1]]
        ops += [["set_mp_state", 1, later], ["get_mp_state", 1], ["set_mp_state", 1, MpState.HALTED]]
        agree(live, *ops, ["get_mp_state", 1], msi(1, INIT), ["get_mp_state", 1])


# KVM_IRQ_LINE.


def test_the_rtcs_ticks_without_a_status(live: Comparison) -> None:
    """They are delivered where a tick with a status would be coalesced, and are not counted."""
    rng = Random(8)
    for _ in range(40):
        ops: list[Op] = [*TWO, write(0, Reg.SVR, 0x1FF), *ioapic(0x11, 0), *ioapic(0x20, 0x31), *ioapic(0x21, 0)]
        for _ in range(30):
            name = rng.choice(("irq_line", "irq_line_without_status"))
            level: Op = [name, 8, rng.randrange(2)]
            ops.append(rng.choice((level, level, ["take", 0], ["get_irqchip", 2], ["get_lapic_page", 0])))
        agree(live, *ops)


# The older KVM_GET_PIT.


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_the_older_pit_state_has_no_flags(live: Comparison, flags: int) -> None:
    old: list[Op] = [["get_old_pit"], ["set_old_pit", bytes(72).hex()]]
    agree(live, *old)
    agree(live, ["create_irqchip"], *old)
    rng = Random(flags)
    for _ in range(10):
        state = bytearray(rng.randbytes(112))
        for channel in range(3):
            state[24 * channel : 24 * channel + 4] = rng.randrange(1, 1 << 16).to_bytes(4, "little")
            state[24 * channel + 13] = rng.randrange(6)
        state[72:] = flags.to_bytes(40, "little")
        ops: list[Op] = [["create_irqchip"], ["create_pit", 1], ["set_pit", state.hex()], ["get_pit"], ["get_old_pit"]]
        agree(live, *ops, ["set_old_pit", state[:72].hex()], ["get_pit"])


# KVM_CAP_X2APIC_API.


@pytest.mark.parametrize("flags", range(4))
@pytest.mark.parametrize("identity", [300, 300 << 24 & 0xFFFF_FFFF, 1])
def test_an_x2apics_id_in_its_state(live: Comparison, identity: int, flags: int) -> None:
    ops: list[Op] = [["enable_cap", Cap.X2APIC_API, flags], ["create_irqchip"], ["create_vcpu", 300]]
    state: Op = ["set_lapic", 300, LapicRegisters(id=identity, svr=0x1FF).pack().hex()]
    agree(live, *ops, ["get_lapic_page", 300], state, ["get_lapic_page", 300])
    agree(live, *ops, base(300, X2APIC), ["get_lapic_page", 300], state)


@pytest.mark.parametrize("flags", range(4))
def test_an_msis_address_has_the_upper_bits(live: Comparison, flags: int) -> None:
    ops: list[Op] = [["enable_cap", Cap.X2APIC_API, flags], *TWO, ["create_vcpu", 300], base(300, X2APIC)]
    ops += [x2apic(300, Reg.SVR, 0x1FF), write(0, Reg.SVR, 0x1FF)]
    for high in (0, 1, 0x100, 0x1FF, 0xFFFF_FF00):
        for low in (0, 44, 0xFF):
            address = high << 32 | LAPIC_BASE | low << 12
            ops += [["signal_msi", address, 0x41, 0], ["set_gsi_routing", [[30, "msi", address, 0x42]]]]
            ops += [["irq_line", 30, 1], ["take", 300], ["get_lapic_page", 300], ["get_lapic_page", 0]]
    agree(live, *ops)
