"""A vCPU's accesses to ports and memory, which chips and the owners of regions answer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Listener
from irqchipd.vm.regions import Access, Region, RegionDevice, SharedBytes, Space
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpus import Vcpus

MAX_PORT: Final = 0xFFFF
MAX_ADDRESS: Final = (1 << 64) - 1
PIO_SIZES: Final = (1, 2, 4)
MMIO_SIZES: Final = (1, 2, 4, 8)


class Accesses(Vcpus):
    """The operations on a VM's buses."""

    # None, or False: nothing claims the address. An Access waits for a region's owner. EDEADLK: the owner itself makes
    # the access.

    def pio_read(self, vcpu: int, port: int, size: int, by: LineSource | None = None) -> Access | int | None:
        """A vCPU's IN of 1, 2 or 4 bytes."""
        with self._turn:
            if size not in PIO_SIZES or port > MAX_PORT:
                raise _bad_access(PIO_SIZES, MAX_PORT, size, port)
            self._enter(vcpu)
            board = self._board
            device = board.pio.find(port, size)
            if device is None:
                return None
            if isinstance(device, RegionDevice):
                return board.regions.read(device, vcpu, port, size, by)
            value = device.read(port, size)
            if board.regions.observer is not None:
                board.regions.observer.kvm_pio(False, port, size, value, vcpu)
            return value

    def pio_write(self, vcpu: int, port: int, size: int, value: int, by: LineSource | None = None) -> Access | bool:
        """A vCPU's OUT of 1, 2 or 4 bytes."""
        with self._turn:
            if size not in PIO_SIZES or port > MAX_PORT or value >> 8 * size:
                raise _bad_access(PIO_SIZES, MAX_PORT, size, port, value)
            self._enter(vcpu)
            board = self._board
            device = board.pio.find(port, size)
            if device is None:
                return False
            if isinstance(device, RegionDevice):
                return board.regions.write(device, vcpu, port, size, value, by)
            if board.regions.observer is not None:
                board.regions.observer.kvm_pio(True, port, size, value, vcpu)
            device.write(port, size, value)
            return True

    def mmio_read(self, vcpu: int, address: int, size: int, by: LineSource | None = None) -> Access | int | None:
        """A vCPU's load of 1, 2, 4 or 8 bytes."""
        with self._turn:
            if size not in MMIO_SIZES or address > MAX_ADDRESS:
                raise _bad_access(MMIO_SIZES, MAX_ADDRESS, size, address)
            board = self._board
            device = board.find_mmio(self._enter(vcpu), address, size)
            if device is None:
                return None
            if isinstance(device, RegionDevice):
                return board.regions.read(device, vcpu, address, size, by)
            value = device.read(address, size)
            if board.regions.observer is not None:
                board.regions.observer.kvm_mmio(False, address, size, value, vcpu)
            return value

    def mmio_write(self, vcpu: int, address: int, size: int, value: int, by: LineSource | None = None) -> Access | bool:
        """A vCPU's store of 1, 2, 4 or 8 bytes."""
        with self._turn:
            if size not in MMIO_SIZES or address > MAX_ADDRESS or value >> 8 * size:
                raise _bad_access(MMIO_SIZES, MAX_ADDRESS, size, address, value)
            board = self._board
            cpu = self._enter(vcpu)
            device = board.find_mmio(cpu, address, size)
            if device is None:
                return False
            if isinstance(device, RegionDevice):
                return board.regions.write(device, vcpu, address, size, value, by)
            if board.regions.observer is not None:
                board.regions.observer.kvm_mmio(True, address, size, value, vcpu)
            device.write(address, size, value)
            if cpu.is_copied:
                cpu.wrote(device, address)
            return True

    # Regions.

    @property
    def has_indicators(self) -> bool:
        """Whether bits are set in the guest's memory."""
        return self._board.regions.has_indicators

    def register_region(
        self,
        source: LineSource,
        space: int,
        start: int,
        length: int,
        listener: Listener,
        *,
        doorbell: bool = False,
        datamatch: int | None = None,
        removed: Callable[[], None] | None = None,
        shared: SharedBytes | None = None,
    ) -> None:
        """Let a source answer for a range, or be notified of writes: EEXIST where a part is claimed, EINVAL, ENOSPC.

        listener is notified of the accesses; removed is called, from any thread, when the region is removed.
        """
        with self._turn:
            regions = self._board.regions
            regions.check(space, start, length, doorbell, datamatch, shared is not None)
            if source.closed:
                raise VmError(errno.ENOENT, f"line source {source.number} has been closed")
            regions.register(
                Region(source, Space(space), start, length, listener, doorbell, datamatch, removed, shared)
            )

    def unregister_region(self, source: LineSource, space: int, start: int, datamatch: int | None = None) -> None:
        """Undo register_region; ENOENT where the source has no such range. Accesses that wait stay unanswered."""
        with self._turn:
            self._board.regions.unregister(source, space, start, datamatch)

    def find_memory(self, address: int) -> Region:
        """The first part of the guest's memory that is shared and ends behind an address: ENOENT."""
        with self._turn:
            region = self._board.regions.shared_from(address)
            if region is None:
                raise VmError(errno.ENOENT, f"no guest memory is shared at {address:#x} or above it")
            return region

    def complete_access(self, source: LineSource, number: int, value: int, *, unanswered: bool = False) -> bool:
        """Take an owner's answer to an access, or its refusal to answer. Returns whether the access was still waiting.

        EINVAL where the value is too large, or comes with unanswered.
        """
        with self._turn:
            if unanswered and value:
                raise invalid(f"value {value:#x} of an access that is unanswered: leave the value out")
            return self._board.regions.complete(source, number, None if unanswered else value)


def _bad_access(sizes: Sequence[int], limit: int, size: int, address: int, value: int = 0) -> VmError:
    """The reason why an access is invalid."""
    if size not in sizes:
        return invalid(f"an access of {size} bytes is invalid: use {', '.join(map(str, sizes))} bytes")
    if address > limit:
        what = "port" if limit == MAX_PORT else "address"
        return invalid(f"{what} {address:#x} is out of range: use 0 to {limit:#x}")
    most = (1 << 8 * size) - 1
    return invalid(f"value {value:#x} does not fit into an access of {size} bytes: use 0 to {most:#x}, or more bytes")
