"""The page tables and segment descriptors of a processor in 64-bit mode."""

from __future__ import annotations

import struct
from typing import Final

from irqchip_client.vmm.memory import PAGE, GuestMemory
from irqchip_client.vmm.start import CODE_64, FLAT_CODE, FLAT_DATA

from .room import Room

# SDM volume 3, 4.5: an entry is present and writable; and, in a page directory, for a page of 2 MiB.
PRESENT, LARGE = 0x3, 0x80
ENTRIES: Final = 512
GIB: Final = 4  # GiB that are mapped: all that a PC has


def write_page_tables(memory: GuestMemory, room: Room) -> int:
    """Writes page tables that map 4 GiB onto themselves, and returns CR3."""
    root = room.lowest("page tables", (2 + GIB) * PAGE)
    pointers, directories = root + PAGE, root + 2 * PAGE
    memory.write(root, struct.pack("<Q", pointers | PRESENT))
    memory.write(pointers, struct.pack(f"<{GIB}Q", *(directories + PAGE * n | PRESENT for n in range(GIB))))
    pages = range(GIB * ENTRIES)
    memory.write(directories, struct.pack(f"<{len(pages)}Q", *(n << 21 | LARGE | PRESENT for n in pages)))
    return root


def write_descriptors(room: Room, *, long: bool) -> int:
    """Writes a descriptor table of flat segments, as Start.gdt is, and returns its address."""
    table = struct.pack("<4Q", 0, 0, CODE_64 if long else FLAT_CODE, FLAT_DATA)
    return room.put_lowest("segment descriptors", table, alignment=8)
