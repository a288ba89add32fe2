"""Multiboot images. Multiboot Specification 0.6.96."""

from __future__ import annotations

import struct

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.vmm.boot.multiboot import BOOT_MAGIC
from irqchip_client.vmm.boot.room import INFORMATION
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import memory_map
from irqchip_client.vmm.start import Start, StartMode

from .images import CODE, MIB, elf64, multiboot_elf, multiboot_header


def word(memory: GuestMemory, address: int) -> int:
    return int.from_bytes(memory.read(address, 4), "little")


def text(memory: GuestMemory, address: int) -> str:
    return memory.read(address, 200).split(b"\0")[0].decode()


def test_an_elf_image_is_loaded_and_entered_in_protected_mode(memory: GuestMemory) -> None:
    start = load(memory, parse_image(multiboot_elf(MIB + 12, MIB, CODE, 0x5000)))
    assert start == Start(StartMode.PROTECTED, MIB + 12, eax=BOOT_MAGIC, ebx=INFORMATION)
    assert memory.read(MIB + 12, len(CODE)) == CODE
    assert memory.read(MIB + 0x4FFF, 1) == b"\0"


def test_an_entry_point_by_its_virtual_address_is_entered_at_its_physical_one(memory: GuestMemory) -> None:
    higher_half = bytearray(multiboot_elf(0xC000_0000 + MIB + 12, MIB, CODE, 0x5000))
    struct.pack_into("<I", higher_half, 52 + 8, 0xC000_0000 + MIB)  # p_vaddr
    assert load(memory, parse_image(bytes(higher_half))).entry == MIB + 12


def test_a_64_bit_elf_image_is_loaded_and_entered_too(memory: GuestMemory) -> None:
    start = load(memory, parse_image(elf64(MIB + 12, MIB, multiboot_header(0) + CODE)))
    assert (start.mode, start.entry) == (StartMode.PROTECTED, MIB + 12)
    assert memory.read(MIB + 12, len(CODE)) == CODE


def test_addresses_in_the_header_determine_where_an_image_is_loaded(memory: GuestMemory) -> None:
    header = multiboot_header(1 << 16, MIB + 4, MIB, MIB + 4 + 32 + len(CODE), 2 * MIB, MIB + 36)
    image = b"junk" + header + CODE
    start = load(memory, parse_image(image))
    assert start.entry == MIB + 36
    assert memory.read(MIB, len(image)) == image


def test_the_boot_information_has_memory_command_line_and_module(memory: GuestMemory) -> None:
    image = parse_image(multiboot_elf(MIB, MIB, CODE, 0x5001))
    start = load(memory, image, command_line="irq=pic x", initrd=b"initrd!")
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


@pytest.mark.parametrize("address", [0x4000, INFORMATION - 100, INFORMATION, 0x10000])
def test_the_boot_information_lies_where_the_image_does_not(memory: GuestMemory, address: int) -> None:
    image = multiboot_elf(address, address, CODE, 0x8000)
    info = load(memory, parse_image(image), command_line="x" * 5000).ebx
    line = word(memory, info + 16)
    assert memory.read(line, 5001) == b"x" * 5000 + b"\0"
    for part in (info, line, word(memory, info + 48)):
        assert not address <= part < address + 0x8000
    assert memory.read(address + 12, len(CODE)) == CODE


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (multiboot_header(1 << 4) + bytes(100), "not supported: 0x10"),
        (multiboot_header(0) + bytes(100), "no addresses, and it is no ELF file"),
        (b"\x7fELF\x01\x01\x01" + b"\0" + multiboot_header(0) + b"\0", "ends too early"),
        (multiboot_header(1 << 16, MIB), "ends too early"),
        (multiboot_header(1 << 16, MIB, MIB + 8, 0, 0, 0), "do not match its contents"),
        (multiboot_header(1 << 16, MIB, MIB, MIB + 1000, 0, 0), "do not match its contents"),
        (multiboot_elf(0, MIB, CODE, 4), "a segment is not in the file"),
        (multiboot_elf(0, MIB, CODE, 300)[:200], "a segment is not in the file"),
        (multiboot_elf(MIB, MIB, CODE, 300)[:44] + b"\xff\xff" * 20 + multiboot_header(0), "65535 program headers"),
    ],
)
def test_a_damaged_image_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse_image(image)


@pytest.mark.parametrize(
    ("image", "what", "why"),
    [
        (
            multiboot_elf(MIB, 4 * MIB - 100, CODE, 300),
            {},
            "needs memory up to 0x4000c8, .* 0x400000 bytes",
        ),
        (
            multiboot_elf(MIB, MIB, CODE, 300),
            {"initrd": bytes(3 * MIB)},
            r"no room for the initrd of 0x300000 bytes; give the machine more \(--memory\)",
        ),
        (multiboot_elf(MIB, MIB, CODE, 300), {"command_line": "x" * 4 * MIB}, "no room for the boot information"),
        (multiboot_elf(0x9F000, 0x9F000, CODE, 0x2000), {}, "RAM for kernels is 0x0 to 0x9fc00 and 0x100000 to 0x40"),
        (multiboot_elf(MIB - 1, MIB, CODE, 300), {}, "its entry 0xfffff is not in the image"),
        (multiboot_elf(MIB, MIB, CODE, 300), {"command_line": "a\0b"}, "NUL"),
    ],
)
def test_an_image_for_which_there_is_no_room_is_refused(
    memory: GuestMemory, image: bytes, what: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        load(memory, parse_image(image), **what)  # type: ignore[arg-type]
