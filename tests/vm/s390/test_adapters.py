"""Adapter routes, and guest memory that a client shares or a Session answers for."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from irqchipd.chips.s390.adapters import Request, modify_request
from irqchipd.chips.s390.flic import Group
from irqchipd.chips.s390.irq import IRQ_SIZE, Irq, Kind, pack, unpack_all
from irqchipd.observe.observer import Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.regions import Space
from irqchipd.vm.routing import S390Route
from tests.vm.s390.machine import ALL, INDICATOR, MEMORY, ROUTE, SUMMARY, WOKEN, Machine, Owner, adapter_irq, refused


@pytest.fixture
def machine() -> Machine:
    machine = Machine(ais=True)
    machine.register()
    return machine


@pytest.fixture
def sharing(machine: Machine) -> Machine:
    machine.share()
    machine.vm.set_routing([ROUTE])
    return machine


def test_a_route_needs_memory(machine: Machine) -> None:
    # kvm_set_routing_entry: EFAULT.
    assert refused(lambda: machine.vm.set_routing([ROUTE])) == errno.EFAULT
    machine.share()
    machine.vm.set_routing([ROUTE])
    for wrong in (replace(ROUTE, indicator_address=MEMORY), replace(ROUTE, summary_address=MEMORY)):
        assert refused(lambda wrong=wrong: machine.vm.set_routing([wrong])) == errno.EFAULT  # type: ignore[misc]
    assert machine.vm.routing() == (ROUTE,)


@pytest.mark.parametrize(
    "route",
    [
        replace(ROUTE, gsi=4096),
        replace(ROUTE, flags=1),
        replace(ROUTE, summary_offset=4096 * 8),
        replace(ROUTE, indicator_offset=4096 * 8),
    ],
)
def test_wrong_routes(sharing: Machine, route: S390Route) -> None:
    assert refused(lambda: sharing.vm.set_routing([route])) == errno.EINVAL
    assert refused(lambda: sharing.vm.set_routing([ROUTE, ROUTE])) == errno.EINVAL
    assert sharing.vm.routing() == (ROUTE,)


def test_creating_the_irqchip_again_keeps_routes(sharing: Machine) -> None:
    # Linux 6.11 and later: the empty table is there from the VM's creation.
    sharing.vm.create_irqchip()
    assert sharing.vm.routing() == (ROUTE,)


def test_raising_a_gsi_sets_bits_and_interrupts_once(sharing: Machine) -> None:
    sharing.add_vcpus(ALL)
    ended = sharing.halt(0)
    assert sharing.vm.irq_line(5, True) == 1
    assert (sharing.memory.bytes[INDICATOR], sharing.memory.bytes[SUMMARY]) == (0x10, 0x40)
    assert ended == [WOKEN]
    assert sharing.vm.take_irq(0) == adapter_irq(3)
    assert sharing.vm.irq_line(5, False) == 0
    assert sharing.vm.irq_line(5, True) == 0  # the summary is set
    assert sharing.vm.take_irq(0) is None
    sharing.memory.bytes[SUMMARY] = 0
    assert sharing.vm.irq_line(5, True) == 1
    assert sharing.vm.take_irq(0) == adapter_irq(3)


def test_an_irqfd_raises_a_gsi(sharing: Machine) -> None:
    assert sharing.source is not None
    sharing.vm.trigger(sharing.vm.add_irqfd(sharing.source, 5))
    assert unpack_all(sharing.pending()) == [adapter_irq(3)]


def test_without_its_memory_a_gsi_raises_nothing(sharing: Machine) -> None:
    sharing.drop_memory()
    assert sharing.vm.irq_line(5, True) == -1
    assert sharing.pending() == b""


def test_memory_is_not_registered_twice(sharing: Machine) -> None:
    assert sharing.source is not None
    with pytest.raises(VmError) as error:
        sharing.vm.register_region(sharing.source, Space.MEMORY, MEMORY - 1, 2, print)
    assert error.value.number == errno.EEXIST
    with pytest.raises(VmError) as error:
        sharing.vm.register_region(sharing.source, Space.MEMORY, MEMORY, 2, print, doorbell=True)
    assert error.value.number == errno.EINVAL


def test_an_observer_sees_injections_and_deliveries(sharing: Machine) -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[object, ...]] = []

        def kvm_set_irq(self, *fields: int) -> None:
            self.seen.append(("set", *fields))

        def kvm_s390_inject_vm(self, *fields: int) -> None:
            self.seen.append(("vm", *fields))

        def kvm_s390_inject_vcpu(self, *fields: int) -> None:
            self.seen.append(("vcpu", *fields))

        def kvm_s390_deliver_interrupt(self, *fields: int) -> None:
            self.seen.append(("deliver", *fields))

    recorder = Recorder()
    sharing.vm.attach(recorder)
    sharing.add_vcpus(ALL)
    sharing.vm.irq_line(5, True)
    sharing.vm.s390_interrupt(Kind.SERVICE, 0x1000, 0)
    sharing.vm.s390_irq(0, pack(Irq(Kind.EMERGENCY, 0)))
    for _ in range(3):
        sharing.vm.take_irq(0)
    assert recorder.seen == [
        ("set", 5, 1, 0),
        ("vm", Kind.IO_ADAPTER, 0, 0x9800_0000),
        ("vm", Kind.SERVICE, 0x1000, 0),
        ("vcpu", 0, Kind.EMERGENCY, 0, 0),
        ("deliver", 0, Kind.EMERGENCY, 0, 0),
        ("deliver", 0, Kind.SERVICE, 0x1000, 0),
        ("deliver", 0, Kind.IO_ADAPTER, 0, 0x9800_0000),
    ]


# Memory that a Session answers for.


@pytest.fixture
def owner(machine: Machine) -> Owner:
    owner = Owner(machine.vm)
    machine.vm.set_routing([ROUTE])
    return owner


def test_the_owner_sets_the_indicator_then_the_summary(machine: Machine, owner: Owner) -> None:
    machine.add_vcpus(ALL)
    ended = machine.halt(0)
    assert machine.vm.irq_line(5, True) == 1
    assert ended == []
    assert owner.answer() == [(INDICATOR, 0x10), (SUMMARY, 0x40)]
    assert ended == [WOKEN]
    assert machine.vm.take_irq(0) == adapter_irq(3)


def test_a_summary_that_the_owner_had_set_coalesces(machine: Machine, owner: Owner) -> None:
    owner.bytes[SUMMARY] = 0x40
    machine.vm.irq_line(5, True)
    assert len(owner.answer()) == 2
    assert machine.pending() == b""
    owner.bytes[SUMMARY] = 0xBF
    machine.vm.irq_line(5, True)
    owner.answer()
    assert len(machine.pending()) == IRQ_SIZE


def test_a_masked_adapter_does_not_interrupt(machine: Machine, owner: Owner) -> None:
    machine.set_attr(Group.ADAPTER_MODIFY, 0, modify_request(1, Request.MASK, mask=1))
    machine.vm.irq_line(5, True)
    assert len(owner.answer()) == 2
    assert machine.pending() == b""


def test_an_owner_that_leaves_has_no_answer(machine: Machine, owner: Owner) -> None:
    machine.vm.irq_line(5, True)
    machine.vm.close_source(owner.source)
    assert machine.pending() == b""
    assert machine.vm.irq_line(5, True) == -1


def test_a_deleted_vm_ends_what_waits(machine: Machine, owner: Owner) -> None:
    machine.vm.irq_line(5, True)
    machine.vm.delete()
    assert len(owner.events) == 1


def test_a_low_level_and_an_unknown_adapter_ask_no_owner(machine: Machine, owner: Owner) -> None:
    machine.vm.set_routing([replace(ROUTE, adapter=2)])
    assert (machine.vm.irq_line(5, True), machine.vm.irq_line(5, False)) == (-1, 0)
    assert owner.events == []


def test_a_snapshot_interrupts_for_what_is_on_its_way(machine: Machine, owner: Owner) -> None:
    machine.vm.irq_line(5, True)
    state = machine.vm.save()
    assert state.s390 is not None
    assert len(state.s390.flic.floating.interrupts) == 1
    assert machine.pending() == b""
    owner.answer()
    assert len(machine.pending()) == IRQ_SIZE
