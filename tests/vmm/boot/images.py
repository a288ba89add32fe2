"""Boot images that tests make."""

from __future__ import annotations

import struct

MIB = 1 << 20
CODE = bytes(range(200))


def multiboot_header(flags: int, *fields: int) -> bytes:
    magic = 0x1BADB002
    return struct.pack(f"<3I{len(fields)}I", magic, flags, -(magic + flags) & 0xFFFF_FFFF, *fields)


def elf(entry: int, address: int, data: bytes, size: int) -> bytes:
    """An ELF32 file with one segment."""
    start = struct.pack("<16s2H5I6H", b"\x7fELF\x01\x01\x01", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return start + struct.pack("<8I", 1, 84, address, address, len(data), size, 7, 4096) + data


def elf64(entry: int, address: int, data: bytes, notes: bytes = b"") -> bytes:
    """An ELF64 file with one segment, and another for notes if there are any."""
    count = 2 if notes else 1
    data_at = 64 + 56 * count
    start = struct.pack("<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    load = struct.pack("<2I6Q", 1, 7, data_at, address, address, len(data), len(data), 4096)
    note = struct.pack("<2I6Q", 4, 4, data_at + len(data), 0, 0, len(notes), len(notes), 4) if notes else b""
    return start + load + note + data + notes


def multiboot_elf(entry: int, address: int, data: bytes, size: int) -> bytes:
    """A multiboot image whose segment begins with the header, of 12 bytes."""
    return elf(entry, address, multiboot_header(0) + data, size)


def note(name: bytes, kind: int, description: bytes) -> bytes:
    padded = [part + bytes(-len(part) % 4) for part in (name, description)]
    return struct.pack("<3I", len(name), len(description), kind) + b"".join(padded)


def pvh_elf(entry: int, address: int, data: bytes) -> bytes:
    """An ELF64 file with an entry for PVH."""
    other = note(b"GNU\0", 3, bytes(20))
    return elf64(0, address, data, other + note(b"Xen\0", 18, struct.pack("<Q", entry)))


def bzimage(
    code: bytes,
    *,
    version: int = 0x20F,
    loaded_high: bool = True,
    flags: int = 1,
    address: int = MIB,
    init_size: int = 0x5000,
    initrd_max: int = 0x7FFF_FFFF,
    line_size: int = 255,
    header_length: int = 0x6A,
) -> bytes:
    """A Linux image of two sectors of setup code. Its 64-bit entry has this code; its 32-bit entry leads there."""
    setup = bytearray(3 * 512)
    kernel = (b"\xe9" + struct.pack("<i", 0x200 - 5)).ljust(0x200, b"\x90") + code
    kernel += bytes(-len(kernel) % 16)
    for form, at, *values in (
        ("<B", 0x1F1, 2),
        ("<I", 0x1F4, len(kernel) // 16),
        ("<H", 0x1FE, 0xAA55),
        ("<2B4sH", 0x200, 0xEB, header_length, b"HdrS", version),
        ("<B", 0x211, int(loaded_high)),
        ("<I", 0x22C, initrd_max),
        ("<BBHI", 0x234, 1, 21, flags, line_size),
        ("<QI", 0x258, address, init_size),
    ):
        struct.pack_into(form, setup, at, *values)
    return bytes(setup) + kernel
