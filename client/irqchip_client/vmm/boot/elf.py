"""ELF files: segments to load, the entry, and notes. System V ABI, chapter 5."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from .segments import Segment, bad_image

MAGIC: Final = b"\x7fELF"
IS_64_BIT: Final = 2  # the file's class
HEADER, PROGRAM_HEADER = struct.Struct("<16s2H5I6H"), struct.Struct("<8I")
HEADER_64, PROGRAM_HEADER_64 = struct.Struct("<16s2HI3QI6H"), struct.Struct("<2I6Q")
LOADABLE, NOTES = 1, 4  # types of a program header
NOTE: Final = struct.Struct("<3I")  # sizes of the name and of the description, type
MAX_PROGRAM_HEADERS: Final = 256  # a kernel has fewer than ten


def is_elf(image: bytes) -> bool:
    return image.startswith(MAGIC)


def elf_segments(image: bytes) -> tuple[int, tuple[Segment, ...]]:
    """The entry's physical address, and the segments to load. InvalidArgument for a damaged file."""
    entry, headers = _read(image)
    segments = []
    physical = entry
    for kind, offset, virtual, address, file_size, size in headers:
        if kind == LOADABLE and size:
            if virtual <= entry < virtual + size:  # as GRUB and QEMU do if the two addresses differ
                physical = entry - virtual + address
            if offset + file_size > len(image) or file_size > size:
                raise bad_image("a segment is not in the file")
            segments.append(Segment(address, memoryview(image)[offset : offset + file_size], size))
    if not segments:
        raise bad_image("it has nothing to load")
    return physical, tuple(segments)


def elf_notes(image: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The name, type and description of each note. InvalidArgument for a damaged file."""
    for kind, offset, _, _, size, _ in _read(image)[1]:
        if kind == NOTES:
            if offset + size > len(image):
                raise bad_image("its notes are not in the file")
            yield from _notes(memoryview(image)[offset : offset + size])


def _notes(notes: memoryview) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes in a segment. Each name and description is padded to 4 bytes, in 64-bit files too."""
    at = 0
    while at + NOTE.size <= len(notes):
        name_size, size, kind = NOTE.unpack_from(notes, at)
        at += NOTE.size
        description_at = at + _up(name_size)
        if description_at + size > len(notes):
            raise bad_image("a note is not in the file")
        name = bytes(notes[at : at + name_size])
        yield name.rstrip(b"\0"), kind, bytes(notes[description_at : description_at + size])
        at = description_at + _up(size)


def _up(size: int) -> int:
    return -(-size // 4) * 4


def _read(image: bytes) -> tuple[int, list[tuple[int, int, int, int, int, int]]]:
    """The entry, and of each program header: type, offset, virtual and physical address, size in file and memory."""
    long = image[4:5] == bytes([IS_64_BIT])  # GRUB and others load 64-bit ELF files too, and enter them in 32-bit mode
    header, program_header = (HEADER_64, PROGRAM_HEADER_64) if long else (HEADER, PROGRAM_HEADER)
    try:
        _, _, _, _, entry, table, _, _, _, entry_size, count, *_ = header.unpack_from(image)
        if count > MAX_PROGRAM_HEADERS:
            raise bad_image(f"it has {count} program headers, more than {MAX_PROGRAM_HEADERS}")
        headers = []
        for number in range(count):
            fields = program_header.unpack_from(image, table + number * entry_size)
            if long:
                kind, _, *rest = fields
            else:
                kind, *rest = fields
            offset, virtual, address, file_size, size = rest[:5]
            headers.append((kind, offset, virtual, address, file_size, size))
    except (struct.error, OverflowError):  # the latter for an offset of 2^63 or more
        raise bad_image("it ends too early") from None
    return entry, headers
