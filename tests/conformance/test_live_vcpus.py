"""Run states, INIT and SIPI, and IA32_APIC_BASE, on the kernel of this machine and on irqchipd."""

from __future__ import annotations

import pytest

from irqchipd.chips.i8259 import Port
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU, BASE_ENABLED, BASE_X2APIC, DFR_CLUSTER, LapicRegisters, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.vcpu_state import MP_STATES
from tests.conformance.compare import Comparison
from tests.conformance.kvm import Kvm, KvmVm
from tests.conformance.machines import Op
from tests.conformance.test_live_acks import agree, out

INIT, SIPI, NMI, PAGE = 0x500, 0x600, 0x400, 0x9A
ASSERT, LEVEL = 1 << 14, 1 << 15
ALL_BUT_SELF = 3 << 18
# Creating one more vCPU puts all vCPUs into the map of destinations.
NEW_VM: list[Op] = [["create_irqchip"], *(["create_vcpu", vcpu] for vcpu in range(4))]
STATES: list[Op] = [["get_mp_state", vcpu] for vcpu in range(3)]
PAGES: list[Op] = [["get_lapic_page", vcpu] for vcpu in range(3)]


def write(vcpu: int, register: int, value: int) -> Op:
    return ["mmio_write", vcpu, LAPIC_BASE + register, 4, value]


def base(vcpu: int, bits: int, address: int = LAPIC_BASE) -> Op:
    return ["msr_write", vcpu, Msr.APIC_BASE, address | bits]


def msi(apic_id: int, data: int) -> Op:
    return ["signal_msi", LAPIC_BASE | apic_id << 12, data, 0]


def restored(vcpu: int) -> Op:
    """A local APIC with a value in every register."""
    registers = LapicRegisters(id=vcpu << 24, svr=0x1FF, tpr=0x55, dfr=DFR_CLUSTER, ldr=0x21 << 24, esr=0xFF)
    registers.icr, registers.icr2, registers.timer_divide = 0x4C042, 0x22 << 24, 0xB
    for name in ("lvt_timer", "lvt_thermal", "lvt_performance", "lvt_lint0", "lvt_lint1", "lvt_error"):
        setattr(registers, name, 0x1_0042)
    registers.isr = registers.tmr = registers.irr = 1 << 0x71 | 1 << 0x80
    registers.timer_initial_count = 0xFFFF_FFFF
    return ["set_lapic", vcpu, registers.pack().hex()]


# Run states.


@pytest.mark.parametrize("irqchip", [True, False])
def test_the_vcpus_that_run_at_first(kvm: Kvm, irqchip: bool) -> None:
    daemon = X86Vm("conformance")
    with KvmVm(kvm) as kernel:
        if irqchip:
            kernel.create_irqchip()
            daemon.create_irqchip()
        for vcpu in range(3):
            kernel.create_vcpu(vcpu)
            daemon.create_vcpu(vcpu)
            assert daemon.get_mp_state(vcpu) == kernel.vcpus[vcpu].get_mp_state()


@pytest.mark.parametrize("irqchip", [True, False])
@pytest.mark.parametrize("state", [*MP_STATES, 5, 1 << 31])
def test_a_state_is_set(live: Comparison, state: int, irqchip: bool) -> None:
    """All states except 9, in which a vCPU of an encrypted guest waits; irqchipd has no such guests."""
    for first in MP_STATES if irqchip else [0]:
        ops = NEW_VM if irqchip else NEW_VM[1:]
        agree(live, *ops, ["set_mp_state", 1, first], *STATES, ["set_mp_state", 1, state], *STATES)


SIGNALS = {
    "INIT": [msi(1, INIT | ASSERT)],
    "SIPI": [msi(1, SIPI | PAGE)],
    "INIT, SIPI": [msi(1, INIT), msi(1, SIPI | PAGE)],
    "INIT, SIPI, SIPI": [msi(1, INIT), msi(1, SIPI | PAGE), msi(1, SIPI | 0x12)],
    "SIPI, INIT": [msi(1, SIPI | PAGE), msi(1, INIT)],
    "INIT, set, SIPI": [msi(1, INIT), ["set_mp_state", 1, MpState.INIT_RECEIVED], msi(1, SIPI | PAGE)],
    "level-triggered INIT": [msi(1, INIT | LEVEL)],
    "INIT to the boot CPU": [msi(0, INIT)],
    "SIPI to the boot CPU": [msi(0, SIPI | PAGE)],
    "INIT, SIPI to the boot CPU": [msi(0, INIT), msi(0, SIPI | PAGE)],
    "INIT to all": [msi(0xFF, INIT)],
    "NMI": [msi(1, NMI), ["nmi", 1]],
    "an interrupt": [msi(1, 0x31)],
}


@pytest.mark.parametrize("state", MP_STATES)
@pytest.mark.parametrize("signal", SIGNALS)
def test_init_and_sipi_change_the_state(live: Comparison, signal: str, state: MpState) -> None:
    set_state: list[Op] = [["set_mp_state", vcpu, state] for vcpu in (0, 1)]
    agree(live, *NEW_VM, restored(1), *set_state, *SIGNALS[signal], *STATES, *PAGES)


def test_an_interrupt_that_is_taken_ends_a_halt(live: Comparison) -> None:
    halt: Op = ["set_mp_state", 1, MpState.HALTED]
    agree(live, *NEW_VM, write(1, Reg.SVR, 0x1FF), halt, msi(1, 0x31), *STATES, ["take", 1], *STATES)


