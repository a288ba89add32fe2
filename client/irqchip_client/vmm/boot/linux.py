"""Linux's bzImage. Linux: Documentation/arch/x86/boot.rst, and zero-page.rst there."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import E820_ENTRY, MIB, memory_map
from irqchip_client.vmm.start import Start, StartMode

from .given import Given
from .long_mode import write_descriptors, write_page_tables
from .room import Room
from .segments import Segment, bad_image

# Fields of the setup header, which begins at SETUP_SECTORS. An offset in the file is the same in the zero page.
SETUP_SECTORS, SIZE_IN_PARAGRAPHS, VIDEO_MODE, BOOT_FLAG = 0x1F1, 0x1F4, 0x1FA, 0x1FE
JUMP_LENGTH, MAGIC, VERSION = 0x201, 0x202, 0x206  # the header ends where the jump leads
LOADER, LOAD_FLAGS, INITRD, COMMAND_LINE = 0x210, 0x211, 0x218, 0x228
INITRD_MAX, EXTENDED_FLAGS, LINE_SIZE = 0x22C, 0x236, 0x238
SETUP_DATA, PREFERRED_ADDRESS, INIT_SIZE = 0x250, 0x258, 0x260
LEAST_HEADER_END, MOST_HEADER_END = 0x264, 0x290
LOADED_HIGH, KERNEL_64 = 1 << 0, 1 << 0  # of LOAD_FLAGS; of EXTENDED_FLAGS
WITH_EXTENDED_FLAGS, OLDEST = 0x20C, 0x20A  # versions: 2.12, 2.10
NO_NAME, NORMAL_MODE = 0xFF, 0xFFFF  # of LOADER: without a number of its own; of VIDEO_MODE
SECTOR: Final = 512
# Fields of the zero page.
RSDP, E820_ENTRIES, E820_TABLE = 0x070, 0x1E8, 0x2D0
ZERO_PAGE_SIZE, MAX_E820_ENTRIES = 0x1000, 128
SETUP_DATA_HEADER = struct.Struct("<QII")  # next, type, length
SETUP_RNG_SEED, SEED_BYTES = 9, 32
ENTRY_64: Final = 0x200


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """Linux, entered in 64-bit mode if it is a 64-bit kernel, otherwise in 32-bit protected mode.

    header      the setup header, from SETUP_SECTORS on
    kernel      the part behind the setup code: the decompressor, and the compressed kernel
    address     the address at which the kernel is loaded
    init_size   the bytes of memory that the kernel needs there
    initrd_max  the highest address that the initrd's last byte may have
    line_size   the greatest length of a command line
    """

    header: bytes = field(repr=False)
    kernel: memoryview = field(repr=False)
    is_64_bit: bool
    address: int
    init_size: int
    initrd_max: int
    line_size: int
    has_name_first = False

    @property
    def entry(self) -> int:
        """The physical address of the first instruction."""
        return self.address + ENTRY_64 if self.is_64_bit else self.address

    def load(self, memory: GuestMemory, given: Given) -> Start:
        """See BootImage."""
        line, initrd = given.line, given.initrd
        if len(line) - 1 > self.line_size:
            raise bad_image(f"its command line has {len(line) - 1} bytes, and the kernel takes {self.line_size}")
        segment = Segment(self.address, self.kernel, max(self.init_size, len(self.kernel)))
        room = Room(memory)
        room.load([segment], self.entry)
        zero_page_at = room.lowest("boot parameters", ZERO_PAGE_SIZE)
        line_at = room.put_lowest("the command line", line)
        initrd_at = 0 if initrd is None else room.put_highest("the initrd", initrd, below=self.initrd_max + 1)
        seed = (SETUP_RNG_SEED, os.urandom(SEED_BYTES))  # the kernel has no device for entropy
        setup_data = _write_setup_data(room, (*given.setup_data, seed))
        zero_page = bytearray(ZERO_PAGE_SIZE)
        zero_page[SETUP_SECTORS : SETUP_SECTORS + len(self.header)] = self.header
        entries = memory_map(memory.size)[:MAX_E820_ENTRIES]
        for format_, at, *values in (
            ("<Q", RSDP, given.rsdp or 0),
            ("<B", E820_ENTRIES, len(entries)),
            ("<H", VIDEO_MODE, NORMAL_MODE),
            ("<B", LOADER, NO_NAME),
            ("<2I", INITRD, initrd_at, len(initrd or b"")),
            ("<I", COMMAND_LINE, line_at),
            ("<Q", SETUP_DATA, setup_data),
        ):
            struct.pack_into(format_, zero_page, at, *values)
        for number, entry in enumerate(entries):
            E820_ENTRY.pack_into(zero_page, E820_TABLE + number * E820_ENTRY.size, *entry)
        memory.write(zero_page_at, bytes(zero_page))
        gdt = write_descriptors(room, long=self.is_64_bit)
        if self.is_64_bit:
            cr3 = write_page_tables(memory, room)
            return Start(StartMode.LONG, self.entry, esi=zero_page_at, gdt=gdt, cr3=cr3)
        return Start(StartMode.PROTECTED, self.entry, esi=zero_page_at, gdt=gdt)


def recognise_linux(image: bytes) -> LinuxImage | None:
    """None for another format. InvalidArgument for an image of Linux that is damaged or too old."""
    if image[BOOT_FLAG : BOOT_FLAG + 2] != b"\x55\xaa" or image[MAGIC : MAGIC + 4] != b"HdrS":
        return None
    header_end = MAGIC + image[JUMP_LENGTH]
    if len(image) < LEAST_HEADER_END:
        raise bad_image("it ends too early")
    (version,) = struct.unpack_from("<H", image, VERSION)
    if version < OLDEST:
        raise bad_image(f"its boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.10, of Linux 2.6.31")
    if not LEAST_HEADER_END <= header_end <= MOST_HEADER_END:
        raise bad_image(f"its setup header ends at {header_end:#x}, and not in {LEAST_HEADER_END:#x} to 0x290")
    if not image[LOAD_FLAGS] & LOADED_HIGH:
        raise bad_image("it is a zImage, which is loaded below 1 MiB; build a bzImage")
    kernel = memoryview(image)[((image[SETUP_SECTORS] or 4) + 1) * SECTOR :]
    size = struct.unpack_from("<I", image, SIZE_IN_PARAGRAPHS)[0] * 16
    if len(kernel) + 15 < size or len(kernel) <= ENTRY_64:  # the size is rounded up
        raise bad_image(f"it ends too early: it has {len(kernel)} bytes of its {size} behind the setup code")
    (initrd_max,) = struct.unpack_from("<I", image, INITRD_MAX)
    (line_size,) = struct.unpack_from("<I", image, LINE_SIZE)
    address, init_size = struct.unpack_from("<QI", image, PREFERRED_ADDRESS)
    (flags,) = struct.unpack_from("<H", image, EXTENDED_FLAGS)
    return LinuxImage(
        header=image[SETUP_SECTORS:header_end],
        kernel=kernel,
        is_64_bit=version >= WITH_EXTENDED_FLAGS and bool(flags & KERNEL_64),
        address=address or MIB,
        init_size=init_size,
        initrd_max=initrd_max,
        line_size=line_size,
    )


def _write_setup_data(room: Room, entries: Iterable[tuple[int, bytes]]) -> int:
    """Writes the list's entries, the last one first, and returns the address of the first."""
    following = 0
    for kind, data in reversed(list(entries)):
        node = SETUP_DATA_HEADER.pack(following, kind, len(data)) + data
        following = room.put_lowest("setup data", node, alignment=8)
    return following
