"""The split irqchip: local APICs here, PICs and IOAPIC in the VMM."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from irqchipd.chips.lapic_registers import SVR_DIRECTED_EOI, VERSION, VERSION_DIRECTED_EOI, Reg
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.events import InterruptPending, IoapicEoi
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.vcpu_state import MpState, Outcome, Signal
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from tests.vm.pc import MSI, Ear, Pc, refused

SPLIT_IRQCHIP = 121
RESERVED = 24
LEVEL = 1 << 15  # in an MSI's data
LOGICAL, EXTINT = 1 << 2, 0x700
SVR_ENABLED = 0x1FF


class SplitPc(Pc):
    """A VM with a split irqchip, all of whose local APICs are enabled."""

    def __init__(self, vcpus: int = 1, reserved: int = RESERVED) -> None:
        self.clock = VirtualClock()
        self.vm = X86Vm("split", clock=self.clock)
        self.vm.enable_cap(SPLIT_IRQCHIP, args=[reserved])
        for vcpu in range(vcpus):
            self.vm.create_vcpu(vcpu)
            self.lapic_write(vcpu, Reg.SVR, SVR_ENABLED)
        self.start(*range(vcpus))


@pytest.fixture
def pc() -> SplitPc:
    return SplitPc(2)


def route(gsi: int, vector: int, *, vcpu: int = 0, level: bool = True) -> MsiRoute:
    return MsiRoute(gsi, MSI | vcpu << 12, (LEVEL | 0x4000 if level else 0) | vector)


# Enabling it.


def test_an_irqchip_is_split_once_and_cannot_become_full() -> None:
    vm = X86Vm("vm")
    assert vm.describe().irqchip_mode == "none"
    vm.enable_cap(SPLIT_IRQCHIP, 0, [24])
    assert vm.describe().irqchip_mode == "split"
    with refused("EEXIST"):
        vm.enable_cap(SPLIT_IRQCHIP, 0, [24])
    with refused("EEXIST"):
        vm.create_irqchip()


def test_splitting_comes_before_the_vcpus_and_excludes_a_full_irqchip() -> None:
    vm = X86Vm("vm")
    vm.create_vcpu(0)
    with refused("EEXIST"):  # with a full irqchip it is EINVAL
        vm.enable_cap(SPLIT_IRQCHIP)
    vm = X86Vm("vm")
    vm.create_irqchip()
    with refused("EEXIST"):
        vm.enable_cap(SPLIT_IRQCHIP)
    assert vm.describe().irqchip_mode == "full"


@pytest.mark.parametrize("args", [[], [0], [4096], [24, 1, 2, 3]])
def test_accepted_arguments(args: list[int]) -> None:
    vm = X86Vm("vm")
    vm.enable_cap(SPLIT_IRQCHIP, 0, args)
    assert vm.describe().irqchip_mode == "split"


@pytest.mark.parametrize(
    ("capability", "flags", "args"),
    [
        (SPLIT_IRQCHIP, 0, [4097]),
        (SPLIT_IRQCHIP, 0, [1 << 64 - 1]),
        (SPLIT_IRQCHIP, 1, [24]),
        (SPLIT_IRQCHIP, 0, [24, 0, 0, 0, 0]),
        (0, 0, []),
        (120, 0, []),
        (1 << 31, 0, []),
    ],
)
def test_refused_arguments_change_nothing(capability: int, flags: int, args: list[int]) -> None:
    vm = X86Vm("vm")
    with refused("EINVAL"):
        vm.enable_cap(capability, flags, args)
    assert vm.describe().irqchip_mode == "none"
    vm.create_irqchip()


def test_of_several_errors_the_argument_comes_first() -> None:
    vm = X86Vm("vm")
    vm.create_irqchip()
    with refused("EINVAL"):
        vm.enable_cap(SPLIT_IRQCHIP, 0, [4097])
    with refused("EINVAL"):
        vm.enable_cap(122)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda vm: vm.get_irqchip(ChipId.IOAPIC), "ENXIO"),
        (lambda vm: vm.set_irqchip(ChipId.PIC_PRIMARY, bytes(16)), "ENXIO"),
        (lambda vm: vm.create_pit(), "ENOENT"),
        (lambda vm: vm.get_pit(), "ENXIO"),
        (lambda vm: vm.set_pit(bytes(112)), "ENXIO"),
        (lambda vm: vm.set_pit_reinject(False), "ENXIO"),
        (lambda vm: vm.set_routing([PinRoute(0, ChipId.IOAPIC, 0)]), "EINVAL"),
        (lambda vm: vm.set_routing([route(1, 0x31), PinRoute(0, ChipId.PIC_PRIMARY, 0)]), "EINVAL"),
        (lambda vm: vm.open_source("device", resampled=[4]), "EINVAL"),
    ],
)
def test_operations_on_the_vmms_chips_are_refused(
    pc: SplitPc, operation: Callable[[X86Vm], object], reason: str
) -> None:
    pc.vm.set_routing([route(4, 0x34)])
    with refused(reason):
        operation(pc.vm)
    assert pc.vm.routing() == (route(4, 0x34),)


@pytest.mark.parametrize("port", [0x20, 0x21, 0x40, 0x43, 0x61, 0xA0, 0x4D0])
def test_ports_and_the_ioapics_page_are_unclaimed(pc: SplitPc, port: int) -> None:
    assert pc.vm.pio_read(0, port, 1) is None
    assert not pc.vm.pio_write(0, port, 1, 0)
    assert pc.vm.mmio_read(0, 0xFEC0_0000, 4) is None
    assert pc.vm.mmio_read(0, 0xFEE0_0020, 4) == 0


# Local APICs.


def test_its_local_apics_have_directed_eoi(pc: SplitPc) -> None:
    assert pc.lapic_read(0, Reg.VERSION) == VERSION | VERSION_DIRECTED_EOI
    pc.lapic_write(0, Reg.SVR, SVR_ENABLED | SVR_DIRECTED_EOI)
    assert pc.lapic_read(0, Reg.SVR) == SVR_ENABLED | SVR_DIRECTED_EOI
    whole = Pc()
    assert whole.lapic_read(0, Reg.VERSION) == VERSION
    whole.lapic_write(0, Reg.SVR, SVR_ENABLED | SVR_DIRECTED_EOI)
    assert whole.lapic_read(0, Reg.SVR) == SVR_ENABLED


def test_neither_a_reset_nor_a_restored_state_changes_the_version(pc: SplitPc) -> None:
    state = Pc().vm.get_lapic(0)
    assert state.version == VERSION
    pc.vm.set_lapic(0, state)
    assert pc.lapic_read(0, Reg.VERSION) == VERSION | VERSION_DIRECTED_EOI
    pc.vm.reset()
    assert pc.lapic_read(0, Reg.VERSION) == VERSION | VERSION_DIRECTED_EOI
    pc.ipi(1, 0x4500, destination=0)
    assert pc.lapic_read(0, Reg.VERSION) == VERSION | VERSION_DIRECTED_EOI


def test_ipis_timers_and_signals_work_as_in_a_full_irqchip(pc: SplitPc) -> None:
    pc.msi(1, 0x31)
    pc.ipi(0, 0x4041, destination=1)
    pc.count_apic(0, 0x51, 100)
    pc.vm.advance(100)
    assert pc.serve_all(1) == [0x41, 0x31]
    assert pc.serve_all(0) == [0x51]
    pc.ipi(0, 0x4400, destination=1)
    assert pc.vm.take_signal(1) == Signal(DeliveryMode.NMI)


# Lines.


def test_lines_are_routed_to_msis_alone_and_at_first_nowhere(pc: SplitPc) -> None:
    assert pc.vm.routing() == ()
    assert pc.line(4, 1, 0, 1) == [-1, -1, -1]
    pc.vm.set_routing([route(4, 0x34, vcpu=1), route(30, 0x41, level=False)])
    assert pc.line(4, 1, 0) == [1, -1]
    assert pc.line(30, 1, 0) == [1, -1]
    assert pc.takers() == {0: 0x41, 1: 0x34}
    assert pc.line(5, 1) == [-1]
    pc.vm.set_routing([route(4, 0x34, vcpu=9)])
    assert pc.line(4, 0, 1) == [-1, 0]


def test_a_sources_levels_are_listed_and_dropped(pc: SplitPc) -> None:
    source = pc.vm.open_source("device")
    pc.line(4, 1, source=source)
    assert pc.vm.describe().sources[0].asserted == [4]
    pc.vm.close_source(source)
    assert pc.vm.describe().sources == []


# EOIs for the VMM's IOAPIC.


def eois(ear: Ear) -> list[IoapicEoi]:
    return [event for event in ear.heard() if isinstance(event, IoapicEoi)]


def serve(pc: SplitPc, gsi: int, vcpu: int = 0) -> None:
    assert pc.line(gsi, 1, 0)[0] == 1
    assert pc.take(vcpu) is not None
    pc.eoi(vcpu)


def test_an_eoi_of_a_reserved_level_route_is_reported(pc: SplitPc) -> None:
    ear, other = Ear(pc.vm, [0]), Ear(pc.vm, [1])
    pc.vm.set_routing([route(4, 0x34), route(5, 0x45, vcpu=1)])
    assert pc.line(4, 1) == [1]
    assert pc.take() == 0x34
    assert eois(ear) == []
    pc.eoi()
    assert eois(ear) == [IoapicEoi(0, 0x34)]
    serve(pc, 5, 1)
    assert (eois(ear), eois(other)) == ([], [IoapicEoi(1, 0x45)])
    pc.eoi()  # with nothing in service
    assert eois(ear) == []


def test_an_eoi_is_reported_whatever_sent_the_vector(pc: SplitPc) -> None:
    """KVM knows the vector alone, not what sent it."""
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(4, 0x34)])
    pc.msi(0, 0x34)
    assert pc.serve_all() == [0x34]
    assert eois(ear) == [IoapicEoi(0, 0x34)]


def test_eois_of_edges_and_of_unreserved_gsis_are_not_reported() -> None:
    pc = SplitPc(reserved=8)
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(7, 0x37), route(8, 0x48), route(6, 0x56, level=False)])
    for gsi in (8, 6):
        serve(pc, gsi)
    assert eois(ear) == []
    serve(pc, 7)
    assert eois(ear) == [IoapicEoi(0, 0x37)]


def test_without_reserved_gsis_no_eoi_is_reported() -> None:
    pc = SplitPc(reserved=0)
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(0, 0x37)])
    serve(pc, 0)
    assert eois(ear) == []


def test_an_eoi_of_a_vcpu_that_is_no_destination_is_not_reported(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [1])
    pc.vm.set_routing([route(4, 0x34)])
    assert pc.take(1) is None  # it scans the routes now; a vector it already had would count
    pc.msi(1, 0x34)
    assert pc.serve_all(1) == [0x34]
    assert eois(ear) == []


def test_eois_of_all_vcpus_of_a_logical_route_are_reported(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [0, 1])
    for vcpu in (0, 1):
        pc.lapic_write(vcpu, Reg.LDR, 1 << 24 + vcpu)
    pc.vm.set_routing([MsiRoute(4, MSI | 3 << 12 | LOGICAL, LEVEL | 0x4000 | 0x34)])
    assert pc.line(4, 1) == [2]
    for vcpu in (0, 1):
        assert pc.serve_all(vcpu) == [0x34]
    assert eois(ear) == [IoapicEoi(0, 0x34), IoapicEoi(1, 0x34)]


def test_eois_are_reported_despite_directed_eoi(pc: SplitPc) -> None:
    """KVM: lapic.c kvm_ioapic_send_eoi; the VMM is notified, and has to check SVR itself."""
    ear = Ear(pc.vm, [0])
    pc.lapic_write(0, Reg.SVR, SVR_ENABLED | SVR_DIRECTED_EOI)
    pc.vm.set_routing([route(4, 0x34)])
    serve(pc, 4)
    assert eois(ear) == [IoapicEoi(0, 0x34)]


def test_replaced_routes_are_scanned_again(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(4, 0x34)])
    serve(pc, 4)
    assert eois(ear) == [IoapicEoi(0, 0x34)]
    pc.vm.set_routing([route(4, 0x44)])
    serve(pc, 4)
    pc.msi(0, 0x34)
    assert pc.serve_all() == [0x34]
    assert eois(ear) == [IoapicEoi(0, 0x44)]
    pc.vm.set_routing([])
    pc.msi(0, 0x44)
    assert pc.serve_all() == [0x44]
    assert eois(ear) == []


def test_an_interrupt_rerouted_in_service_is_reported_once(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(4, 0x34)])
    pc.line(4, 1)
    assert pc.take() == 0x34
    pc.vm.set_routing([route(4, 0x34, vcpu=1)])
    pc.eoi()
    assert eois(ear) == [IoapicEoi(0, 0x34)]
    assert pc.take() is None
    pc.msi(0, 0x34)
    assert pc.serve_all() == [0x34]
    assert eois(ear) == []


def test_a_vcpu_that_gets_the_destinations_id_scans_the_routes(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [1])
    pc.vm.set_routing([route(4, 0x34, vcpu=7)])
    pc.lapic_write(1, Reg.ID, 7 << 24)
    serve(pc, 4, 1)
    assert eois(ear) == [IoapicEoi(1, 0x34)]


def test_a_full_irqchip_reports_no_such_eoi() -> None:
    pc = Pc()
    ear = Ear(pc.vm, [0])
    pc.vm.set_routing([route(4, 0x34)])
    pc.line(4, 1)
    assert pc.serve_all() == [0x34]
    assert eois(ear) == []


# The VMM's PIC.


def test_a_vector_of_the_vmm_s_pic_goes_through_lint0(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [0])
    pc.vm.interrupt(0, 0x08)
    assert ear.heard() == [InterruptPending(0)]
    assert pc.vm.ack_interrupt(0, pic=False) is None
    assert pc.vm.ack_interrupt(0) == (0x08, True)
    assert pc.vm.ack_interrupt(0) is None
    assert pc.vm.get_lapic(0).isr == 0


def test_the_vector_waits_until_lint0_is_unmasked(pc: SplitPc) -> None:
    ear = Ear(pc.vm, [1])
    pc.vm.interrupt(1, 0x08)  # its LINT0 is masked
    assert ear.heard() == []
    assert pc.vm.ack_interrupt(1) is None
    pc.lapic_write(1, Reg.LVT_LINT0, EXTINT)
    assert ear.heard() == [InterruptPending(1)]
    assert pc.vm.ack_interrupt(1) == (0x08, True)


def test_one_vector_waits_at_a_time(pc: SplitPc) -> None:
    pc.vm.interrupt(0, 0x08)
    for vector in (0x08, 0x09):
        with refused("EEXIST"):
            pc.vm.interrupt(0, vector)
    pc.vm.interrupt(1, 0x08)
    assert pc.take() == 0x08
    pc.vm.interrupt(0, 0x09)
    assert pc.take() == 0x09


def test_the_vector_is_taken_before_the_local_apics(pc: SplitPc) -> None:
    pc.msi(0, 0xF1)
    pc.vm.interrupt(0, 0x00)
    assert [pc.take() for _ in range(3)] == [0x00, 0xF1, None]


def test_the_vector_ends_a_halt(pc: SplitPc) -> None:
    outcomes: list[Outcome] = []
    pc.vm.halt(0, outcomes.append)
    pc.vm.interrupt(0, 0x08)
    assert outcomes == [(0x08, True)]
    pc.vm.interrupt(0, 0x09)
    pc.vm.halt(0, outcomes.append)
    assert outcomes == [(0x08, True), (0x09, True)]


def test_a_reset_clears_the_vector_but_init_does_not(pc: SplitPc) -> None:
    """KVM: x86.c kvm_vcpu_reset clears the injected interrupt, but not the one waiting to be injected."""
    pc.lapic_write(1, Reg.LVT_LINT0, EXTINT)
    pc.vm.interrupt(1, 0x08)
    pc.ipi(0, 0x4500, destination=1)
    assert pc.vm.take_signal(1) == Signal(DeliveryMode.INIT)
    with refused("EEXIST"):
        pc.vm.interrupt(1, 0x09)
    pc.vm.reset()
    pc.vm.interrupt(1, 0x0A)
    pc.vm.set_mp_state(1, MpState.RUNNABLE)
    pc.lapic_write(1, Reg.SVR, SVR_ENABLED)
    pc.lapic_write(1, Reg.LVT_LINT0, EXTINT)
    assert pc.take(1) == 0x0A


@pytest.mark.parametrize("vector", [-1, 256, 1 << 31])
def test_an_invalid_vector_is_refused(pc: SplitPc, vector: int) -> None:
    with refused("EINVAL"):
        pc.vm.interrupt(0, vector)
    assert pc.take() is None


def test_only_a_split_irqchip_takes_the_vmms_vectors() -> None:
    bare, whole = X86Vm("bare"), Pc().vm
    with refused("ENOENT"):
        whole.interrupt(5, 0x08)
    bare.create_vcpu(0)
    for vm in (bare, whole):
        with refused("ENXIO"):
            vm.interrupt(0, 0x08)
        with refused("EINVAL"):  # the vector is checked first
            vm.interrupt(0, 256)
