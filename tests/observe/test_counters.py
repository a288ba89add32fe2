"""What metrics count of each architecture's interrupts."""

from __future__ import annotations

import pytest

from irqchipd.chips.s390.adapters import Request, modify_request
from irqchipd.chips.s390.flic import Group
from irqchipd.observe.counters import COUNTED, Counters
from irqchipd.vm.machine import Vm
from irqchipd.vm.routing import PinRoute
from tests.vm.arm64.machine import SPURIOUS, Arm, Wfi, spi
from tests.vm.pc import EOI, LEVEL, SECONDARY, Pc
from tests.vm.s390.machine import ALL, ROUTE, Machine, Owner

SPI = 40


def counting(vm: Vm) -> Counters:
    counters = Counters()
    vm.attach(counters)
    return counters


def counted(counters: Counters) -> dict[str, int]:
    """The counts that are not 0."""
    return {name: count for name in COUNTED if (count := getattr(counters, name))}


def test_a_pc() -> None:
    pc = Pc(1)
    pc.program(16, LEVEL | 0x41)
    pc.program(18, 0x61)
    counters = counting(pc.vm)
    pc.line(16, 1, 0)
    pc.line(18, 1, 1, 0)  # the second edge adds nothing
    pc.line(17, 1, 0)  # masked
    pc.ipi(0, 0x4_4031)
    pc.vm.signal_msi(0xFEE0_0000, 0x51)
    taken = []
    while (vector := pc.take()) is not None:
        taken.append(vector)
        pc.eoi()
    assert taken == [0x61, 0x51, 0x41, 0x31]
    assert counted(counters) == {
        "raised": 4,
        "lowered": 3,
        "coalesced": 1,
        "masked": 1,
        "ipis": 1,
        "msis": 1,
        "accepted": 4,
        "delivered": 4,
        "lapic_eois": 4,
        "ioapic_eois": 1,
    }


def test_a_line_that_falls_as_its_source_is_closed_has_not_risen() -> None:
    pc = Pc(1)
    counters = counting(pc.vm)
    source = pc.vm.open_source("device")
    pc.vm.irq_line(17, True, source)  # masked
    pc.vm.close_source(source)
    assert counted(counters) == {"raised": 1, "masked": 1}


def test_two_observers_count_as_one_does() -> None:
    pc = Pc(1)
    pc.initialise_pics()
    pc.program(16, 0x41)
    counters, other = counting(pc.vm), counting(pc.vm)
    alone = counting((single := Pc(1)).vm)
    single.initialise_pics()
    single.program(16, 0x41)
    for machine in (pc, single):
        machine.line(16, 1, 1, 0)  # the second adds nothing
        machine.line(3, 1, 1, 0)  # the same at a PIC; masked at the IOAPIC
        machine.line(17, 1)  # masked
        machine.vm.reset()  # drives the line again, and that is no rise
    assert counted(counters) == counted(other) == counted(alone)
    assert (alone.raised, alone.lowered, alone.coalesced, alone.masked) == (5, 2, 1, 3)


def test_a_pics_request_that_is_gone_is_spurious() -> None:
    pc = Pc(1)
    pc.initialise_pics()
    counters = counting(pc.vm)
    pc.line(9, 1, 0)
    pc.out(0xA1, 0xFF)  # the primary has the request of the secondary, which has none any more
    assert pc.take() == SECONDARY + 7
    pc.out(0x20, EOI)
    assert (counters.spurious, counters.delivered) == (1, 1)
    pc.out(0xA1, 0)
    pc.line(9, 1)
    assert pc.take() == SECONDARY + 1
    assert (counters.spurious, counters.delivered) == (1, 2)
    for port in (0xA0, 0x20):
        pc.out(port, EOI)
    assert counters.pic_eois == 3


@pytest.mark.parametrize("gic", [2, 3])
def test_a_gic(gic: int) -> None:
    arm = Arm(gic)
    arm.configure(SPI, level=True)
    arm.configure(SPI + 1)
    counters = counting(arm.vm)
    arm.line(spi(SPI), 1)
    arm.line(spi(SPI), 1)  # adds nothing
    for level in (1, 0, 1, 0):  # the second edge comes while the first is pending
        arm.line(spi(SPI + 1), level)
    arm.line(spi(SPI + 2), 1)  # not enabled
    assert arm.take() == SPI
    arm.line(spi(SPI), 0)
    assert [arm.take(), arm.take()] == [SPI + 1, SPURIOUS]
    assert counted(counters) == {
        "raised": 5,
        "lowered": 3,
        "coalesced": 2,
        "masked": 1,
        "delivered": 2,
        "spurious": 1,
        "gic_eois": 2,
    }


def test_a_gics_gsi_and_a_halt() -> None:
    arm = Arm(3)
    arm.vm.set_routing([PinRoute(4, 0, SPI - 32)])
    arm.configure(SPI)
    counters = counting(arm.vm)
    halt = Wfi(arm)
    irqfd = arm.vm.add_irqfd(arm.vm.open_source("device"), 4)
    arm.vm.trigger(irqfd)
    assert halt.outcome
    assert arm.take() == SPI
    assert (counters.raised, counters.delivered, counters.gic_eois, sum(counters.halts.buckets)) == (1, 1, 1, 1)


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "a Session's memory"])
def test_an_s390_adapter(shared: bool) -> None:
    machine = Machine(ais=True)
    machine.register()
    machine.add_vcpus(ALL)
    owner = None
    if shared:
        machine.share()
    else:
        owner = Owner(machine.vm)
    machine.vm.set_routing([ROUTE])
    counters = counting(machine.vm)

    def pulse() -> None:
        for level in (True, False):
            machine.vm.irq_line(ROUTE.gsi, level)
            while owner is not None and owner.answer():
                pass

    pulse()
    pulse()  # the summary is set already
    assert machine.vm.take_irq(0) is not None
    assert machine.vm.take_irq(0) is None
    machine.set_attr(Group.ADAPTER_MODIFY, 0, modify_request(1, Request.MASK, mask=1))
    pulse()
    assert counted(counters) == {"raised": 3, "lowered": 3, "coalesced": 1, "masked": 1, "delivered": 1}
