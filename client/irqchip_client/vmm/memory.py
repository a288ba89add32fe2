"""A guest's RAM and ROM."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from irqchip_client._errors import InvalidArgument
from irqchip_client.devices.ram import NOTES

PAGE = 4096


class Rom:
    """Read-only memory of a guest: `data` from a guest physical address on, both multiples of 4096.

    host_address  the address in this process, to map the ROM into a guest
    """

    def __init__(self, address: int, data: bytes) -> None:
        if not data or len(data) % PAGE or address % PAGE:
            raise InvalidArgument(
                errno.EINVAL, f"ROM is a multiple of {PAGE} bytes, not {len(data)} bytes at {address:#x}: fill it up"
            )
        self.address = address
        self.size = len(data)
        self.end = address + len(data)
        self._memory = mmap.mmap(-1, len(data))
        self._memory[:] = data
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def read(self, address: int, length: int) -> bytes:
        """Reads bytes, all of them within this ROM."""
        return self._memory[address - self.address : address - self.address + length]


class GuestMemory:
    """A guest's RAM, zero at first, and its ROM. RAM has `size` bytes from `start` on, both multiples of 4096.

    start         the guest physical address
    file          a descriptor of a file that is the RAM, of this size or more: processes with vCPUs of one guest share
                  it; by default the RAM is this process's
    notes         pages behind the RAM in the file, in which devices keep what outlives their processes
    host_address  the address in this process, to map the RAM into a guest
    end           the first address behind the RAM
    memfd         a descriptor with which processes share the RAM, if it is shareable(); else -1
    roms          what add_rom() has added
    """

    def __init__(self, size: int, *, start: int = 0, file: int = -1, notes: int = 0) -> None:
        if size <= 0 or size % PAGE:
            raise InvalidArgument(errno.EINVAL, f"a guest's memory is a multiple of {PAGE} bytes, not {size}")
        if start < 0 or start % PAGE:
            raise InvalidArgument(errno.EINVAL, f"a guest's memory begins at a multiple of {PAGE}, not at {start:#x}")
        self.size = size
        self.start = start
        self.end = start + size
        self.memfd = -1
        self._memory = mmap.mmap(file, size + notes * NOTES)
        self._view = memoryview(self._memory)
        self._pointer: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self.host_address = ctypes.addressof(self._pointer)
        self.roms: list[Rom] = []
        # Replaced, and not changed in place: any thread may be writing.
        self._watchers: tuple[Callable[[int, int], None], ...] = ()

    @classmethod
    def shareable(cls, size: int, *, start: int = 0, notes: int = 0) -> Self:
        """RAM that other processes can map, and that keeps its size: Session.share_memory() shares its memfd."""
        memfd = os.memfd_create("guest memory", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, max(size + notes * NOTES, 0))
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            made = cls(size, start=start, file=memfd, notes=notes)
        except BaseException:
            os.close(memfd)
            raise
        made.memfd = memfd
        return made

    def add_rom(self, address: int, data: bytes) -> None:
        """Adds ROM, which a guest can't write. Call it before adapters are made. InvalidArgument over other memory."""
        rom = Rom(address, data)
        taken = [(self.start, self.end), *((one.address, one.end) for one in self.roms)]
        if any(rom.address < end and start < rom.end for start, end in taken):
            raise InvalidArgument(
                errno.EINVAL, f"{len(data)} bytes of ROM at {address:#x} lie where the guest has memory: choose others"
            )
        self.roms.append(rom)

    def rom_at(self, address: int, length: int) -> Rom | None:
        """The ROM that has all of these bytes, or None."""
        for rom in self.roms:
            if rom.address <= address <= address + length <= rom.end:
                return rom
        return None

    def read(self, address: int, length: int) -> bytes:
        """Reads bytes of RAM, or of ROM. InvalidArgument elsewhere."""
        if (rom := self.rom_at(address, length)) is not None:
            return rom.read(address, length)
        self._check(address, length)
        return self._memory[address - self.start : address - self.start + length]

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes, from any thread. InvalidArgument outside of the RAM."""
        self._check(address, len(data))
        self._memory[address - self.start : address - self.start + len(data)] = data
        for written in self._watchers:
            written(address, len(data))

    def view(self, address: int, length: int) -> memoryview:
        """The bytes themselves. Call flush() after a write. InvalidArgument outside of the RAM."""
        self._check(address, length)
        return self._view[address - self.start : address - self.start + length]

    def notes(self, number: int) -> memoryview | None:
        """A page behind the RAM, which outlives the process of a device; None without such a page."""
        page = self._view[self.size + number * NOTES : self.size + (number + 1) * NOTES]
        return page if len(page) == NOTES else None

    def erase_notes(self) -> None:
        """Erases the devices' notes, which a reset of the machine makes invalid."""
        self._view[self.size :] = bytes(len(self._view) - self.size)

    def flush(self, address: int, length: int) -> None:
        """Reports a write through host_address, so that an emulator translates the code there again.

        From any thread. write() does this itself. InvalidArgument outside of the RAM.
        """
        self._check(address, length)
        for written in self._watchers:
            written(address, length)

    def watch(self, written: Callable[[int, int], None]) -> None:
        """Calls `written` with an address and a length after every write(), in the thread that writes."""
        self._watchers = (*self._watchers, written)

    def unwatch(self, written: Callable[[int, int], None]) -> None:
        """Undoes watch()."""
        self._watchers = tuple(other for other in self._watchers if other != written)

    def _check(self, address: int, length: int) -> None:
        if address < self.start or length < 0 or address + length > self.end:
            place = f"of {self.size:#x}" if not self.start else f"from {self.start:#x} to {self.end:#x}"
            raise InvalidArgument(errno.EINVAL, f"{length} bytes at {address:#x} are not in a guest's memory {place}")

    def close(self) -> None:
        """Frees the RAM. No guest may have it mapped any more."""
        self._pointer = None
        self._view.release()
        memfd, self.memfd = self.memfd, -1
        if memfd >= 0:
            os.close(memfd)
        with suppress(BufferError):  # a device's views keep it until they are gone
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
