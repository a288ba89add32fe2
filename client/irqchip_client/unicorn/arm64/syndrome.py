"""The syndrome and the address of an exception. Unicorn keeps them, and has no registers for them.

A Unicorn context is a copy of the processor's state, and its layout is private. So find_layout() lets an SVC execute,
once a process, and looks for the SVC's syndrome. It raises ImportError unless it finds exactly one place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from struct import iter_unpack, pack

from unicorn.unicorn_const import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM
from unicorn.unicorn_py3.arch.arm64 import UcAArch64
from unicorn.unicorn_py3.unicorn import UcContext

MARK = 0x1BC7  # the number of the SVC
SVC_SYNDROME = 0x15 << 26 | 1 << 25 | MARK
FAR_AFTER = 8  # bytes: a word for AArch32 is between the two

# Exception classes, ESR_EL1 bits 31:26, with a faulting address.
WITH_ADDRESS = frozenset((0x20, 0x21, 0x22, 0x24, 0x25, 0x34, 0x35))


class Syndrome:
    """A context, and in it the syndrome of the last exception and its address."""

    def __init__(self, context: UcContext) -> None:
        self.context = context
        base = context.context.value + find_layout()
        self._syndrome = ctypes.c_uint32.from_address(base)
        self._address = ctypes.c_uint64.from_address(base + FAR_AFTER)

    @property
    def value(self) -> int:
        """The value for ESR_EL1."""
        return self._syndrome.value

    @property
    def address(self) -> int | None:
        """The value for FAR_EL1; None for an exception that does not change FAR_EL1."""
        return self._address.value if self.value >> 26 in WITH_ADDRESS else None


@cache
def find_layout() -> int:
    """The offset of the syndrome in a context of this Unicorn."""
    uc = UcAArch64(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, pack("<I", 0xD400_0001 | MARK << 5))  # svc
    uc.hook_add(UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
    uc.emu_start(0, 0x800)
    places = [4 * at for at, (word,) in enumerate(iter_unpack("<I", bytes(uc.context_save()))) if word == SVC_SYNDROME]
    if len(places) != 1:
        raise ImportError("this release of Unicorn is not supported: the place of the syndrome is unknown")
    return places[0]
