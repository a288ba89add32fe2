"""ELF files with an entry for PVH: Linux's vmlinux, Xen. Xen: xen/include/public/arch-x86/hvm/start_info.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import memory_map
from irqchip_client.vmm.start import Start, StartMode

from .elf import elf_notes, elf_segments, is_elf
from .given import Given
from .room import Room
from .segments import Segment, bad_image

# Xen: xen/include/public/elfnote.h
NOTE_NAME, PHYS32_ENTRY = b"Xen", 18
MAGIC, VERSION = 0x336E_C578, 1
# magic, version, flags, number of modules; addresses of modules, command line, RSDP, memory map; its number of entries
START_INFO = struct.Struct("<4I4QI4x")
MODULE, MAP_ENTRY = struct.Struct("<3Q8x"), struct.Struct("<QQI4x")  # address, size, command line; E820h's entry
ENTRY_SIZES: Final = (4, 8)


@dataclass(frozen=True, slots=True)
class PvhImage:
    """A PVH image. It is entered in 32-bit protected mode, with an initrd as its only module."""

    entry: int
    segments: tuple[Segment, ...]
    has_name_first = False

    def load(self, memory: GuestMemory, given: Given) -> Start:
        """See BootImage."""
        room = Room(memory)
        room.load(self.segments, self.entry)
        line_at = room.put_lowest("the command line", given.line)
        modules = b""
        if given.initrd is not None:
            initrd_at = room.put_highest("the initrd", given.initrd)
            modules = MODULE.pack(initrd_at, len(given.initrd), 0)
        entries = memory_map(memory.size)
        mapped = b"".join(MAP_ENTRY.pack(*entry) for entry in entries)
        info_at = room.lowest("the start information", START_INFO.size + len(modules) + len(mapped))
        modules_at = info_at + START_INFO.size
        info = START_INFO.pack(
            MAGIC,
            VERSION,
            0,
            1 if modules else 0,
            modules_at if modules else 0,
            line_at,
            given.rsdp or 0,
            modules_at + len(modules),
            len(entries),
        )
        memory.write(info_at, info + modules + mapped)
        return Start(StartMode.PROTECTED, self.entry, ebx=info_at)


def recognise_pvh(image: bytes) -> PvhImage | None:
    """None for another format. InvalidArgument for a damaged ELF file."""
    if not is_elf(image):
        return None
    for name, kind, description in elf_notes(image):
        if name == NOTE_NAME and kind == PHYS32_ENTRY:
            if len(description) not in ENTRY_SIZES:
                raise bad_image(f"its entry for PVH has {len(description)} bytes, and not 4 or 8")
            return PvhImage(int.from_bytes(description, "little"), elf_segments(image)[1])
    return None
