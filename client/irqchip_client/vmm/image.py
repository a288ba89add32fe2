"""Boot images: a multiboot ELF, or a flat binary. Multiboot Specification 0.6.96."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field

from irqchip_client._errors import InvalidArgument

from .memory import PAGE, GuestMemory
from .pc.memory_map import EBDA, MIB, memory_map
from .start import Start, StartMode

# 3.1, the image's header: in its first 8 KiB, on a boundary of 4 bytes.
HEADER_MAGIC, HEADER_WITHIN = 0x1BADB002, 8192
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE, ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
SUPPORTED = (
    PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE | ADDRESSES
)  # of the bits that must be understood, 0 to 15; and bit 16
MUST_BE_UNDERSTOOD = 0xFFFF
# 3.2, the machine's state.
BOOT_MAGIC = 0x2BADB002
# 3.3, the boot information.
INFO = struct.Struct("<13I 12x I 52x")  # flags to mmap_addr; then boot_loader_name
INFO_SIZE = 120
HAS_MEMORY, HAS_COMMAND_LINE, HAS_MODULES, HAS_MEMORY_MAP, HAS_LOADER_NAME = (1 << bit for bit in (0, 2, 3, 6, 9))
MODULE, MAP_ENTRY = struct.Struct("<4I"), struct.Struct("<IQQI")

ELF_HEADER, ELF_SEGMENT = struct.Struct("<16s2H5I6H"), struct.Struct("<8I")
ELF64_HEADER, ELF64_SEGMENT = struct.Struct("<16s2HI3QI6H"), struct.Struct("<2I6Q")
LOADABLE = 1

BOOT_SECTOR = 0x7C00
INFO_AT = 0x9000  # where the boot information lies
NAME = b"irqchipctl run"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the image: `data`, and zeros up to `size` bytes."""

    address: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class BootImage:
    """What is loaded, and where it is entered.

    multiboot  whether it is given the boot information
    """

    entry: int
    segments: tuple[Segment, ...] = field(repr=False)
    multiboot: bool

    @property
    def end(self) -> int:
        """The first address behind the image."""
        return max(segment.address + segment.size for segment in self.segments)


def parse_image(image: bytes, *, flat_address: int = BOOT_SECTOR) -> BootImage:
    """A multiboot image, ELF or with addresses in its header; anything else is a flat binary, in 16-bit real mode.

    flat_address  where a flat binary is loaded and entered: by default where a PC has its boot sector

    InvalidArgument for an empty image, an ELF file without a multiboot header, or one that is damaged.
    """
    if not image:
        raise bad_image("it is empty; give a multiboot image, or a flat binary")
    header = _find_header(image)
    if header is None:
        if image.startswith(b"\x7fELF"):
            raise bad_image(
                "it is an ELF file without a multiboot header in its first 8 KiB: "
                "link one into it, or make a flat binary of it, by objcopy -O binary"
            )
        return BootImage(flat_address, (Segment(flat_address, image, len(image)),), multiboot=False)
    flags = struct.unpack_from("<I", image, header + 4)[0]
    if unknown := flags & MUST_BE_UNDERSTOOD & ~SUPPORTED:
        raise bad_image(f"its multiboot header asks for {unknown:#x}, which is not known here")
    try:
        return _by_addresses(image, header) if flags & ADDRESSES else _by_elf(image)
    except struct.error:
        raise bad_image("it ends too early") from None


