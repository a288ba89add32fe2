"""An I/O bus: which device claims an access. KVM: virt/kvm/kvm_main.c kvm_io_bus_*."""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import Protocol

from irqchipd.vm.errors import VmError


class Device(Protocol):
    """The target of accesses on a bus."""

    def read(self, address: int, size: int) -> int:
        """A guest's read of some bytes; the value is zero-extended."""

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write of some bytes."""


class IoBus:
    """Ranges that do not overlap, each a device's.

    A device's reach is how far an access that begins in its range may go: KVM claims less than some ranges have.
    """

    __slots__ = ("_devices", "_ends", "_reaches", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._reaches: list[int] = []
        self._devices: list[Device] = []

    def __len__(self) -> int:
        return len(self._devices)

    def device_at(self, start: int, length: int) -> Device | None:
        """The device of exactly this range, if there is one."""
        index = bisect_right(self._starts, start) - 1
        if index >= 0 and (self._starts[index], self._ends[index]) == (start, start + length):
            return self._devices[index]
        return None

    def register(self, start: int, length: int, device: Device, reach: int = 0) -> None:
        """Claim a range; EEXIST where part of it is claimed. Its reach is its length, or more."""
        end = start + length
        index = bisect_right(self._starts, start)
        if (index and self._ends[index - 1] > start) or (index < len(self._starts) and self._starts[index] < end):
            other = index - 1 if index and self._ends[index - 1] > start else index
            theirs = f"{self._starts[other]:#x} to {self._ends[other] - 1:#x}"
            raise VmError(
                errno.EEXIST,
                f"part of {start:#x} to {end - 1:#x} is claimed: another device has {theirs}; choose others",
            )
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        self._reaches.insert(index, max(end, start + reach))
        self._devices.insert(index, device)

    def unregister(self, start: int) -> None:
        """Give up the range that begins at an address."""
        index = self._starts.index(start)
        del self._starts[index], self._ends[index], self._reaches[index], self._devices[index]

    def find(self, address: int, size: int) -> Device | None:
        """The device in whose range an access begins, and within whose reach the access ends; or None."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ends[index] and address + size <= self._reaches[index]:
            return self._devices[index]
        return None
