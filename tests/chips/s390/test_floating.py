"""The lists of floating interrupts, their limits, and what is kept once. Source: interrupt.c, each test's function."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.floating import (
    MAX_IO,
    MAX_PFAULT,
    MAX_VIRTIO,
    FloatingInterrupts,
    SavedFloating,
    check_saved,
)
from irqchipd.chips.s390.irq import External, Io, Irq, Kind, MachineCheck, Program, short, unpack_all, word_of
from irqchipd.chips.s390.pending import Pend
from irqchipd.chips.saved import StateError


def io(isc: int, number: int = 0, parameter: int = 0) -> Irq:
    return Irq(number, Io(1, number, parameter, word_of(isc)))


def service(parameter: int) -> Irq:
    return Irq(Kind.SERVICE, External(parameter))


@pytest.fixture
def floating() -> FloatingInterrupts:
    return FloatingInterrupts()


def test_io_interrupts_of_a_subclass_are_taken_in_their_order(floating: FloatingInterrupts) -> None:
    first, second, other = io(3, 1), io(3, 2), io(0, 3)
    for irq in (first, other, second):
        floating.add(irq)
    assert floating.pending == 1 << Pend.IO_ISC_0 | 1 << (Pend.IO_ISC_0 - 3)
    assert [floating.take_io(3), floating.take_io(3)] == [first, second]
    assert floating.pending == 1 << Pend.IO_ISC_0
    assert floating.take_io(0) == other
    assert floating.pending == 0


def test_virtio_and_pfault_have_lists_of_their_own(floating: FloatingInterrupts) -> None:
    virtio, pfault = Irq(Kind.VIRTIO, External(1, 0, 2)), Irq(Kind.PFAULT_DONE, External(0, 0, 3))
    floating.add(pfault)
    floating.add(virtio)
    assert floating.pending == 1 << Pend.VIRTIO | 1 << Pend.PFAULT_DONE
    assert (floating.take_virtio(), floating.take_pfault_done()) == (virtio, pfault)
    assert floating.pending == 0


def test_all_are_listed_in_kvms_order_and_stay(floating: FloatingInterrupts) -> None:
    # get_all_floating_irqs: the subclasses, pfault done, virtio, the service signal, the machine check.
    check = Irq(Kind.MACHINE_CHECK, MachineCheck(cr14=1 << 28, mcic=5))
    virtio, pfault = Irq(Kind.VIRTIO, External(1)), Irq(Kind.PFAULT_DONE, External(0, 0, 3))
    expected = [io(0, 1), io(7, 2), io(7, 3), pfault, virtio, service(0x1008), check]
    for irq in (check, virtio, expected[1], pfault, expected[0], service(0x1008), expected[2]):
        floating.add(irq)
    assert unpack_all(floating.all()) == expected
    assert len(floating) == len(expected)
    assert unpack_all(floating.all()) == expected


def test_only_one_sccb_is_kept(floating: FloatingInterrupts) -> None:
    # __inject_service: superfluous SCCBs are ignored.
    floating.add(service(0x1000))
    floating.add(service(0x2000))
    assert floating.take_service() == service(0x1000)
    assert floating.pending == 0


def test_events_are_kept_beside_an_sccb(floating: FloatingInterrupts) -> None:
    floating.add(service(0x1000))
    floating.add(service(0x2001))
    assert floating.pending == 1 << Pend.SERVICE | 1 << Pend.SERVICE_EVENT
    assert floating.take_service_event() == service(3)
    assert floating.pending == 1 << Pend.SERVICE
    assert floating.take_service() == service(0x1000)


def test_a_service_signal_takes_its_events_with_it(floating: FloatingInterrupts) -> None:
    floating.add(service(0x1003))
    assert floating.take_service() == service(0x1003)
    assert floating.pending == 0


def test_a_service_signal_without_an_sccb_is_pending_all_the_same(floating: FloatingInterrupts) -> None:
    floating.add(service(0))
    assert floating.pending == 1 << Pend.SERVICE


def test_machine_checks_are_merged_and_keep_one_subclass(floating: FloatingInterrupts) -> None:
    # __inject_float_mchk: CR_PENDING_SUBCLASS is 28.
    floating.add(Irq(Kind.MACHINE_CHECK, MachineCheck(cr14=0xFFFF_FFFF, mcic=1, failing_storage_address=9)))
    floating.add(Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=2)))
    assert floating.take_machine_check() == MachineCheck(cr14=1 << 28, mcic=3)
    assert floating.take_machine_check() == MachineCheck()
    assert (floating.pending, floating.cr14) == (0, 0)


@pytest.mark.parametrize(
    "irq", [Irq(Kind.RESTART), Irq(Kind.EMERGENCY, 0), Irq(Kind.PFAULT_INIT, External()), Irq(Kind.PROGRAM, Program())]
)
def test_a_vcpus_own_interrupt_is_refused(floating: FloatingInterrupts, irq: Irq) -> None:
    with pytest.raises(RefusedError) as refused:
        floating.add(irq)
    assert refused.value.number == errno.EINVAL
    assert len(floating) == 0


@pytest.mark.parametrize(
    ("irq", "most"),
    [
        (io(1), MAX_IO),
        (Irq(Kind.VIRTIO, External()), MAX_VIRTIO),
        (Irq(Kind.PFAULT_DONE, External()), MAX_PFAULT),
    ],
)
def test_a_list_has_kvms_limit(floating: FloatingInterrupts, irq: Irq, most: int) -> None:
    floating.resume(SavedFloating((short(irq),) * (most - 1)))
    floating.check([irq.kind])
    with pytest.raises(RefusedError, match=f"at most {most}") as refused:
        floating.check([irq.kind, irq.kind])
    assert refused.value.number == errno.EBUSY
    floating.add(irq)
    with pytest.raises(RefusedError):
        floating.add(irq)
    assert len(floating) == most


def test_the_limit_of_io_interrupts_is_for_all_subclasses(floating: FloatingInterrupts) -> None:
    floating.resume(SavedFloating((short(io(1)),) * MAX_IO))
    with pytest.raises(RefusedError):
        floating.add(io(2))
    floating.take_io(1)
    floating.add(io(2))


def test_a_subchannels_interrupt_is_removed(floating: FloatingInterrupts) -> None:
    for irq in (io(1, 5), io(4, 6), io(4, 7), io(4, 6, 1)):
        floating.add(irq)
    assert floating.remove_io(0xFF << 24, 1 << 16 | 6) == io(4, 6)
    assert unpack_all(floating.all()) == [io(1, 5), io(4, 7), io(4, 6, 1)]
    assert floating.remove_io(0xFF << 24, 2 << 16 | 6) is None


def test_the_first_interrupt_that_a_mask_allows_is_removed(floating: FloatingInterrupts) -> None:
    floating.add(io(1, 5))
    floating.add(io(4, 6))
    assert floating.remove_io(0x08 << 24, 0) == io(4, 6)
    assert floating.pending == 1 << (Pend.IO_ISC_0 - 1)
    assert floating.remove_io(0xFF << 24, 0) == io(1, 5)
    assert floating.remove_io(0xFF << 24, 0) is None


def test_clear_removes_all(floating: FloatingInterrupts) -> None:
    for irq in (io(1), service(3), Irq(Kind.MACHINE_CHECK, MachineCheck(1 << 28, 1)), Irq(Kind.VIRTIO, External())):
        floating.add(irq)
    floating.clear()
    assert (floating.pending, floating.cr14, len(floating), floating.all()) == (0, 0, 0, b"")
    floating.add(service(0))
    assert floating.take_service() == service(0)


SAVED = SavedFloating(
    (short(io(1)), short(Irq(Kind.VIRTIO, External(1, 2, 3)))),
    1 << Pend.SERVICE | 1 << Pend.SERVICE_EVENT | 1 << Pend.REPRESSIBLE,
    0x1003,
    1 << 28,
    7,
)


def test_what_is_saved_resumes(floating: FloatingInterrupts) -> None:
    check_saved(SAVED)
    floating.resume(SAVED)
    assert floating.save() == SAVED
    other = FloatingInterrupts()
    other.resume(floating.save())
    assert other.all() == floating.all()
    assert other.pending == floating.pending


@pytest.mark.parametrize(
    "saved",
    [
        replace(SAVED, pending=1 << Pend.VIRTIO),
        replace(SAVED, service=0x1000),
        replace(SAVED, pending=1 << Pend.SERVICE_EVENT | 1 << Pend.REPRESSIBLE),
        replace(SAVED, cr14=1),
        replace(SAVED, pending=1 << Pend.SERVICE | 1 << Pend.SERVICE_EVENT),
        replace(SAVED, mcic=1 << 64),
        replace(SAVED, service=1 << 32 | 3),
        replace(SAVED, interrupts=(b"",)),
        replace(SAVED, interrupts=(short(service(1)),)),
        replace(SAVED, interrupts=(short(io(1)) + b"\0\0\0\0",)),
        replace(SAVED, interrupts=(b"\xff" * 20,)),
        replace(SAVED, interrupts=(short(Irq(Kind.VIRTIO, External())),) * (MAX_VIRTIO + 1)),
    ],
)
def test_what_cannot_be_is_not_resumed(saved: SavedFloating) -> None:
    with pytest.raises(StateError):
        check_saved(saved)
