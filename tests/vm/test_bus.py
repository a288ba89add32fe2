"""The I/O bus: ranges do not overlap, and an access belongs to at most one."""

from __future__ import annotations

import errno

import pytest

from irqchipd.vm.bus import IoBus
from irqchipd.vm.errors import VmError


class Device:
    """A device that is never accessed."""

    def read(self, address: int, size: int) -> int:
        raise NotImplementedError

    def write(self, address: int, size: int, value: int) -> None:
        raise NotImplementedError


LOW, MIDDLE, HIGH = Device(), Device(), Device()


@pytest.fixture
def bus() -> IoBus:
    """A bus with 10h-1Fh, the adjacent 20h-27h, and 40h-4Fh, registered out of order."""
    bus = IoBus()
    bus.register(0x40, 0x10, HIGH)
    bus.register(0x10, 0x10, LOW)
    bus.register(0x20, 0x08, MIDDLE)
    return bus


@pytest.mark.parametrize(
    ("address", "size", "device"),
    [
        (0x0F, 1, None),
        (0x0F, 2, None),
        (0x10, 1, LOW),
        (0x10, 8, LOW),
        (0x1C, 4, LOW),
        (0x1D, 4, None),  # half in the next range
        (0x1F, 1, LOW),
        (0x20, 4, MIDDLE),
        (0x27, 1, MIDDLE),
        (0x27, 2, None),
        (0x28, 1, None),
        (0x3F, 1, None),
        (0x3F, 2, None),
        (0x4F, 1, HIGH),
        (0x50, 1, None),
        ((1 << 64) - 1, 1, None),
    ],
)
def test_an_access_belongs_to_the_device_whose_range_contains_it(
    bus: IoBus, address: int, size: int, device: Device | None
) -> None:
    assert bus.find(address, size) is device


@pytest.mark.parametrize(
    ("start", "length"),
    [(0x10, 0x10), (0x08, 0x09), (0x1F, 1), (0x00, 0x100), (0x27, 2), (0x30, 0x11), (0x48, 1), (0x4F, 9)],
)
def test_a_range_that_overlaps_another_is_refused_and_changes_nothing(bus: IoBus, start: int, length: int) -> None:
    before = [bus.find(address, 1) for address in range(0x100)]
    with pytest.raises(VmError) as failure:
        bus.register(start, length, Device())
    assert failure.value.number == errno.EEXIST
    assert [bus.find(address, 1) for address in range(0x100)] == before


@pytest.mark.parametrize(("start", "length"), [(0x00, 0x10), (0x28, 0x18), (0x28, 1), (0x3F, 1), (0x50, 0x10)])
def test_a_range_may_touch_its_neighbours(bus: IoBus, start: int, length: int) -> None:
    device = Device()
    bus.register(start, length, device)
    assert bus.find(start, 1) is bus.find(start + length - 1, 1) is device
    assert (bus.find(0x10, 1), bus.find(0x27, 1), bus.find(0x40, 1)) == (LOW, MIDDLE, HIGH)


def test_a_range_that_was_given_up_can_be_claimed_again(bus: IoBus) -> None:
    bus.unregister(0x20)
    assert bus.find(0x20, 1) is None
    assert bus.find(0x1F, 1) is LOW
    device = Device()
    bus.register(0x20, 0x20, device)
    assert bus.find(0x3C, 4) is device


def test_an_access_that_begins_behind_a_range_is_never_its_devices(bus: IoBus) -> None:
    bus.register(0x60, 1, Device(), reach=4)
    assert [bus.find(address, 1) for address in (0x61, 0x63, 0x64)] == [None, None, None]


def test_a_devices_reach_may_exceed_its_claimed_range(bus: IoBus) -> None:
    """Like KVM's speaker port 61h, whose range reaches 64h, which belongs to the keyboard controller."""
    speaker, keyboard = Device(), Device()
    bus.register(0x61, 1, speaker, reach=4)
    assert bus.find(0x61, 2) is speaker
    bus.register(0x64, 1, keyboard)
    assert bus.find(0x61, 4) is speaker
    assert bus.find(0x64, 1) is keyboard
    with pytest.raises(VmError):
        bus.register(0x60, 2, keyboard)
