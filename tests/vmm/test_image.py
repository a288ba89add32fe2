"""Boot images. Multiboot Specification 0.6.96."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import InvalidArgument
from irqchip_client.vmm.image import BOOT_MAGIC, INFO_AT, load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import memory_map
from irqchip_client.vmm.start import Start, StartMode

MIB = 1 << 20
CODE = bytes(range(200))


def header(flags: int, *fields: int) -> bytes:
    magic = 0x1BADB002
    return struct.pack(f"<3I{len(fields)}I", magic, flags, -(magic + flags) & 0xFFFF_FFFF, *fields)


def elf(entry: int, address: int, data: bytes, size: int, flags: int = 0) -> bytes:
    """An ELF32 file with one segment, whose first bytes are the multiboot header."""
    data = header(flags) + data
    start = struct.pack("<16s2H5I6H", b"\x7fELF\x01\x01\x01", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return start + struct.pack("<8I", 1, 84, address, address, len(data), size, 7, 4096) + data


def elf64(entry: int, address: int, data: bytes) -> bytes:
    data = header(0) + data
    start = struct.pack("<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return start + struct.pack("<2I6Q", 1, 7, 120, address, address, len(data), len(data), 4096) + data


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(4 * MIB)


def word(memory: GuestMemory, address: int) -> int:
    return int.from_bytes(memory.read(address, 4), "little")


def text(memory: GuestMemory, address: int) -> str:
    return memory.read(address, 200).split(b"\0")[0].decode()


def test_an_elf_image_is_loaded_and_entered_in_protected_mode(memory: GuestMemory) -> None:
    start = load(memory, parse_image(elf(MIB + 12, MIB, CODE, 0x5000)))
    assert start == Start(StartMode.PROTECTED, MIB + 12, eax=BOOT_MAGIC, ebx=INFO_AT)
    assert memory.read(MIB + 12, len(CODE)) == CODE
    assert memory.read(MIB + 0x4FFF, 1) == b"\0"


def test_an_entry_point_by_its_virtual_address_is_entered_at_its_physical_one() -> None:
    higher_half = bytearray(elf(0xC000_0000 + MIB + 12, MIB, CODE, 0x5000))
    struct.pack_into("<I", higher_half, 52 + 8, 0xC000_0000 + MIB)  # p_vaddr
    assert parse_image(bytes(higher_half)).entry == MIB + 12


def test_a_64_bit_elf_image_is_loaded_and_entered_too(memory: GuestMemory) -> None:
    start = load(memory, parse_image(elf64(MIB + 12, MIB, CODE)))
    assert (start.mode, start.entry) == (StartMode.PROTECTED, MIB + 12)
    assert memory.read(MIB + 12, len(CODE)) == CODE


def test_addresses_in_the_header_determine_where_an_image_is_loaded(memory: GuestMemory) -> None:
    image = b"junk" + header(1 << 16, MIB + 4, MIB, MIB + 4 + 32 + len(CODE), 2 * MIB, MIB + 36) + CODE
    start = load(memory, parse_image(image))
    assert start.entry == MIB + 36
    assert memory.read(MIB, len(image)) == image


def test_the_boot_information_has_memory_command_line_and_module(memory: GuestMemory) -> None:
    start = load(memory, parse_image(elf(MIB, MIB, CODE, 0x5001)), command_line="irq=pic x", initrd=b"initrd!")
    info = start.ebx
    flags = word(memory, info)
    assert flags & (1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9) == flags
    assert (word(memory, info + 4), word(memory, info + 8)) == (0x9FC00 >> 10, 3 << 10)
    assert text(memory, word(memory, info + 16)) == "irq=pic x"
    assert word(memory, info + 20) == 1
    module = word(memory, info + 24)
    first, end = word(memory, module), word(memory, module + 4)
    assert first % 4096 == 0
    assert first >= MIB + 0x5001
    assert memory.read(first, end - first) == b"initrd!"
    assert text(memory, word(memory, module + 8)) == "initrd"
    length, at = word(memory, info + 44), word(memory, info + 48)
    ranges = []
    while length > 0:
        size, base, extent, kind = struct.unpack("<IQQI", memory.read(at, 24))
        ranges.append((base, extent, kind))
        at, length = at + size + 4, length - size - 4
    assert ranges == [tuple(each) for each in memory_map(memory.size)]
    assert text(memory, word(memory, info + 64)) == "irqchipctl run"


def test_any_other_image_is_flat_and_starts_in_real_mode(memory: GuestMemory) -> None:
    assert load(memory, parse_image(CODE)) == Start(StartMode.REAL, 0x7C00, edx=0x80)
    assert memory.read(0x7C00, len(CODE)) == CODE
    assert load(memory, parse_image(CODE, flat_address=0x10000)).entry == 0x10000


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "it is empty"),
        (b"\x7fELF" + bytes(100), "without a multiboot header"),
        (header(1 << 4) + bytes(100), "asks for 0x10"),
        (header(0) + bytes(100), "no addresses, and it is no ELF file"),
        (b"\x7fELF\x01\x01\x01" + b"\0" + header(0) + b"\0", "ends too early"),
        (header(1 << 16, MIB), "ends too early"),
        (header(1 << 16, MIB, MIB + 8, 0, 0, 0), "not those of its bytes"),
        (header(1 << 16, MIB, MIB, MIB + 1000, 0, 0), "not those of its bytes"),
        (elf(0, MIB, CODE, 4), "a segment is not in the file"),
        (elf(0, MIB, CODE, 300)[:200], "a segment is not in the file"),
    ],
)
def test_a_damaged_image_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse_image(image)


@pytest.mark.parametrize(
    ("image", "what", "why"),
    [
        (elf(MIB, 4 * MIB - 100, CODE, 300), {}, "0x40.* bytes of memory; there are 0x400000"),
        (
            elf(MIB, MIB, CODE, 300),
            {"initrd": bytes(3 * MIB)},
            r"no memory for the initrd: it needs 3145728 bytes .*; give the machine more \(--memory\)",
        ),
        (elf(MIB, INFO_AT, CODE, 300), {}, "where its boot information goes"),
        (elf(MIB, MIB, CODE, 300), {"command_line": "x" * 300_000}, "or that is too long"),
        (CODE, {"command_line": "x"}, "a flat binary is given no command line"),
        (CODE, {"initrd": b"x"}, "a flat binary is given no command line and no initrd"),
    ],
)
def test_an_image_that_is_too_large_is_refused(
    memory: GuestMemory, image: bytes, what: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        load(memory, parse_image(image), **what)  # type: ignore[arg-type]


@given(st.binary(max_size=300), st.integers(0, 0xFFFF_FFFF), st.integers(0, 6))
def test_any_image_boots_or_is_refused(junk: bytes, number: int, word_index: int) -> None:
    memory = GuestMemory(MIB)
    for image in (junk, header(1 << 16) + junk, bytearray(elf(MIB // 2, MIB // 2, CODE, 300))):
        damaged = bytearray(image)
        if len(damaged) > 84:
            struct.pack_into("<I", damaged, 52 + 4 * word_index, number)
        with suppress(InvalidArgument):
            load(memory, parse_image(bytes(damaged)))