def _find_header(image: bytes) -> int | None:
    for offset in range(0, min(len(image), HEADER_WITHIN) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", image, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset
    return None


def _by_addresses(image: bytes, header: int) -> BootImage:
    """3.1.3: the header says where the image goes."""
    at, start, end, bss_end, entry = struct.unpack_from("<5I", image, header + 12)
    offset = header - (at - start)
    length = end - start if end else len(image) - offset
    size = max(bss_end - start if bss_end else length, length)
    if start > at or offset < 0 or length < 0 or offset + length > len(image):
        raise bad_image("the addresses in its multiboot header are not those of its bytes")
    return BootImage(entry, (Segment(start, image[offset : offset + length], size),), multiboot=True)


def _by_elf(image: bytes) -> BootImage:
    if not image.startswith(b"\x7fELF"):
        raise bad_image("its multiboot header has no addresses, and it is no ELF file")
    return BootImage(*elf_segments(image), multiboot=True)


def elf_segments(image: bytes) -> tuple[int, tuple[Segment, ...]]:
    """The entry's physical address, and what is loaded."""
    long = image[4] == 2  # GRUB and others load 64-bit ELF files too, and enter them in 32-bit mode
    if long:
        _, _, _, _, entry, table, _, _, _, entry_size, count, *_ = ELF64_HEADER.unpack_from(image)
    else:
        _, _, _, _, entry, table, _, _, _, entry_size, count, *_ = ELF_HEADER.unpack_from(image)
    segments = []
    physical = entry
    for number in range(count):
        place = table + number * entry_size
        if long:
            kind, _, offset, virtual, address, file_size, size, _ = ELF64_SEGMENT.unpack_from(image, place)
        else:
            kind, offset, virtual, address, file_size, size, _, _ = ELF_SEGMENT.unpack_from(image, place)
        if kind == LOADABLE and size:
            if virtual <= entry < virtual + size:  # as GRUB and QEMU have it, where the two addresses differ
                physical = entry - virtual + address
            if offset + file_size > len(image) or file_size > size:
                raise bad_image("a segment is not in the file")
            segments.append(Segment(address, image[offset : offset + file_size], size))
    if not segments:
        raise bad_image("it has nothing to load")
    return physical, tuple(segments)


def load(memory: GuestMemory, image: BootImage, *, command_line: str = "", initrd: bytes | None = None) -> Start:
    """Puts an image into a guest's memory, with an initrd as its only module, and returns how the vCPU starts.

    InvalidArgument where the memory has no room for it, or it is flat and has no use for an initrd or command line.
    """
    load_segments(memory, image.segments)
    if not image.multiboot:
        if command_line or initrd is not None:
            raise bad_image("a flat binary is given no command line and no initrd")
        return Start(StartMode.REAL, image.entry, edx=0x80)  # the first disk, as a BIOS says
    return Start(
        StartMode.PROTECTED, image.entry, eax=BOOT_MAGIC, ebx=_give_information(memory, image, command_line, initrd)
    )


def load_segments(memory: GuestMemory, segments: tuple[Segment, ...]) -> None:
    """Writes an image's parts. InvalidArgument where the memory has no room for one."""
    for segment in segments:
        if segment.address < memory.start:
            raise bad_image(f"a part of it belongs at {segment.address:#x}; memory begins at {memory.start:#x}")
        if (end := segment.address + segment.size) > memory.end:
            raise bad_image(
                f"it needs {end - memory.start:#x} bytes of memory; there are {memory.size:#x}; "
                "give the machine more (--memory)"
            )
        memory.write(segment.address, segment.data)


def _give_information(memory: GuestMemory, image: BootImage, command_line: str, initrd: bytes | None) -> int:
    flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MEMORY_MAP | HAS_LOADER_NAME
    entries = b"".join(MAP_ENTRY.pack(MAP_ENTRY.size - 4, *entry) for entry in memory_map(memory.size))
    texts = command_line.encode() + b"\0", NAME + b"\0"
    module = b""
    if initrd is not None:
        at = -(-max(image.end, MIB) // PAGE) * PAGE
        if at + len(initrd) > memory.size:
            raise bad_image(
                f"there is no memory for the initrd: it needs {len(initrd)} bytes at {at:#x}; "
                "give the machine more (--memory)"
            )
        memory.write(at, initrd)
        flags |= HAS_MODULES
    line_at, name_at, map_at, module_at, module_line_at, end = _lay_out(
        INFO_AT + INFO_SIZE, *texts, entries, bytes(MODULE.size), b"initrd\0"
    )
    if end > BOOT_SECTOR * 8 or any(s.address < end and s.address + s.size > INFO_AT for s in image.segments):
        raise bad_image(f"it lies where its boot information goes, {INFO_AT:#x} to {end:#x}, or that is too long")
    if initrd is not None:
        module = MODULE.pack(at, at + len(initrd), module_line_at, 0)
    info = INFO.pack(
        flags,
        EBDA >> 10,
        max(memory.size - MIB, 0) >> 10,
        0,
        line_at,
        int(bool(module)),
        module_at if module else 0,
        *(0, 0, 0, 0),
        len(entries),
        map_at,
        name_at,
    )
    for address, data in (
        (INFO_AT, info[:INFO_SIZE]),
        (line_at, texts[0]),
        (name_at, texts[1]),
        (map_at, entries),
        (module_at, module),
        (module_line_at, b"initrd\0"),
    ):
        memory.write(address, data)
    return INFO_AT


def _lay_out(address: int, *parts: bytes) -> list[int]:
    """The addresses of parts, one behind the other on boundaries of 8 bytes, and their end."""
    places = []
    for part in parts:
        places.append(address)
        address += -(-len(part) // 8) * 8
    return [*places, address]


def bad_image(why: str) -> InvalidArgument:
    return InvalidArgument(errno.EINVAL, f"this image can't be booted: {why}")