@pytest.mark.parametrize("level", [0, LEVEL, ASSERT, LEVEL | ASSERT])
def test_a_vcpu_receives_init_and_sipi_from_another(live: Comparison, level: int) -> None:
    """INIT's de-assertion, which old software sends, is ignored."""
    ops = [*NEW_VM, write(0, Reg.ICR, ALL_BUT_SELF | INIT | level), *STATES, *PAGES]
    agree(live, *ops, write(0, Reg.ICR2, 1 << 24), write(0, Reg.ICR, SIPI | level | PAGE), *STATES)


def test_sipi_says_where_to_start(live: Comparison) -> None:
    ops = [*NEW_VM, msi(1, INIT), msi(1, SIPI | PAGE), ["start_page", 1]]
    agree(live, *ops, msi(1, INIT), msi(1, SIPI | 0x12), ["start_page", 1])


def test_init_resets_the_local_apic(live: Comparison) -> None:
    """Words outside the registers, the ID and the base address stay."""
    for vcpu in (0, 1):
        page = bytearray(bytes.fromhex(restored(vcpu)[2]))
        page[0x000:0x004] = page[0x0C0:0x0C4] = page[0x2F0:0x2F4] = b"\x12\x34\x56\x78"
        ops: list[Op] = [*NEW_VM, ["set_lapic", vcpu, page.hex()], ["get_lapic_page", vcpu]]
        agree(live, *ops, write(2, Reg.ICR2, vcpu << 24), write(2, Reg.ICR, INIT), *STATES, *PAGES)


def test_an_x2apic_is_still_one_after_init(live: Comparison) -> None:
    enable = [base(1, BASE_ENABLED | BASE_X2APIC), ["msr_write", 1, Msr.X2APIC + (Reg.SVR >> 4), 0x1FF]]
    ops: list[Op] = [*NEW_VM, *enable, ["msr_write", 1, Msr.X2APIC + (Reg.ICR >> 4), 2 << 32 | 0x41], *PAGES]
    agree(live, *ops, msi(1, INIT), *STATES, *PAGES)


# IA32_APIC_BASE.

MODES = {"disabled": 0, "xAPIC": BASE_ENABLED, "x2APIC": BASE_ENABLED | BASE_X2APIC, "invalid": BASE_X2APIC}


@pytest.mark.parametrize("third", MODES)
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_the_modes_of_a_local_apic(live: Comparison, first: str, second: str, third: str) -> None:
    ops: list[Op] = [*NEW_VM, restored(1), write(1, Reg.ID, 7 << 24)]
    for mode in (first, second, third):
        ops += [base(1, MODES[mode]), ["msr_read", 1, Msr.APIC_BASE], ["msr_read", 1, Msr.X2APIC + (Reg.ID >> 4)]]
        ops += [["mmio_read", 1, LAPIC_BASE + Reg.ID, 4], *PAGES, msi(1, 0x91), msi(7, 0x92), ["take", 1], *PAGES]
    agree(live, *ops)


@pytest.mark.parametrize("bits", [0, 1, 0xFF, 1 << 9, BASE_BOOT_CPU, 1 << 32, 1 << 52, 1 << 63])
def test_some_bits_of_the_base_are_reserved(live: Comparison, bits: int) -> None:
    agree(live, *NEW_VM, base(1, BASE_ENABLED | bits), ["msr_read", 1, Msr.APIC_BASE])


def test_the_registers_move(live: Comparison) -> None:
    elsewhere = 0xFED0_0000
    reads: list[Op] = [["mmio_read", 1, address + Reg.VERSION, 4] for address in (LAPIC_BASE, elsewhere)]
    agree(live, *NEW_VM, *reads, base(1, BASE_ENABLED, elsewhere), *reads, base(1, BASE_ENABLED), *reads)


def test_a_disabled_apic_is_a_hole(live: Comparison) -> None:
    places = [(Reg.ID, 4), (Reg.ID + 4, 4), (Reg.TPR, 1), (0, 8), (0xFF8, 8), (Reg.TPR + 2, 2)]
    reads: list[Op] = [["mmio_read", 1, LAPIC_BASE + offset, size] for offset, size in places]
    for bits in (0, BASE_ENABLED | BASE_X2APIC):
        agree(live, *NEW_VM, *reads, base(1, bits), *reads, write(1, Reg.TPR, 0x20), *PAGES)


def test_a_disabled_apic_gets_no_messages(live: Comparison) -> None:
    """Messages accepted before stay pending, and the state can be restored."""
    messages = [msi(1, mode | 0x72) for mode in (0, 0x100, NMI, INIT, SIPI)]
    ops = [*NEW_VM, restored(1), write(1, Reg.TPR, 0), write(1, Reg.EOI, 0), write(1, Reg.EOI, 0), msi(1, 0x71)]
    ops += [base(1, 0), ["take", 1], *messages, msi(0xFF, 0x73), *STATES, *PAGES]
    agree(live, *ops, base(1, BASE_ENABLED), *PAGES, ["take", 1], ["take", 1], *PAGES)
    agree(live, *ops, restored(1), *PAGES, ["take", 1], base(1, BASE_ENABLED), ["take", 1], *PAGES)


@pytest.mark.parametrize("bits", [0, BASE_ENABLED, BASE_ENABLED | BASE_X2APIC])
@pytest.mark.parametrize("vcpu", [0, 1])
def test_the_vcpus_that_take_the_pics_interrupts(live: Comparison, vcpu: int, bits: int) -> None:
    """A vCPU with a disabled local APIC takes them, whatever its LINT0 is."""
    init = out(Port.PRIMARY_COMMAND, 0x11) + out(Port.PRIMARY_DATA, 0x20, 4, 1, 0)
    agree(live, *NEW_VM, *init, base(vcpu, bits), ["irq_line", 1, 1], ["take", vcpu], ["get_irqchip", 0])
