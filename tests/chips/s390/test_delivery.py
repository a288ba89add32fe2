"""What a vCPU takes, by its masks, and in which order. Source: interrupt.c deliverable_irqs, enum irq_types."""

from __future__ import annotations

from dataclasses import replace

import pytest

from irqchipd.chips.s390.delivery import deliverable_of, has_interrupt, take
from irqchipd.chips.s390.floating import FloatingInterrupts
from irqchipd.chips.s390.irq import External, Io, Irq, Kind, MachineCheck, Program, word_of
from irqchipd.chips.s390.local import LocalInterrupts
from irqchipd.chips.s390.pending import (
    CR0_CLOCK_COMPARATOR,
    CR0_CPU_TIMER,
    CR0_EMERGENCY,
    CR0_EXTERNAL_CALL,
    CR0_SERVICE,
    PSW_EXTERNAL,
    PSW_IO,
    PSW_MACHINE_CHECK,
    Masks,
)

ALL = Masks(PSW_EXTERNAL | PSW_IO | PSW_MACHINE_CHECK, 0xFFFF_FFFF, 0xFF << 24, 0xFFFF_FFFF)
NONE = Masks()
CHANNEL_REPORT = 1 << 28


class Machine:
    """One vCPU, numbered 0, and the VM's floating interrupts."""

    def __init__(self) -> None:
        self.floating = FloatingInterrupts()
        self.local = LocalInterrupts((0, 1))

    def add(self, *irqs: Irq) -> None:
        for irq in irqs:
            if irq in FLOATING:
                self.floating.add(irq)
            else:
                self.local.add(irq)

    def take(self, masks: Masks = ALL) -> Irq | None:
        waits = not has_interrupt(self.floating, self.local, masks)
        taken = take(self.floating, self.local, masks)
        assert waits == (taken is None)
        return taken


@pytest.fixture
def machine() -> Machine:
    return Machine()


def io(isc: int) -> Irq:
    return Irq(1, Io(1, 1, 0, word_of(isc)))


SERVICE = Irq(Kind.SERVICE, External(0x1000))
VIRTIO = Irq(Kind.VIRTIO, External(1))
PFAULT_DONE = Irq(Kind.PFAULT_DONE, External(0, 0, 1))
PFAULT_INIT = Irq(Kind.PFAULT_INIT, External(0, 0, 1))
TIMER, CLOCK = Irq(Kind.CPU_TIMER), Irq(Kind.CLOCK_COMPARATOR)
CALL, EMERGENCY = Irq(Kind.EXTERNAL_CALL, 1), Irq(Kind.EMERGENCY, 1)
PROGRAM = Irq(Kind.PROGRAM, Program(code=1, flags=1))
RESTART, STOP = Irq(Kind.RESTART), Irq(Kind.SIGP_STOP, 0)
EXIGENT = Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=1 << 63))
REPORT = Irq(Kind.MACHINE_CHECK, MachineCheck(cr14=CHANNEL_REPORT, mcic=1 << 44))
FLOATING = [SERVICE, Irq(Kind.SERVICE, External(0x1001)), VIRTIO, PFAULT_DONE, REPORT, *map(io, range(8))]


def test_the_order_of_interrupts(machine: Machine) -> None:
    # enum irq_types, from its end. A stop comes when nothing else is left.
    expected = [EXIGENT, PROGRAM, EMERGENCY, CALL, CLOCK, TIMER, SERVICE, PFAULT_INIT, PFAULT_DONE, VIRTIO]
    expected += [*map(io, range(8)), RESTART, STOP]
    machine.add(*reversed(expected))
    assert [machine.take() for _ in expected] == expected
    assert machine.take() is None


def test_a_service_signals_events_come_before_its_sccb(machine: Machine) -> None:
    machine.add(Irq(Kind.SERVICE, External(0x1001)))
    assert machine.take() == Irq(Kind.SERVICE, External(3))
    assert machine.take() == SERVICE


