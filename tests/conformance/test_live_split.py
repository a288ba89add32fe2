"""The order of creation, and the split irqchip, on the kernel of this machine and on irqchipd."""

from __future__ import annotations

import pytest

from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_ENABLED, BASE_X2APIC, SVR_DIRECTED_EOI, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.x86.machine import SPLIT_IRQCHIP
from tests.conformance.compare import Comparison
from tests.conformance.machines import Op
from tests.conformance.test_live_acks import agree

RESERVED, VECTOR, LEVEL = 24, 0x31, 1 << 15
SPLIT: Op = ["enable_cap", SPLIT_IRQCHIP, RESERVED]
FULL: Op = ["create_irqchip"]

BEGINNINGS: dict[str, list[Op]] = {
    "nothing": [],
    "a vCPU": [["create_vcpu", 0]],
    "an irqchip": [FULL],
    "an irqchip and a vCPU": [FULL, ["create_vcpu", 0]],
    "an irqchip and a PIT": [FULL, ["create_pit", 0]],
    "a split irqchip": [SPLIT],
    "a split irqchip and a vCPU": [SPLIT, ["create_vcpu", 0]],
    "a split irqchip without pins": [["enable_cap", SPLIT_IRQCHIP, 0]],
}
PIT_STATE, PIC_STATE, IOAPIC_STATE = 112, 16, 216
THINGS: dict[str, list[Op]] = {
    "split": [SPLIT],
    "split into too many": [["enable_cap", SPLIT_IRQCHIP, MAX_GSIS + 1]],
    "split into as many as there are": [["enable_cap", SPLIT_IRQCHIP, MAX_GSIS, 1, 2, 3]],
    "split into 2^32": [["enable_cap", SPLIT_IRQCHIP, 1 << 32]],
    "irqchip": [FULL],
    "PIT": [["create_pit", 0], ["create_pit", 1], ["create_pit", 0xFFFF_FFFE], ["get_pit"]],
    "vCPU": [["create_vcpu", 1]],
    "line": [["irq_line", gsi, level] for gsi in (1, MAX_GSIS) for level in (1, 0)],
    "get_irqchip": [["get_irqchip", chip] for chip in (0, 1, 2, 3, 0xFFFF_FFFF)],
    "set_irqchip": [["set_irqchip", chip, "00" * size] for chip, size in ((0, PIC_STATE), (2, IOAPIC_STATE))],
    "get_pit": [["get_pit"]],
    "set_pit": [["set_pit", "00" * PIT_STATE]],
    "reinject": [["pit_reinject", 0], ["pit_reinject", 1]],
    "MSI": [["signal_msi", LAPIC_BASE, VECTOR, flags] for flags in (0, 1, 2)],
    "no routes": [["set_gsi_routing", []], ["irq_line", 1, 1]],
    "a route to a PIC": [["set_gsi_routing", [[1, "irqchip", 0, 1]]]],
    "a route to the IOAPIC": [["set_gsi_routing", [[1, "irqchip", 2, 1]]]],
    "a route to an MSI": [
        ["set_gsi_routing", [[1, "msi", LAPIC_BASE, VECTOR]]],
        ["irq_line", 1, 1],
        ["irq_line", 1, 0],
    ],
    "resampler": [["resampler", 1]],
}
# Without the capabilities that KVM can enable and irqchipd cannot.
NO_CAPABILITY = 0xFFFF


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_order_of_creation(live: Comparison, beginning: str, thing: str) -> None:
    agree(live, *BEGINNINGS[beginning], *THINGS[thing])


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_an_unknown_capability_is_refused(live: Comparison, beginning: str) -> None:
    agree(live, *BEGINNINGS[beginning], ["enable_cap", NO_CAPABILITY, 0])


# The local APICs of a split irqchip.


def new_vm(reserved: int = RESERVED) -> list[Op]:
    enable: list[Op] = [write(vcpu, Reg.SVR, 0x1FF) for vcpu in (0, 1)]
    return [["enable_cap", SPLIT_IRQCHIP, reserved], ["create_vcpu", 0], ["create_vcpu", 1], *enable]


def write(vcpu: int, register: int, value: int) -> Op:
    return ["mmio_write", vcpu, LAPIC_BASE + register, 4, value]


EOI = write(0, Reg.EOI, 0)
X2APIC: Op = ["msr_write", 0, Msr.APIC_BASE, LAPIC_BASE | BASE_ENABLED | BASE_X2APIC]
SEE: list[Op] = [["ended", 0], ["ended", 1], ["get_lapic_page", 0], ["get_lapic_page", 1]]


def test_a_local_apic_can_suppress_the_broadcast_of_its_eois(live: Comparison) -> None:
    agree(
        live, *new_vm(), *SEE, write(0, Reg.SVR, 0x1FF | SVR_DIRECTED_EOI), *SEE, write(0, Reg.SVR, 0xFFFF_FFFF), *SEE
    )


