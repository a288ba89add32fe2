"""A VM's life: the order of creation, refused creations, accesses, acknowledging, and deletion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.ioapic import IoapicState
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Deadlines, VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.x86.board import PcBoard
from irqchipd.vm.x86.machine import MAX_VCPU_ID, X86Vm
from irqchipd.vm.x86.routing import DEFAULT_ROUTES, ChipId
from tests.vm.pc import EOI, MASKED, PRIMARY, SECONDARY, Pc, refused


class Ram:
    """A device that claims every access in its range."""

    def read(self, address: int, size: int) -> int:  # noqa: ARG002
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        pass


# The order of creation.


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda vm: vm.irq_line(1, True), "ENXIO"),
        (lambda vm: vm.get_irqchip(0), "ENXIO"),
        (lambda vm: vm.set_irqchip(0, bytes(16)), "ENXIO"),
        (lambda vm: vm.routing(), "ENXIO"),
        (lambda vm: vm.set_routing([]), "EINVAL"),
        (lambda vm: vm.signal_msi(0xFEE0_0000, 0x31), "EINVAL"),
        (lambda vm: vm.get_lapic(0), "EINVAL"),
        (lambda vm: vm.set_lapic(0, bytes(1024)), "EINVAL"),
        (lambda vm: vm.ack_interrupt(0), "ENXIO"),
    ],
)
def test_what_needs_an_irqchip_says_so(operation: Callable[[X86Vm], object], reason: str) -> None:
    vm = X86Vm("bare")
    vm.create_vcpu(0)
    with refused(reason):
        operation(vm)
    assert vm.describe().irqchip_mode == "none"


def test_an_error_does_not_suggest_a_creation_that_is_no_longer_possible() -> None:
    split, late = X86Vm("split"), X86Vm("late")
    split.enable_cap(121, args=[24])
    late.create_vcpu(0)
    for vm, reason in ((split, "its PICs, IOAPIC and PIT are the VMM's"), (late, "before the vCPUs: make a new VM")):
        for operation in (vm.create_pit, vm.get_pit, lambda vm=vm: vm.get_irqchip(ChipId.IOAPIC)):
            with pytest.raises(VmError) as caught:
                operation()
            assert caught.value.message.endswith(reason)


def test_an_irqchip_comes_before_the_vcpus() -> None:
    vm = X86Vm("late")
    vm.create_vcpu(0)
    with refused("EINVAL"):
        vm.create_irqchip()
    assert vm.describe().irqchip_mode == "none"


def test_a_second_irqchip_is_eexist_with_vcpus_or_without() -> None:
    vm = X86Vm("twice")
    vm.create_irqchip()
    with refused("EEXIST"):
        vm.create_irqchip()
    vm.create_vcpu(0)
    with refused("EEXIST"):
        vm.create_irqchip()


def test_a_creation_that_fails_half_way_leaves_nothing_and_can_be_repeated() -> None:
    vm = X86Vm("halves")
    vm._board.mmio.register(IOAPIC_BASE + 0x80, 0x10, Ram())
    with refused("EEXIST"):
        vm.create_irqchip()
    assert vm.describe().irqchip_mode == "none"
    with refused("ENXIO"):
        vm.irq_line(1, True)
    assert [port for port in range(0x10000) if vm._board.pio.find(port, 1)] == []
    vm._board.mmio.unregister(IOAPIC_BASE + 0x80)
    vm.create_irqchip()
    vm.create_vcpu(0)
    vm.irq_line(1, True)
    assert vm.ack_interrupt(0) == (0x01, True)


@pytest.mark.parametrize("port", [0x20, 0x21, 0xA1, 0x4D1])
def test_a_port_that_is_taken_prevents_the_irqchip_and_stays_taken(port: int) -> None:
    board = PcBoard(Agenda("board", VirtualClock(), Deadlines()), 1_000_000)
    ram = Ram()
    board.pio.register(port, 1, ram)
    with pytest.raises(VmError):
        board.add_irqchip()
    assert [port for port in range(0x10000) if board.pio.find(port, 1)] == [port]
    assert board.mmio.find(IOAPIC_BASE, 4) is None


# vCPUs.


def test_vcpus_are_listed_in_the_order_of_their_creation() -> None:
    vm = X86Vm("smp")
    vm.create_irqchip()
    for vcpu in (3, 0, MAX_VCPU_ID):
        vm.create_vcpu(vcpu)
    assert vm.describe().vcpus == [3, 0, MAX_VCPU_ID]
    assert [vm.get_lapic(vcpu).id >> 24 for vcpu in vm.describe().vcpus] == [3, 0, MAX_VCPU_ID & 0xFF]


@pytest.mark.parametrize("vcpu", [-1, MAX_VCPU_ID + 1, 1 << 32])
def test_a_vcpu_id_that_cannot_be_addressed_is_invalid(vcpu: int) -> None:
    vm = X86Vm("smp")
    with refused("EINVAL"):
        vm.create_vcpu(vcpu)
    assert vm.describe().vcpus == []


def test_a_vcpu_exists_once_and_the_vm_can_be_full() -> None:
    vm = X86Vm("full", max_vcpus=2)
    vm.create_vcpu(0)
    with refused("EEXIST"):
        vm.create_vcpu(0)
    vm.create_vcpu(1)
    with refused("EINVAL"):
        vm.create_vcpu(2)
    with refused("EINVAL"):  # KVM checks the count first
        vm.create_vcpu(0)
    assert vm.describe().vcpus == [0, 1]


def test_the_maximum_of_vcpus_all_get_interrupts() -> None:
    vm = X86Vm("big")
    vm.create_irqchip()
    for vcpu in range(MAX_VCPUS):
        vm.create_vcpu(vcpu)
        vm.mmio_write(vcpu, LAPIC_BASE + Reg.SVR, 4, 0x1FF)
    assert vm.signal_msi(0xFEEF_F000, 0x31) == MAX_VCPUS
    assert {vm.ack_interrupt(vcpu) for vcpu in range(MAX_VCPUS)} == {(0x31, False)}


@pytest.mark.parametrize(
    "operation",
    [
        lambda vm: vm.pio_read(7, 0x20, 1),
        lambda vm: vm.pio_write(7, 0x20, 1, 0x11),
        lambda vm: vm.mmio_read(7, IOAPIC_BASE, 4),
        lambda vm: vm.mmio_write(7, IOAPIC_BASE, 4, 1),
        lambda vm: vm.ack_interrupt(7),
        lambda vm: vm.get_lapic(7),
        lambda vm: vm.set_lapic(7, bytes(1024)),
    ],
)
def test_a_vcpu_that_does_not_exist_does_nothing(operation: Callable[[X86Vm], object]) -> None:
    pc = Pc()
    before = pc.state()
    with refused("ENOENT"):
        operation(pc.vm)
    assert pc.state() == before


# Guest accesses.


@pytest.mark.parametrize(
    ("port", "size"),
    [(0x1F, 1), (0x22, 1), (0x21, 2), (0x20, 4), (0x9F, 1), (0xA2, 1), (0x4CF, 1), (0x4D2, 1), (0xFFFF, 4)],
)
def test_unclaimed_ports(port: int, size: int) -> None:
    pc = Pc()
    before = pc.state()
    assert pc.vm.pio_read(0, port, size) is None
    assert not pc.vm.pio_write(0, port, size, 0x11)
    assert pc.state() == before


@pytest.mark.parametrize(
    "address", [0, 0xFEBF_FFFF, 0xFEC0_0100, 0xFEDF_FFFF, 0xFEE0_1000, 0xFFFF_FFFF_FFFF_FFFF], ids=hex
)
def test_unclaimed_addresses(address: int) -> None:
    pc = Pc()
    before = pc.state()
    assert pc.vm.mmio_read(0, address, 1) is None
    assert not pc.vm.mmio_write(0, address, 1, 0x11)
    assert pc.state() == before


def test_an_access_that_leaves_the_ioapic_is_unclaimed() -> None:
    pc = Pc()
    assert pc.vm.mmio_read(0, IOAPIC_BASE + 0xFC, 4) == 0
    assert pc.vm.mmio_read(0, IOAPIC_BASE + 0xFD, 4) is None


def test_the_claimed_ports_are_a_pcs() -> None:
    pc = Pc(pit=True)
    claimed = [port for port in range(0x500) if pc.vm.pio_read(0, port, 1) is not None]
    assert claimed == [0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xA0, 0xA1, 0x4D0, 0x4D1]


def test_an_ioapic_moved_by_a_restored_state_is_unreachable() -> None:
    pc = Pc()
    state = pc.vm.get_irqchip(ChipId.IOAPIC)
    assert isinstance(state, IoapicState)
    pc.vm.set_irqchip(ChipId.IOAPIC, replace(state, base_address=0xFED0_0000))
    assert [pc.vm.mmio_read(0, address, 4) for address in (IOAPIC_BASE, 0xFED0_0000)] == [None, None]
    pc.vm.set_irqchip(ChipId.IOAPIC, replace(state, base_address=IOAPIC_BASE + 0x10))
    assert [pc.vm.mmio_read(0, IOAPIC_BASE + offset, 4) for offset in (0, 0x10)] == [None, 0]


def test_without_an_irqchip_nothing_claims_anything() -> None:
    vm = X86Vm("bare")
    vm.create_vcpu(0)
    assert vm.pio_read(0, 0x20, 1) is None
    assert vm.mmio_read(0, IOAPIC_BASE, 4) is None
    assert vm.mmio_read(0, LAPIC_BASE + Reg.ID, 4) is None


def test_every_vcpu_sees_its_own_local_apic() -> None:
    pc = Pc(3)
    assert [pc.lapic_read(vcpu, Reg.ID) for vcpu in range(3)] == [0, 1 << 24, 2 << 24]


@pytest.mark.parametrize(
    "operation",
    [
        lambda vm: vm.pio_read(0, 0x20, 8),
        lambda vm: vm.pio_read(0, 0x20, 0),
        lambda vm: vm.pio_read(0, 0x10000, 1),
        lambda vm: vm.pio_write(0, 0x20, 3, 0x11),
        lambda vm: vm.pio_write(0, 0x20, 1, 0x111),
        lambda vm: vm.pio_write(0, 0x20, 1, -1),
        lambda vm: vm.pio_write(0, 0x10021, 1, 0x11),
        lambda vm: vm.mmio_read(0, IOAPIC_BASE, 16),
        lambda vm: vm.mmio_read(0, 1 << 64, 4),
        lambda vm: vm.mmio_write(0, IOAPIC_BASE, 3, 1),
        lambda vm: vm.mmio_write(0, IOAPIC_BASE, 2, 0x10000),
        lambda vm: vm.mmio_write(0, IOAPIC_BASE, 4, -1),
    ],
)
def test_sizes_and_values_that_cannot_be_change_nothing(operation: Callable[[X86Vm], object]) -> None:
    pc = Pc()
    before = pc.state()
    with refused("EINVAL"):
        operation(pc.vm)
    assert pc.state() == before


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda vm: vm.pio_read(0, 0x10020, 3), "an access of 3 bytes is invalid: use 1, 2, 4 bytes"),
        (lambda vm: vm.mmio_write(0, 1 << 64, 5, 1 << 64), "an access of 5 bytes is invalid: use 1, 2, 4, 8 bytes"),
        (lambda vm: vm.pio_write(0, 0x10020, 1, 0x111), "port 0x10020 is out of range: use 0 to 0xffff"),
        (
            lambda vm: vm.pio_write(0, 0xFFFF, 1, 0x111),
            "value 0x111 does not fit into an access of 1 bytes: use 0 to 0xff, or more bytes",
        ),
    ],
)
def test_an_invalid_access_is_refused_with_the_reason(operation: Callable[[X86Vm], object], message: str) -> None:
    with pytest.raises(VmError, match=message):
        operation(Pc().vm)


# State.


@pytest.mark.parametrize(
    "operation",
    [
        lambda vm: vm.get_irqchip(3),
        lambda vm: vm.set_irqchip(3, bytes(16)),
        lambda vm: vm.set_irqchip(-1, bytes(16)),
        lambda vm: vm.set_irqchip(ChipId.PIC_PRIMARY, bytes(15)),
        lambda vm: vm.set_irqchip(ChipId.PIC_SECONDARY, bytes(17)),
        lambda vm: vm.set_irqchip(ChipId.IOAPIC, bytes(16)),
        lambda vm: vm.set_irqchip(ChipId.PIC_PRIMARY, IoapicState()),
        lambda vm: vm.set_irqchip(ChipId.IOAPIC, vm.get_irqchip(ChipId.PIC_PRIMARY)),
        lambda vm: vm.set_lapic(0, bytes(1023)),
    ],
)
def test_invalid_states_change_nothing(operation: Callable[[X86Vm], object]) -> None:
    pc = Pc()
    pc.line(1, 1)
    before = pc.state()
    with refused("EINVAL"):
        operation(pc.vm)
    assert pc.state() == before


def test_a_saved_state_is_a_copy() -> None:
    pc = Pc()
    pic, registers = pc.vm.get_irqchip(ChipId.PIC_PRIMARY), pc.vm.get_lapic(0)
    before = pic.pack(), registers.pack()
    pc.line(1, 1)
    pc.vm.signal_msi(0xFEE0_0000, 0x31)
    assert (pic.pack(), registers.pack()) == before
    assert isinstance(registers, LapicRegisters)
    registers.irr = 0
    assert pc.vm.ack_interrupt(0, pic=False) == (0x31, False)


# Acknowledging.


def test_the_pic_comes_before_the_local_apic() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.vm.signal_msi(0xFEE0_0000, 0xF1)
    pc.line(12, 1)
    assert pc.vm.ack_interrupt(0) == (SECONDARY + 4, True)
    assert pc.vm.ack_interrupt(0) == (0xF1, False)
    assert pc.vm.ack_interrupt(0) is None


@pytest.mark.parametrize(
    ("pic", "lapic", "taken"),
    [
        (True, True, (PRIMARY + 1, True)),
        (False, True, (0x31, False)),
        (True, False, (PRIMARY + 1, True)),
        (False, False, None),
    ],
)
def test_either_source_may_be_acknowledged_alone(pic: bool, lapic: bool, taken: tuple[int, bool] | None) -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.vm.signal_msi(0xFEE0_0000, 0x31)
    pc.line(1, 1)
    assert pc.vm.ack_interrupt(0, pic=pic, lapic=lapic) == taken


def test_only_vcpus_wired_to_the_pic_take_its_interrupts() -> None:
    pc = Pc(2)
    pc.initialise_pics()
    pc.line(1, 1)
    assert pc.take(1) is None
    pc.lapic_write(1, Reg.LVT_LINT0, 0x700)
    pc.lapic_write(0, Reg.LVT_LINT0, MASKED | 0x700)
    assert pc.takers() == {1: PRIMARY + 1}


def test_vector_0_is_a_vector() -> None:
    pc = Pc()
    pc.line(0, 1)  # from an uninitialised PIC
    assert pc.vm.ack_interrupt(0) == (0x00, True)


def test_the_pic_ignores_the_task_priority() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.lapic_write(0, Reg.TPR, 0xF0)
    pc.line(1, 1)
    assert pc.take() == PRIMARY + 1


def test_a_withdrawn_interrupt_is_not_acknowledged() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.out(0x4D0, 1 << 5)
    pc.line(5, 1, 0)
    assert pc.take() is None
    pc.line(5, 1)
    assert pc.take() == PRIMARY + 5
    pc.out(0x20, EOI)
    assert pc.take() == PRIMARY + 5


# Deletion.


def test_a_deleted_vm_refuses_everything_and_notifies_its_holders_once() -> None:
    told: list[str] = []
    vm = X86Vm("short")
    vm.create_irqchip()
    vm.create_vcpu(0)
    source = vm.open_source("device", lambda: told.append("device"))
    gone = vm.open_source("gone", lambda: told.append("gone"))
    vm.open_source("deaf")
    vm.close_source(gone)
    vm.delete()
    assert told == ["device"]
    operations: list[Callable[[], object]] = [
        vm.create_irqchip,
        lambda: vm.create_vcpu(1),
        lambda: vm.irq_line(1, True, source),
        lambda: vm.open_source("late"),
        lambda: vm.signal_msi(0xFEE0_0000, 0x31),
        lambda: vm.set_routing(DEFAULT_ROUTES),
        lambda: vm.pio_read(0, 0x20, 1),
        lambda: vm.mmio_write(0, IOAPIC_BASE, 4, 0),
        lambda: vm.ack_interrupt(0),
        lambda: vm.subscribe([0], print),
        lambda: vm.get_irqchip(0),
        lambda: vm.set_lapic(0, bytes(1024)),
        vm.describe,
        vm.delete,
    ]
    for operation in operations:
        with refused("ENOENT"):
            operation()
    vm.close_source(source)
    assert told == ["device"]


def test_a_failed_operation_leaves_the_vm_usable() -> None:
    pc = Pc()
    with refused("EINVAL"):
        pc.vm.set_routing([PinRoute(0, 9, 0)])
    pc.line(1, 1)
    assert pc.take() == 0x01