@pytest.mark.parametrize(
    ("irq", "needed"),
    [
        (io(0), Masks(psw=PSW_IO, cr6=0x80 << 24)),
        (io(5), Masks(psw=PSW_IO, cr6=0x04 << 24)),
        (io(7), Masks(psw=PSW_IO, cr6=0x01 << 24)),
        (EMERGENCY, Masks(psw=PSW_EXTERNAL, cr0=CR0_EMERGENCY)),
        (CALL, Masks(psw=PSW_EXTERNAL, cr0=CR0_EXTERNAL_CALL)),
        (CLOCK, Masks(psw=PSW_EXTERNAL, cr0=CR0_CLOCK_COMPARATOR)),
        (TIMER, Masks(psw=PSW_EXTERNAL, cr0=CR0_CPU_TIMER)),
        (SERVICE, Masks(psw=PSW_EXTERNAL, cr0=CR0_SERVICE)),
        (REPORT, Masks(psw=PSW_MACHINE_CHECK, cr14=CHANNEL_REPORT)),
        # These have no mask but the PSW's, and the last two none at all.
        (VIRTIO, Masks(psw=PSW_EXTERNAL, cr0=0)),
        (PFAULT_DONE, Masks(psw=PSW_EXTERNAL, cr0=0)),
        (PFAULT_INIT, Masks(psw=PSW_EXTERNAL, cr0=0)),
        (PROGRAM, NONE),
        (RESTART, NONE),
    ],
)
def test_an_interrupt_needs_its_masks_and_no_other(machine: Machine, irq: Irq, needed: Masks) -> None:
    machine.add(irq)
    closed = Masks(ALL.psw & ~needed.psw, ALL.cr0, ALL.cr6, ALL.cr14)
    if needed.psw:
        assert machine.take(closed) is None
    if needed.cr0 not in (0, NONE.cr0):
        assert machine.take(replace(ALL, cr0=ALL.cr0 & ~needed.cr0)) is None
    if needed.cr6:
        assert machine.take(replace(ALL, cr6=ALL.cr6 & ~needed.cr6)) is None
    if needed.cr14 == CHANNEL_REPORT:
        assert machine.take(replace(ALL, cr14=ALL.cr14 & ~CHANNEL_REPORT)) is None
    taken = machine.take(needed)
    assert taken is not None
    assert taken.kind == irq.kind


def test_an_exigent_machine_check_needs_the_psws_mask_alone(machine: Machine) -> None:
    machine.local.add(EXIGENT)
    assert machine.take(replace(ALL, psw=PSW_IO)) is None
    assert machine.take(Masks(psw=PSW_MACHINE_CHECK, cr14=0)) == EXIGENT


def test_a_floating_machine_check_comes_with_the_vcpus_own(machine: Machine) -> None:
    # __deliver_machine_check, whatever CR14 says.
    machine.floating.add(REPORT)
    machine.local.add(EXIGENT)
    both = MachineCheck(cr14=CHANNEL_REPORT, mcic=1 << 63 | 1 << 44)
    assert machine.take(Masks(psw=PSW_MACHINE_CHECK, cr14=0)) == Irq(Kind.MACHINE_CHECK, both)
    assert machine.take() is None


def test_two_vcpus_take_floating_interrupts_by_their_masks(machine: Machine) -> None:
    other = LocalInterrupts((0, 1))
    first, second = Masks(psw=PSW_IO, cr6=0x80 << 24), Masks(psw=PSW_IO, cr6=0x40 << 24)
    machine.floating.add(io(1))
    assert not has_interrupt(machine.floating, machine.local, first)
    assert take(machine.floating, other, second) == io(1)


def test_masked_interrupts_are_deliverable_when_the_mask_opens(machine: Machine) -> None:
    machine.add(io(3), EMERGENCY)
    assert deliverable_of(machine.floating, machine.local, NONE) == 0
    assert machine.take(NONE) is None
    assert machine.take(ALL) == EMERGENCY
    assert machine.take(NONE) is None
    assert machine.take(ALL) == io(3)


def test_a_stop_ends_a_wait_that_no_mask_opens(machine: Machine) -> None:
    machine.add(STOP)
    assert deliverable_of(machine.floating, machine.local, ALL) == 0
    assert machine.take(NONE) == STOP
