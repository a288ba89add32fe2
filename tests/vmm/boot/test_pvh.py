"""ELF files with an entry for PVH. Xen: xen/include/public/arch-x86/hvm/start_info.h."""

from __future__ import annotations

import struct

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import RSDP, memory_map
from irqchip_client.vmm.start import StartMode

from .images import CODE, MIB, elf64, note, pvh_elf


def test_it_is_entered_in_protected_mode_with_the_start_information(memory: GuestMemory) -> None:
    image = parse_image(pvh_elf(MIB + 7, MIB, CODE))
    start = load(memory, image, command_line="console=hvc0", initrd=b"initrd!", rsdp=RSDP)
    assert (start.mode, start.entry) == (StartMode.PROTECTED, MIB + 7)
    assert memory.read(MIB, len(CODE)) == CODE
    magic, version, flags, modules, modules_at, line_at, rsdp, map_at, entries = struct.unpack(
        "<4I4QI", memory.read(start.ebx, 52)
    )
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, RSDP)
    assert memory.read(line_at, 13) == b"console=hvc0\0"
    initrd_at, length, _, _ = struct.unpack("<4Q", memory.read(modules_at, 32))
    assert memory.read(initrd_at, length) == b"initrd!"
    mapped = [struct.unpack("<QQI4x", memory.read(map_at + 24 * at, 24)) for at in range(entries)]
    assert mapped == [tuple(each) for each in memory_map(memory.size)]


def test_without_an_initrd_there_is_no_module(memory: GuestMemory) -> None:
    start = load(memory, parse_image(pvh_elf(MIB, MIB, CODE)))
    assert struct.unpack("<I Q", memory.read(start.ebx + 12, 4) + memory.read(start.ebx + 16, 8)) == (0, 0)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (elf64(MIB, MIB, CODE), "without a multiboot header .* and without a note with an entry for PVH"),
        (elf64(MIB, MIB, CODE, note(b"Xen\0", 17, bytes(8))), "without a note with an entry"),
        (elf64(MIB, MIB, CODE, note(b"GNU\0", 18, bytes(8))), "without a note with an entry"),
        (elf64(MIB, MIB, CODE, note(b"Xen\0", 18, bytes(12))), "its entry for PVH has 12 bytes"),
        (elf64(MIB, MIB, CODE, struct.pack("<3I", 4, 0xFFFF_FFF0, 18)), "a note is not in the file"),
        (pvh_elf(MIB, MIB, CODE)[:-40], "its notes are not in the file"),
        (b"\x7fELF" + bytes(100), "without a multiboot header"),
        (b"\x7fELF\x02", "ends too early"),
    ],
)
def test_another_elf_file_or_one_that_is_damaged_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse_image(image)


def test_an_entry_outside_of_the_image_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(InvalidArgument, match="its entry 0x200000 is not in the image"):
        load(memory, parse_image(pvh_elf(2 * MIB, MIB, CODE)))
