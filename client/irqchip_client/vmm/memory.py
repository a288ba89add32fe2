"""A guest's RAM."""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import Self

from irqchip_client._errors import InvalidArgument

PAGE = 4096


class GuestMemory:
    """RAM from guest physical address 0 on: `size` bytes, a multiple of 4096. It is zero at first.

    host_address  where it is in this process, for those who map it into a guest
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE:
            raise InvalidArgument(errno.EINVAL, f"a guest's memory is a multiple of {PAGE} bytes, not {size}")
        self.size = size
        self._memory = mmap.mmap(-1, size)
        self._pointer: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self.host_address = ctypes.addressof(self._pointer)

    def read(self, address: int, length: int) -> bytes:
        """Some bytes. InvalidArgument outside of it."""
        self._check(address, length)
        return self._memory[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        """Writes some bytes. InvalidArgument outside of it."""
        self._check(address, len(data))
        self._memory[address : address + len(data)] = data

    def _check(self, address: int, length: int) -> None:
        if address < 0 or length < 0 or address + length > self.size:
            raise InvalidArgument(
                errno.EINVAL, f"{length} bytes at {address:#x} are not in a guest's memory of {self.size:#x}"
            )

    def close(self) -> None:
        """Gives it back to the system. Nothing may map it any more."""
        self._pointer = None
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
