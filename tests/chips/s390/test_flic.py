"""The FLIC's attributes and their errors. Source: interrupt.c flic_get_attr, flic_set_attr, flic_has_attr."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from irqchipd.chips.s390.adapters import Adapter, Request, modify_request, register_request
from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.flic import MAX_BUFFER, AisMode, Flic, Group, SavedFlic, ais_request, check_flic
from irqchipd.chips.s390.floating import MAX_VIRTIO, SavedFloating
from irqchipd.chips.s390.irq import IRQ_SIZE, External, Io, Irq, Kind, MachineCheck, pack, unpack_all, word_of
from irqchipd.chips.saved import StateError


class NoMemory:
    def set_bits(self, address: int, mask: int) -> int | None:  # noqa: ARG002
        return None

    def adapter_injected(self, word: int) -> None:
        pass


@pytest.fixture
def flic() -> Flic:
    return Flic(NoMemory())


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(RefusedError) as info:
        call()
    assert info.value.message
    return info.value.number


def io(isc: int, number: int) -> Irq:
    return Irq(number, Io(1, number, 0, word_of(isc)))


def enqueue(flic: Flic, *irqs: Irq) -> None:
    data = b"".join(map(pack, irqs))
    flic.set(Group.ENQUEUE, len(data), data)


def pending(flic: Flic) -> list[Irq]:
    return unpack_all(flic.get(Group.GET_ALL_IRQS, MAX_BUFFER))


# Selftest ucontrol_test.c, uc_flic_attrs: the errors of reading and writing each group. The selftest's VM is a ucontrol
# VM, for which APF_ENABLE and APF_DISABLE_WAIT are EINVAL; here they are as for every other VM.
ATTRIBUTES = [
    (Group.GET_ALL_IRQS, 4096, bytes(4096), 0, errno.EINVAL),
    (Group.ENQUEUE, 0, bytes(8), errno.EINVAL, 0),
    (Group.CLEAR_IRQS, 0, bytes(8), errno.EINVAL, 0),
    (Group.ADAPTER_REGISTER, 0, bytes(8), errno.EINVAL, 0),
    (Group.ADAPTER_MODIFY, 16, bytes(16), errno.EINVAL, errno.EINVAL),
    (Group.CLEAR_IO_IRQ, 32, bytes(8), errno.EINVAL, errno.EINVAL),
    (Group.AISM, 0, bytes(4), errno.EINVAL, errno.EOPNOTSUPP),
    (Group.AIRQ_INJECT, 0, bytes(8), errno.EINVAL, 0),
    (Group.AISM_ALL, 2, bytes(2), errno.EOPNOTSUPP, errno.EOPNOTSUPP),
    (Group.APF_ENABLE, 0, bytes(8), errno.EINVAL, 0),
    (Group.APF_DISABLE_WAIT, 0, bytes(8), errno.EINVAL, 0),
]


def error_of(call: Callable[[], object]) -> int:
    try:
        call()
    except RefusedError as error:
        return error.number
    return 0


def test_the_groups_as_the_selftest_has_them(flic: Flic) -> None:
    for group, attribute, data, got, done in ATTRIBUTES:
        assert flic.has(group)
        assert error_of(partial(flic.get, group, attribute)) == got
        assert error_of(partial(flic.set, group, attribute, data)) == done


@pytest.mark.parametrize("group", [0, 12, 1 << 31])
def test_an_unknown_group_is_einval_and_absent(flic: Flic, group: int) -> None:
    # s390_flic.rst: EINVAL instead of ENXIO.
    assert not flic.has(group)
    assert refused(lambda: flic.get(group, 4096)) == errno.EINVAL
    assert refused(lambda: flic.set(group, 0, b"")) == errno.EINVAL


# ENQUEUE, GET_ALL_IRQS, CLEAR_IRQS.


def test_what_is_enqueued_is_listed_until_it_is_cleared(flic: Flic) -> None:
    irqs = [io(2, 1), Irq(Kind.VIRTIO, External(1, 2, 3)), Irq(Kind.SERVICE, External(0x1000))]
    enqueue(flic, *irqs)
    assert pending(flic) == irqs
    flic.set(Group.CLEAR_IRQS, 0, b"")
    assert pending(flic) == []


@pytest.mark.parametrize(
    ("length", "data", "number"),
    [
        (71, bytes(72), errno.EINVAL),
        (73, bytes(144), errno.EINVAL),
        (MAX_BUFFER + 16, b"", errno.EINVAL),  # a multiple of 72
        (72, bytes(71), errno.EFAULT),
        (144, bytes(72), errno.EFAULT),
    ],
)
def test_the_lengths_that_enqueue_refuses(flic: Flic, length: int, data: bytes, number: int) -> None:
    assert (MAX_BUFFER + 16) % IRQ_SIZE == 0
    assert refused(lambda: flic.set(Group.ENQUEUE, length, data)) == number
    assert pending(flic) == []


@pytest.mark.parametrize("wrong", [Irq(Kind.PFAULT_INIT, External()), Irq(Kind.RESTART), Irq(Kind.EMERGENCY, 0)])
def test_a_wrong_interrupt_leaves_the_others_out(flic: Flic, wrong: Irq) -> None:
    assert refused(lambda: enqueue(flic, io(1, 1), wrong)) == errno.EINVAL
    assert pending(flic) == []


def test_a_full_list_leaves_the_others_out(flic: Flic) -> None:
    virtio = Irq(Kind.VIRTIO, External())
    assert refused(lambda: enqueue(flic, io(1, 1), *[virtio] * (MAX_VIRTIO + 1))) == errno.EBUSY
    assert pending(flic) == []


def test_a_buffer_may_be_too_small(flic: Flic) -> None:
    flic.get(Group.GET_ALL_IRQS, 1)
    enqueue(flic, io(1, 1), Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=1)))
    assert len(flic.get(Group.GET_ALL_IRQS, 2 * IRQ_SIZE + 5)) == 2 * IRQ_SIZE
    assert refused(lambda: flic.get(Group.GET_ALL_IRQS, 2 * IRQ_SIZE - 1)) == errno.ENOMEM
    assert refused(lambda: flic.get(Group.GET_ALL_IRQS, 0)) == errno.EINVAL
    assert refused(lambda: flic.get(Group.GET_ALL_IRQS, MAX_BUFFER + 1)) == errno.EINVAL


# CLEAR_IO_IRQ.


def test_a_subchannels_interrupt_is_cleared(flic: Flic) -> None:
    enqueue(flic, io(1, 1), io(1, 2))
    flic.set(Group.CLEAR_IO_IRQ, 4, b"\x00\x01\x00\x01")
    assert pending(flic) == [io(1, 2)]
    flic.set(Group.CLEAR_IO_IRQ, 4, b"\x00\x01\x00\x01")
    assert pending(flic) == [io(1, 2)]


@pytest.mark.parametrize(
    ("length", "data", "flags", "number"),
    [
        (4, b"\0\0\0\0", 0, errno.EINVAL),
        (4, b"\0\1\0\1", 1, errno.EINVAL),
        (3, b"\0\1\0\1", 0, errno.EINVAL),
        (8, bytes(8), 0, errno.EINVAL),
        (4, b"\0\1\0", 0, errno.EFAULT),
    ],
)
def test_what_clear_io_refuses(flic: Flic, length: int, data: bytes, flags: int, number: int) -> None:
    enqueue(flic, io(1, 1))
    assert refused(lambda: flic.set(Group.CLEAR_IO_IRQ, length, data, flags)) == number
    assert len(pending(flic)) == 1


# Adapters.


def register(flic: Flic, number: int = 1, isc: int = 3, *, maskable: bool = True, flags: int = 0) -> None:
    request = register_request(number, isc, maskable=maskable, swap=False, flags=flags)
    flic.set(Group.ADAPTER_REGISTER, 0, request)


def modify(flic: Flic, number: int, request: int, mask: int = 0) -> None:
    flic.set(Group.ADAPTER_MODIFY, 0, modify_request(number, request, mask=mask))


def test_an_adapter_is_registered_once(flic: Flic) -> None:
    register(flic, 63)
    assert refused(lambda: register(flic, 63)) == errno.EINVAL
    assert refused(lambda: register(flic, 64)) == errno.EINVAL
    assert refused(lambda: flic.set(Group.ADAPTER_REGISTER, 0, bytes(7))) == errno.EFAULT


def test_unknown_flags_of_an_adapter_are_ignored(flic: Flic) -> None:
    register(flic, flags=0xFE)
    assert flic.adapters.find(1) == Adapter(1, 3, maskable=True)


def test_only_a_maskable_adapter_is_masked(flic: Flic) -> None:
    register(flic, 1, maskable=False)
    register(flic, 2)
    assert refused(lambda: modify(flic, 1, Request.MASK, 1)) == errno.EINVAL
    modify(flic, 2, Request.MASK, 1)
    modify(flic, 2, Request.MASK, 1)
    adapter = flic.adapters.find(2)
    assert adapter is not None
    assert adapter.masked


def test_mappings_are_accepted_and_need_nothing(flic: Flic) -> None:
    register(flic)
    modify(flic, 1, Request.MAP)
    modify(flic, 1, Request.UNMAP)


def test_what_modify_refuses(flic: Flic) -> None:
    register(flic)
    assert refused(lambda: modify(flic, 2, Request.MAP)) == errno.EINVAL
    assert refused(lambda: modify(flic, 64, Request.MAP)) == errno.EINVAL
    assert refused(lambda: modify(flic, 1, 0)) == errno.EINVAL
    assert refused(lambda: modify(flic, 1, 4)) == errno.EINVAL
    assert refused(lambda: flic.set(Group.ADAPTER_MODIFY, 0, bytes(15))) == errno.EFAULT


def test_an_adapter_is_injected_masked_or_not(flic: Flic) -> None:
    # flic_inject_airq looks at no mask.
    register(flic)
    modify(flic, 1, Request.MASK, 1)
    flic.set(Group.AIRQ_INJECT, 1, b"")
    flic.set(Group.AIRQ_INJECT, 1 << 32 | 1, b"")  # KVM takes the number as an unsigned int
    assert pending(flic) == [Irq(Kind.IO_ADAPTER, Io(word=word_of(3)))] * 2
    assert refused(lambda: flic.set(Group.AIRQ_INJECT, 2, b"")) == errno.EINVAL


# Adapter-interruption suppression.


@pytest.fixture
def ais(flic: Flic) -> Flic:
    flic.ais = True
    register(flic, 1, 3, flags=1)
    register(flic, 2, 3)
    return flic


def modes(flic: Flic) -> tuple[int, int]:
    simm, nimm = flic.get(Group.AISM_ALL, 2)
    return simm, nimm


def inject(flic: Flic, adapter: int) -> int:
    before = len(pending(flic))
    flic.set(Group.AIRQ_INJECT, adapter, b"")
    return len(pending(flic)) - before


def test_one_interruption_is_let_through(ais: Flic) -> None:
    ais.set(Group.AISM, 0, ais_request(3, AisMode.SINGLE))
    assert modes(ais) == (0x10, 0)
    assert inject(ais, 1) == 1
    assert modes(ais) == (0x10, 0x10)
    assert inject(ais, 1) == 0
    assert inject(ais, 2) == 1  # not suppressible
    ais.set(Group.AISM, 0, ais_request(3, AisMode.SINGLE))
    assert modes(ais) == (0x10, 0)
    assert inject(ais, 1) == 1
    ais.set(Group.AISM, 0, ais_request(3, AisMode.ALL))
    assert modes(ais) == (0, 0)
    assert [inject(ais, 1), inject(ais, 1)] == [1, 1]


def test_all_modes_are_set_at_once(ais: Flic) -> None:
    ais.set(Group.AISM_ALL, 0, b"\x81\x10")
    assert modes(ais) == (0x81, 0x10)
    assert inject(ais, 1) == 0


def test_without_the_facility_nothing_is_suppressed(ais: Flic) -> None:
    ais.set(Group.AISM_ALL, 0, b"\x10\x10")
    ais.ais = False
    assert inject(ais, 1) == 1


def test_what_the_modes_refuse(ais: Flic) -> None:
    before = modes(ais)
    assert refused(lambda: ais.set(Group.AISM, 0, ais_request(8, AisMode.ALL))) == errno.EINVAL
    assert refused(lambda: ais.set(Group.AISM, 0, ais_request(0, 2))) == errno.EINVAL
    assert refused(lambda: ais.set(Group.AISM, 0, bytes(3))) == errno.EFAULT
    assert refused(lambda: ais.set(Group.AISM_ALL, 0, bytes(1))) == errno.EFAULT
    assert refused(lambda: ais.get(Group.AISM_ALL, 1)) == errno.EINVAL
    assert modes(ais) == before


def test_a_short_buffer_comes_before_a_missing_facility(flic: Flic) -> None:
    # flic_ais_mode_get_all looks at the length first.
    assert refused(lambda: flic.get(Group.AISM_ALL, 1)) == errno.EINVAL
    assert refused(lambda: flic.get(Group.AISM_ALL, 2)) == errno.EOPNOTSUPP


def test_page_faults_are_enabled_and_disabled(flic: Flic) -> None:
    flic.set(Group.APF_ENABLE, 0, b"")
    assert flic.pfault
    flic.set(Group.APF_DISABLE_WAIT, 0, b"")
    assert not flic.pfault


# Snapshots.

SAVED = SavedFlic(SavedFloating(), (Adapter(1, 3, maskable=True, masked=True),), True, 0x10, 0x10, True)


def test_what_is_saved_resumes(flic: Flic) -> None:
    check_flic(SAVED)
    flic.resume(SAVED)
    assert flic.save() == SAVED


@pytest.mark.parametrize(
    "saved",
    [
        replace(SAVED, adapters=SAVED.adapters * 2),
        replace(SAVED, adapters=(Adapter(64, 3),)),
        replace(SAVED, adapters=(Adapter(1, 256),)),
        replace(SAVED, adapters=(Adapter(1, 3, masked=True),)),
        replace(SAVED, simm=0x100),
        replace(SAVED, ais=False),
        replace(SAVED, floating=SavedFloating(pending=1)),
    ],
)
def test_what_cannot_be_is_not_resumed(saved: SavedFlic) -> None:
    with pytest.raises(StateError):
        check_flic(saved)
