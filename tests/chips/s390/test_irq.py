"""The layout of struct kvm_s390_irq, against one written by hand from include/uapi/linux/kvm.h."""

from __future__ import annotations

import errno
import struct

import pytest

from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.irq import (
    IRQ_SIZE,
    External,
    Io,
    Irq,
    Kind,
    MachineCheck,
    Program,
    floating_from_parameters,
    is_io,
    local_from_parameters,
    name_of,
    pack,
    unpack,
    unpack_all,
    word_of,
)

PROGRAM = Program(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
CHECK = MachineCheck(1, 2, 3, 4, bytes(range(16)))


@pytest.mark.parametrize(
    ("irq", "union"),
    [
        (
            Irq(0x0001_1234, Io(0x1, 0x1234, 0xAABB_CCDD, 0x8800_0000)),
            struct.pack(">HHII", 1, 0x1234, 0xAABB_CCDD, 0x8800_0000),
        ),
        (Irq(Kind.VIRTIO, External(1, 2, 3)), struct.pack(">IIQ", 1, 2, 3)),
        (Irq(Kind.SERVICE, External(1)), struct.pack(">I", 1)),
        (Irq(Kind.PFAULT_DONE, External(0, 0, 1 << 63)), struct.pack(">IIQ", 0, 0, 1 << 63)),
        (Irq(Kind.PFAULT_INIT, External(0, 0, 7)), struct.pack(">IIQ", 0, 0, 7)),
        (Irq(Kind.PROGRAM, PROGRAM), struct.pack(">QQQIHH6B2x", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)),
        (Irq(Kind.MACHINE_CHECK, CHECK), struct.pack(">QQQII", 1, 2, 3, 4, 0) + bytes(range(16))),
        (Irq(Kind.EMERGENCY, 3), struct.pack(">H", 3)),
        (Irq(Kind.EXTERNAL_CALL, 3), struct.pack(">H", 3)),
        (Irq(Kind.SET_PREFIX, 0x8000), struct.pack(">I", 0x8000)),
        (Irq(Kind.SIGP_STOP, 1), struct.pack(">I", 1)),
        (Irq(Kind.RESTART), b""),
        (Irq(Kind.CLOCK_COMPARATOR), b""),
        (Irq(Kind.CPU_TIMER), b""),
    ],
    ids=lambda value: name_of(value.kind) if isinstance(value, Irq) else "",
)
def test_an_interrupt_is_a_type_and_a_union_of_64_bytes(irq: Irq, union: bytes) -> None:
    expected = struct.pack(">Q", irq.kind) + union.ljust(64, b"\0")
    assert pack(irq) == expected
    assert unpack(expected) == irq


def test_an_array_is_one_after_the_other() -> None:
    irqs = [Irq(Kind.RESTART), Irq(Kind.EMERGENCY, 1)]
    data = b"".join(map(pack, irqs))
    assert len(data) == 2 * IRQ_SIZE
    assert unpack_all(data) == irqs


@pytest.mark.parametrize("kind", [0xFFFE_0006, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1])
def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(RefusedError, match="type") as refused:
        unpack(struct.pack(">Q", kind).ljust(IRQ_SIZE, b"\0"))
    assert refused.value.number == errno.EINVAL


@pytest.mark.parametrize(("kind", "io"), [(0, True), (0xFFFD_FFFF, True), (0xFFFE_0000, False), (1 << 32, False)])
def test_every_type_below_fffe0000_is_io(kind: int, io: bool) -> None:
    assert is_io(kind) is io


@pytest.mark.parametrize("isc", range(8))
def test_the_word_of_an_adapter_interrupt_has_its_subclass(isc: int) -> None:
    assert word_of(isc) == 0x8000_0000 + (isc << 27)
    assert Io(word=word_of(isc)).isc == isc


def test_the_subclass_of_an_adapter_is_cut_to_three_bits() -> None:
    # KVM does not check an adapter's subclass. KVM: isc_to_int_word, int_word_to_isc.
    assert Io(word=word_of(0xFE)).isc == 6


@pytest.mark.parametrize(
    ("parameters", "irq"),
    [
        ((Kind.VIRTIO, 1, 2), Irq(Kind.VIRTIO, External(1, 0, 2))),
        ((Kind.SERVICE, 1, 2), Irq(Kind.SERVICE, External(1))),
        ((Kind.PFAULT_DONE, 1, 2), Irq(Kind.PFAULT_DONE, External(0, 0, 2))),
        ((Kind.MACHINE_CHECK, 1, 2), Irq(Kind.MACHINE_CHECK, MachineCheck(cr14=1, mcic=2))),
        ((5, 0x0001_0002, 0x3_0000_0004), Irq(5, Io(1, 2, 3, 4))),
    ],
)
def test_a_vms_interrupt_from_two_parameters(parameters: tuple[int, int, int], irq: Irq) -> None:
    assert floating_from_parameters(*parameters) == irq


@pytest.mark.parametrize(
    ("parameters", "irq"),
    [
        ((Kind.PROGRAM, 0xFFFF, 2), Irq(Kind.PROGRAM, Program(code=0xFFFF))),
        ((Kind.SET_PREFIX, 0xFFFF_FFFF, 2), Irq(Kind.SET_PREFIX, 0xFFFF_FFFF)),
        ((Kind.SIGP_STOP, 1, 2), Irq(Kind.SIGP_STOP, 1)),
        ((Kind.EXTERNAL_CALL, 3, 2), Irq(Kind.EXTERNAL_CALL, 3)),
        ((Kind.EMERGENCY, 3, 2), Irq(Kind.EMERGENCY, 3)),
        ((Kind.MACHINE_CHECK, 1, 2), Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=2))),
        ((Kind.PFAULT_INIT, 1, 2), Irq(Kind.PFAULT_INIT, External(1, 0, 2))),
        ((Kind.RESTART, 1, 2), Irq(Kind.RESTART)),
        ((Kind.CLOCK_COMPARATOR, 1, 2), Irq(Kind.CLOCK_COMPARATOR)),
        ((Kind.CPU_TIMER, 1, 2), Irq(Kind.CPU_TIMER)),
    ],
)
def test_a_vcpus_interrupt_from_two_parameters(parameters: tuple[int, int, int], irq: Irq) -> None:
    assert local_from_parameters(*parameters) == irq


@pytest.mark.parametrize("kind", [Kind.PROGRAM, Kind.EMERGENCY, Kind.EXTERNAL_CALL])
def test_a_code_has_16_bits(kind: int) -> None:
    with pytest.raises(RefusedError, match="0xffff") as refused:
        local_from_parameters(kind, 0x1_0000, 0)
    assert refused.value.number == errno.EINVAL


@pytest.mark.parametrize("kind", [Kind.PROGRAM, Kind.PFAULT_INIT, Kind.EMERGENCY, Kind.RESTART, 0xFFFF_FFFF])
def test_a_vm_has_no_interrupt_of_a_vcpu(kind: int) -> None:
    with pytest.raises(RefusedError) as refused:
        floating_from_parameters(kind, 0, 0)
    assert refused.value.number == errno.EINVAL


@pytest.mark.parametrize("kind", [Kind.VIRTIO, Kind.SERVICE, Kind.PFAULT_DONE, 0, 0xFFFF_FFFF])
def test_a_vcpu_has_no_interrupt_of_a_vm(kind: int) -> None:
    with pytest.raises(RefusedError) as refused:
        local_from_parameters(kind, 0, 0)
    assert refused.value.number == errno.EINVAL
