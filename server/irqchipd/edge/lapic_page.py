"""A copy of a local APIC's registers in memory that a client shares: see irqchip.lapic_page."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final

from irqchip.lapic_page import BASE_AT, CAN_BE_SHARED, COPIED, PAGE_SIZE, SEQUENCE_AT
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import WORDS
from irqchipd.vm.errors import VmError, invalid

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def _layout() -> struct.Struct:
    """The base, and then the words at their offsets."""
    layout, end = "<Q", BASE_AT + 8
    for offset in sorted(COPIED):
        layout += f"{offset - end}xI"
        end = offset + 4
    return struct.Struct(layout)


_LAYOUT: Final = _layout()
_values: Final[Callable[[Lapic], tuple[Any, ...]]] = attrgetter("base", *(WORDS[offset] for offset in sorted(COPIED)))


class LapicPage:
    """The page of one vCPU, a LapicCopy. What the client writes into the page changes nothing here."""

    def __init__(self, descriptor: int) -> None:
        """Map a memfd. EINVAL for any other file, and for a memfd that its client could shrink."""
        if not CAN_BE_SHARED:
            raise VmError(errno.EOPNOTSUPP, "a local APIC is shared on Linux on x86-64 only")
        _check(descriptor)
        try:
            self._memory = mmap.mmap(descriptor, PAGE_SIZE)
        except OSError as error:
            raise invalid(f"the memfd of a local APIC can't be mapped: {os.strerror(error.errno or 0)}") from None
        # A number that is assigned here is stored whole; pack_into clears before it stores.
        self._view = memoryview(self._memory)
        self._numbers = self._view.cast("Q")
        self._sequence = 0
        self.withdraw()

    def publish(self, lapic: Lapic) -> None:
        self.withdraw()
        _LAYOUT.pack_into(self._view, BASE_AT, *_values(lapic))
        self._sequence += 1
        self._numbers[SEQUENCE_AT // 8] = self._sequence

    def withdraw(self) -> None:
        self._sequence |= 1
        self._numbers[SEQUENCE_AT // 8] = self._sequence

    def close(self) -> None:
        """Unmap the page, after the last publish."""
        self._numbers.release()
        self._view.release()
        self._memory.close()


def _check(descriptor: int) -> None:
    """EINVAL for memory whose later writes could fail."""
    seals = 0
    with suppress(OSError):  # not a file in memory
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS:
        raise invalid("a local APIC is shared in a memfd with F_SEAL_SHRINK and F_SEAL_GROW")
    status = os.fstat(descriptor)
    if status.st_size != PAGE_SIZE or status.st_blksize != PAGE_SIZE:  # a memfd of huge pages can run out of them
        raise invalid(f"the memfd of a local APIC has one page of {PAGE_SIZE} bytes")
