"""The guest's RAM for devices: in the process that executes the vCPUs, or in another that maps it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from typing import Protocol

from irqchip_client import MemoryPart
from irqchip_client._errors import InvalidArgument

NOTES = 4096  # bytes that a device may keep outside of its process
# Words of 32 bits at the end of a virtio device's notes, which other processes read.
PUBLISHED = NOTES - 16  # their offset
IS_CURRENT = 0  # 1 if the next word is up to date, and the device is at its slot's place
INTERRUPT_STATUS = 1  # the register, which the vCPUs' process then reads without the device
OWNER = 2  # a random number of the process that is the device; 0 after the VM's reset


class Ram(Protocol):
    """A guest's RAM. Addresses are the guest's; InvalidArgument for addresses outside of the RAM."""

    def read(self, address: int, length: int) -> bytes:
        """Reads bytes."""

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes."""

    def view(self, address: int, length: int) -> memoryview:
        """The bytes themselves, to be read and written at any time. Call flush() after a write."""

    def flush(self, address: int, length: int) -> None:
        """Reports a write through a view."""

    def notes(self, number: int) -> memoryview | None:
        """The NOTES bytes that the guest's machine keeps for a device, zero at its start; None if it keeps no notes."""

    def erase_notes(self) -> None:
        """Zeros the notes of all devices: the machine is reset."""


class MappedRam:
    """RAM that another process shares.

    parts  the parts of the RAM; the constructor closes their descriptors

    Behind the RAM's first part, its memfd may have pages of NOTES bytes for devices.
    """

    def __init__(self, parts: Sequence[MemoryPart]) -> None:
        self._parts: list[tuple[int, int, memoryview]] = []
        self._notes = memoryview(b"")
        try:
            for part in parts:
                size = part.length if self._parts else os.fstat(part.memfd).st_size - part.offset
                mapped = memoryview(mmap.mmap(part.memfd, size, offset=part.offset))
                if not self._parts:
                    self._notes = mapped[part.length :]
                self._parts.append((part.address, part.address + part.length, mapped[: part.length]))
        finally:
            for part in parts:
                os.close(part.memfd)

    def view(self, address: int, length: int) -> memoryview:
        for start, end, memory in self._parts:
            if start <= address and length >= 0 and address + length <= end:
                return memory[address - start : address - start + length]
        raise InvalidArgument(errno.EINVAL, f"{length} bytes at {address:#x} are not in the guest's memory")

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes) -> None:
        self.view(address, len(data))[:] = data

    def flush(self, address: int, length: int) -> None:
        """Does nothing: the vCPUs run in another process, which notices no write."""

    def notes(self, number: int) -> memoryview | None:
        page = self._notes[number * NOTES : (number + 1) * NOTES]
        return page if len(page) == NOTES else None

    def erase_notes(self) -> None:
        self._notes[:] = bytes(len(self._notes))
