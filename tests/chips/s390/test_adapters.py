"""Where an adapter's bits are in guest memory, and when an interrupt goes with them."""

from __future__ import annotations

import errno

import pytest

from irqchipd.chips.s390.adapters import (
    Adapter,
    AdapterRoute,
    Indicator,
    Request,
    check_route,
    modify_request,
    register_request,
)
from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.flic import Flic, Group
from irqchipd.chips.s390.floating import MAX_IO, SavedFloating
from irqchipd.chips.s390.irq import Io, Irq, Kind, short, unpack_all, word_of


class Memory:
    """Guest memory from 0 to 0x10000."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x1_0000)
        self.writes: list[int] = []
        self.injected: list[int] = []

    def set_bits(self, address: int, mask: int) -> int | None:
        if address >= len(self.bytes):
            return None
        before = self.bytes[address]
        self.bytes[address] |= mask
        self.writes.append(address)
        return before

    def adapter_injected(self, word: int) -> None:
        self.injected.append(word)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def flic(memory: Memory) -> Flic:
    flic = Flic(memory)
    flic.set(Group.ADAPTER_REGISTER, 0, register_request(1, 3, maskable=True, swap=True, flags=1))
    return flic


ROUTE = AdapterRoute(Indicator(0x1000, 5), Indicator(0x2000, 1), 1)


def pending(flic: Flic) -> list[Irq]:
    return unpack_all(flic.floating.all())


# get_ind_bit, and set_bit of a big-endian host: the tables are written by hand.


@pytest.mark.parametrize(
    ("address", "offset", "byte", "mask"),
    [
        (0x1000, 0, 0x1007, 0x01),  # bit 0 of the first 64-bit word is its last byte's lowest bit
        (0x1000, 7, 0x1007, 0x80),
        (0x1000, 8, 0x1006, 0x01),
        (0x1000, 63, 0x1000, 0x80),
        (0x1000, 64, 0x100F, 0x01),
        (0x1008, 0, 0x100F, 0x01),
        (0x1003, 0, 0x1004, 0x01),  # 3 bytes after the page's start are 24 bits
        (0x1FFF, 7, 0x1FF8, 0x80),
    ],
)
def test_bits_of_an_adapter_without_swap(address: int, offset: int, byte: int, mask: int) -> None:
    assert Indicator(address, offset).byte(False) == (byte, mask)


@pytest.mark.parametrize(
    ("address", "offset", "byte", "mask"),
    [
        (0x1000, 0, 0x1000, 0x80),  # from the left
        (0x1000, 7, 0x1000, 0x01),
        (0x1000, 8, 0x1001, 0x80),
        (0x1000, 64, 0x1008, 0x80),
        (0x1003, 1, 0x1003, 0x40),
        (0x1FFF, 7, 0x1FFF, 0x01),
    ],
)
def test_bits_of_an_adapter_with_swap(address: int, offset: int, byte: int, mask: int) -> None:
    assert Indicator(address, offset).byte(True) == (byte, mask)


def test_every_bit_of_a_page_is_another_one() -> None:
    for swap in (False, True):
        places = {Indicator(0x1000, offset).byte(swap) for offset in range(4096 * 8)}
        assert len(places) == 4096 * 8
        assert {byte for byte, _ in places} == set(range(0x1000, 0x2000))


# Selftest irq_routing.c, and the check that it tests.


@pytest.mark.parametrize(
    ("address", "offset", "allowed"),
    [
        (0, 4096 * 8, False),
        (0, 4096 * 8 - 4, True),
        (0, 4096 * 8 - 1, True),
        (0xFFF, 8, False),
        (0xFFF, 7, True),
        (0x1000, 1 << 63, False),
    ],
)
def test_a_bit_must_be_in_its_page(address: int, offset: int, allowed: bool) -> None:
    inside, bit = Indicator(0, 0), Indicator(address, offset)
    for route in (AdapterRoute(bit, inside, 0), AdapterRoute(inside, bit, 0)):
        if allowed:
            check_route(route)
        else:
            with pytest.raises(RefusedError, match="outside of its page") as refused:
                check_route(route)
            assert refused.value.number == errno.EINVAL


# set_adapter_int.


def test_a_rising_gsi_sets_the_indicator_then_the_summary_and_injects(flic: Flic, memory: Memory) -> None:
    assert flic.set_adapter(ROUTE, 1) == 1
    assert memory.writes == [0x1000, 0x2000]
    assert (memory.bytes[0x1000], memory.bytes[0x2000]) == (0x04, 0x40)
    assert pending(flic) == [Irq(Kind.IO_ADAPTER, Io(word=word_of(3)))]
    assert memory.injected == [word_of(3)]


def test_a_summary_that_is_set_coalesces(flic: Flic, memory: Memory) -> None:
    memory.bytes[0x2000] = 0x40
    assert flic.set_adapter(ROUTE, 1) == 0
    assert memory.bytes[0x1000] == 0x04
    assert pending(flic) == []


def test_other_bits_beside_the_summary_do_not_coalesce(flic: Flic, memory: Memory) -> None:
    memory.bytes[0x2000] = 0xBF
    assert flic.set_adapter(ROUTE, 1) == 1
    assert memory.bytes[0x2000] == 0xFF


def test_a_low_level_is_nothing(flic: Flic, memory: Memory) -> None:
    assert flic.set_adapter(ROUTE, 0) == 0
    assert (memory.writes, pending(flic)) == ([], [])


def test_an_adapter_must_be_registered(flic: Flic, memory: Memory) -> None:
    assert flic.set_adapter(AdapterRoute(ROUTE.indicator, ROUTE.summary, 2), 1) == -1
    assert memory.writes == []


@pytest.mark.parametrize(
    ("route", "written"),
    [
        (AdapterRoute(Indicator(0x1_0000, 0), Indicator(0, 0), 1), []),
        (AdapterRoute(Indicator(0, 0), Indicator(0x1_0000, 0), 1), [0]),
    ],
)
def test_without_memory_nothing_is_injected(
    flic: Flic, memory: Memory, route: AdapterRoute, written: list[int]
) -> None:
    assert flic.set_adapter(route, 1) == -1
    assert (memory.writes, pending(flic)) == (written, [])


def test_a_masked_adapter_sets_bits_alone(flic: Flic, memory: Memory) -> None:
    flic.set(Group.ADAPTER_MODIFY, 0, modify_request(1, Request.MASK, mask=1))
    assert flic.set_adapter(ROUTE, 1) == 1
    assert (memory.bytes[0x2000], pending(flic)) == (0x40, [])
    flic.set(Group.ADAPTER_MODIFY, 0, modify_request(1, Request.MASK, mask=0))
    memory.bytes[0x2000] = 0
    assert flic.set_adapter(ROUTE, 1) == 1
    assert len(pending(flic)) == 1


def test_a_full_list_is_reported(flic: Flic) -> None:
    flic.floating.resume(SavedFloating((short(Irq(1, Io())),) * MAX_IO))
    assert flic.set_adapter(ROUTE, 1) == -errno.EBUSY


def test_adapters_are_saved_and_resumed(flic: Flic, memory: Memory) -> None:
    other = Flic(memory)
    other.resume(flic.save())
    assert other.adapters.find(1) == Adapter(1, 3, maskable=True, swap=True, suppressible=True)
    other.set(Group.ADAPTER_MODIFY, 0, modify_request(1, Request.MASK, mask=1))
    adapter = flic.adapters.find(1)
    assert adapter is not None
    assert not adapter.masked