def test_the_pics_and_the_ioapic_are_absent(live: Comparison) -> None:
    ports: list[Op] = [["pio_read", 0, port, 1] for port in (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x40, 0x61)]
    agree(live, *new_vm(), *ports, ["mmio_read", 0, IOAPIC_BASE, 4], ["mmio_write", 0, IOAPIC_BASE, 4, 0])


def route(gsi: int, data: int, vcpu: int = 0) -> list[object]:
    return [gsi, "msi", LAPIC_BASE | vcpu << 12, data]


def routes(*entries: list[object]) -> Op:
    return ["set_gsi_routing", list(entries)]


@pytest.mark.parametrize("end", [EOI, ["msr_write", 0, Msr.X2APIC + (Reg.EOI >> 4), 0]], ids=["xAPIC", "x2APIC"])
@pytest.mark.parametrize("data", [LEVEL, LEVEL | 1 << 14, LEVEL | 1 << 16, LEVEL | 0x100, 0, 1 << 14])
@pytest.mark.parametrize(("gsi", "reserved"), [(5, 24), (23, 24), (24, 24), (0, 0), (4095, 4096)])
def test_the_eoi_of_a_reserved_gsis_interrupt_is_reported(
    live: Comparison, gsi: int, reserved: int, data: int, end: Op
) -> None:
    mode = [X2APIC] if end is not EOI else []
    ops: list[Op] = [
        *new_vm(reserved),
        *mode,
        routes(route(gsi, data | VECTOR)),
        ["irq_line", gsi, 1],
        ["irq_line", gsi, 1],
    ]
    agree(live, *ops, ["ack_lapic", 0], *SEE, end, *SEE, end, *SEE)


def test_the_eoi_is_reported_although_its_broadcast_is_suppressed(live: Comparison) -> None:
    """KVM: lapic.c kvm_ioapic_send_eoi does not check SVR."""
    ops: list[Op] = [*new_vm(), write(0, Reg.SVR, 0x1FF | SVR_DIRECTED_EOI), routes(route(5, LEVEL | VECTOR))]
    agree(live, *ops, ["irq_line", 5, 1], ["ack_lapic", 0], EOI, *SEE)


def test_each_of_several_eois_is_reported(live: Comparison) -> None:
    table = routes(route(5, LEVEL | 0x41), route(6, LEVEL | 0x51), route(7, LEVEL | 0x51), route(8, 0x61))
    lines: list[Op] = [["irq_line", gsi, 1] for gsi in (5, 6, 7, 8)]
    agree(live, *new_vm(), table, *lines, *SEE, *3 * [["ack_lapic", 0]], *3 * [EOI, *SEE])
    agree(live, *new_vm(), table, *lines, *3 * [["ack_lapic", 0]], *3 * [EOI], *SEE)
    agree(live, *new_vm(), table, *lines, *4 * [["take", 0]], *SEE)


@pytest.mark.parametrize("then", [[], [route(5, LEVEL | VECTOR, 1)], [route(5, VECTOR)], [route(5, LEVEL | 0x42)]])
@pytest.mark.parametrize("enters", [True, False])
def test_the_routes_change_while_a_vector_is_in_service(
    live: Comparison, enters: bool, then: list[list[object]]
) -> None:
    """The routes at the vCPU's last entry into the guest decide."""
    ops: list[Op] = [*new_vm(), routes(route(5, LEVEL | VECTOR)), ["irq_line", 5, 1], ["ack_lapic", 0]]
    ops += [routes(*then)]
    if enters:
        ops += [["pio_read", 0, 0xF4, 1]]
    again: list[Op] = [["signal_msi", LAPIC_BASE, VECTOR, 0], ["ack_lapic", 0], EOI, *SEE]
    agree(live, *ops, EOI, *SEE, *again, *again)


# KVM_INTERRUPT.

UNMASK, MASK = (write(1, Reg.LVT_LINT0, value) for value in (0x700, 0x1_0700))


@pytest.mark.parametrize("beginning", ["an irqchip and a vCPU", "a split irqchip and a vCPU"])
@pytest.mark.parametrize("vector", [0, 0x31, 255, 256, 0xFFFF_FFFF])
def test_a_vmms_pic_interrupts(live: Comparison, vector: int, beginning: str) -> None:
    interrupt: Op = ["interrupt", 0, vector]
    agree(live, *BEGINNINGS[beginning], interrupt, interrupt, ["take", 0], interrupt, ["take", 0], ["take", 0])


def test_a_vmms_pic_waits_for_lint0(live: Comparison) -> None:
    take: list[Op] = [["interrupt", 1, 0x20], ["take", 1]]
    disable: Op = ["msr_write", 1, Msr.APIC_BASE, LAPIC_BASE]
    agree(live, *new_vm(), *take, MASK, *take, UNMASK, *take, MASK, *take, *take, disable, *take)


def test_a_vmms_pic_comes_before_the_local_apic(live: Comparison) -> None:
    ops: list[Op] = [*new_vm(), UNMASK, ["signal_msi", LAPIC_BASE | 1 << 12, 0x91, 0], ["interrupt", 1, 0x20]]
    agree(live, *ops, ["take", 1], ["take", 1], ["take", 1])
