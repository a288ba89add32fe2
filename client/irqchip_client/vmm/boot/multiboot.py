"""Multiboot images: an ELF file, or addresses in the header. Multiboot Specification 0.6.96."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import EBDA, MIB, memory_map
from irqchip_client.vmm.start import Start, StartMode

from .elf import elf_segments, is_elf
from .given import Given
from .room import Room
from .segments import Segment, bad_image

# 3.1, the image's header: in its first 8 KiB, on a boundary of 4 bytes.
HEADER_MAGIC, HEADER_WITHIN = 0x1BADB002, 8192
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE, ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
MUST_BE_UNDERSTOOD = 0xFFFF  # bits 0 to 15; a loader may ignore the others
SUPPORTED = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE  # of these bits
# 3.2, the machine's state.
BOOT_MAGIC: Final = 0x2BADB002
# 3.3, the boot information.
INFO = struct.Struct("<13I 12x I 52x")  # flags to mmap_addr; then boot_loader_name
HAS_MEMORY, HAS_COMMAND_LINE, HAS_MODULES, HAS_MEMORY_MAP, HAS_LOADER_NAME = (1 << bit for bit in (0, 2, 3, 6, 9))
MODULE, MAP_ENTRY = struct.Struct("<4I"), struct.Struct("<IQQI")
NAME, MODULE_NAME = b"irqchipctl run\0", b"initrd\0"


@dataclass(frozen=True, slots=True)
class MultibootImage:
    """A multiboot image. It is entered in 32-bit protected mode, with an initrd as its only module."""

    entry: int
    segments: tuple[Segment, ...]
    has_name_first = True  # as with QEMU and GRUB

    def load(self, memory: GuestMemory, given: Given) -> Start:
        """See BootImage."""
        room = Room(memory)
        room.load(self.segments, self.entry)
        information = _give_information(memory, room, max(segment.end for segment in self.segments), given)
        return Start(StartMode.PROTECTED, self.entry, eax=BOOT_MAGIC, ebx=information)


def recognise_multiboot(image: bytes) -> MultibootImage | None:
    """None for another format. InvalidArgument for a damaged multiboot image, or an unsupported feature."""
    header = _find_header(image)
    if header is None:
        return None
    flags = struct.unpack_from("<I", image, header + 4)[0]
    if unknown := flags & MUST_BE_UNDERSTOOD & ~SUPPORTED:
        raise bad_image(f"its multiboot header asks for features that are not supported: {unknown:#x}")
    if flags & ADDRESSES:
        return _by_addresses(image, header)
    if not is_elf(image):
        raise bad_image("its multiboot header has no addresses, and it is no ELF file")
    return MultibootImage(*elf_segments(image))


def _find_header(image: bytes) -> int | None:
    for offset in range(0, min(len(image), HEADER_WITHIN) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", image, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset
    return None


def _by_addresses(image: bytes, header: int) -> MultibootImage:
    """3.1.3: the header has the image's addresses."""
    try:
        at, start, end, bss_end, entry = struct.unpack_from("<5I", image, header + 12)
    except struct.error:
        raise bad_image("it ends too early") from None
    offset = header - (at - start)
    length = end - start if end else len(image) - offset
    size = max(bss_end - start if bss_end else length, length)
    if start > at or offset < 0 or length < 0 or offset + length > len(image):
        raise bad_image("the addresses in its multiboot header do not match its contents")
    return MultibootImage(entry, (Segment(start, memoryview(image)[offset : offset + length], size),))


def _give_information(memory: GuestMemory, room: Room, image_end: int, given: Given) -> int:
    flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MEMORY_MAP | HAS_LOADER_NAME
    entries = b"".join(MAP_ENTRY.pack(MAP_ENTRY.size - 4, *entry) for entry in memory_map(memory.size))
    initrd_at = 0
    if given.initrd is not None:
        initrd_at = room.put_lowest("the initrd", given.initrd, above=max(image_end, MIB))
        flags |= HAS_MODULES
    parts = [bytes(INFO.size), given.line, NAME, entries, bytes(MODULE.size), MODULE_NAME]
    lengths = [-(-len(part) // 8) * 8 for part in parts]
    info_at = room.lowest("the boot information", sum(lengths))
    _, line_at, name_at, map_at, module_at, module_name_at = (
        info_at + sum(lengths[:number]) for number in range(len(parts))
    )
    modules = 0
    if given.initrd is not None:
        modules = 1
        parts[4] = MODULE.pack(initrd_at, initrd_at + len(given.initrd), module_name_at, 0)
    parts[0] = INFO.pack(
        flags,
        EBDA >> 10,
        max(memory.size - MIB, 0) >> 10,
        0,
        line_at,
        modules,
        module_at if modules else 0,
        *(0, 0, 0, 0),
        len(entries),
        map_at,
        name_at,
    )
    memory.write(info_at, b"".join(part.ljust(length, b"\0") for part, length in zip(parts, lengths, strict=True)))
    return info_at
