"""A PC's memory map: the one source of every map that a kernel is given, and of the places of firmware's tables."""

from __future__ import annotations

import errno
import struct
from enum import IntEnum
from typing import Final, NamedTuple

import irqchip_client  # its names are loaded at their first use: `irqchipctl run --help` does not wait for gRPC

MIB: Final = 1 << 20
EBDA: Final = 0x9FC00  # the extended BIOS data area: the last KiB of base memory
BASE_MEMORY_END: Final = 0xA0000
ROM: Final = 0xE0000  # RAM up to 1 MiB, in the place of a BIOS's ROM, with the tables
RSDP: Final = ROM  # ACPI 6.5, 5.2.5.1: kernels look for it from E0000h to FFFFFh
MP_TABLE: Final = 0xF0000  # Intel MultiProcessor Specification 1.4, chapter 4: looked for from F0000h to FFFFFh
ROM_SEGMENT: Final = 0xF000  # of real-mode code
BIOS_CALLS: Final = 0xFFF00  # code behind the real-mode interrupt vectors
IOAPIC: Final = 0xFEC0_0000
LOCAL_APIC: Final = 0xFEE0_0000
PAGE: Final = 0x1000
# The most RAM that a machine can have. Devices have the addresses from here up to the IOAPIC.
MEMORY_LIMIT: Final = 3072 * MIB


# A MemoryRange, as the BIOS call E820h returns it.
E820_ENTRY: Final = struct.Struct("<QQI")


class Kind(IntEnum):
    """A range's kind, numbered as by the BIOS call E820h: ACPI 6.5, table 15.4."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class MemoryRange(NamedTuple):
    """`size` bytes of physical addresses, from `start` on."""

    start: int
    size: int
    kind: Kind

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


def memory_map(size: int) -> tuple[MemoryRange, ...]:
    """The ranges of a PC with `size` bytes of RAM from address 0 on, ascending.

    Addresses in no range are free for devices. InvalidArgument for more RAM than MEMORY_LIMIT.
    """
    if size > MEMORY_LIMIT:
        raise irqchip_client.InvalidArgument(
            errno.EINVAL, f"a PC has at most {MEMORY_LIMIT // MIB} MiB of RAM, not {size / MIB:g}"
        )
    ranges = (
        MemoryRange(0, min(size, EBDA), Kind.RAM),
        MemoryRange(EBDA, BASE_MEMORY_END - EBDA, Kind.RESERVED),
        MemoryRange(ROM, MIB - ROM, Kind.RESERVED),
        MemoryRange(MIB, size - MIB, Kind.RAM),
        MemoryRange(IOAPIC, PAGE, Kind.RESERVED),
        MemoryRange(LOCAL_APIC, PAGE, Kind.RESERVED),
    )
    return tuple(each for each in ranges if each.size > 0)
