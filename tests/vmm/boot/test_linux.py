"""Linux's bzImage. Linux: Documentation/arch/x86/boot.rst, zero-page.rst."""

from __future__ import annotations

import struct

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.vmm.boot.given import Given
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.memory_map import RSDP, memory_map
from irqchip_client.vmm.start import StartMode

from .images import CODE, MIB, bzimage


def number(memory: GuestMemory, address: int, size: int = 4) -> int:
    return int.from_bytes(memory.read(address, size), "little")


def test_a_64_bit_kernel_is_entered_in_64_bit_mode_with_its_parameters(memory: GuestMemory) -> None:
    start = load(memory, parse_image(bzimage(CODE)), command_line="console=ttyS0", initrd=b"initrd!", rsdp=RSDP)
    assert (start.mode, start.entry) == (StartMode.LONG, MIB + 0x200)
    assert memory.read(start.entry, len(CODE)) == CODE
    page = start.esi
    assert memory.read(page + 0x202, 4) == b"HdrS"
    assert memory.read(number(memory, page + 0x228), 14) == b"console=ttyS0\0"
    initrd, length = number(memory, page + 0x218), number(memory, page + 0x21C)
    assert memory.read(initrd, length) == b"initrd!"
    assert initrd == 4 * MIB - 4096
    assert number(memory, page + 0x70, 8) == RSDP
    assert number(memory, page + 0x210, 1) == 0xFF  # a loader without a number
    entries = number(memory, page + 0x1E8, 1)
    table = [struct.unpack("<QQI", memory.read(page + 0x2D0 + 20 * at, 20)) for at in range(entries)]
    assert table == [tuple(each) for each in memory_map(memory.size)]


def test_the_rest_of_the_zero_page_is_zero(memory: GuestMemory) -> None:
    page = load(memory, parse_image(bzimage(CODE))).esi
    assert memory.read(page, 0x1E8) == bytes(0x1E8)
    assert memory.read(page + 0x1EF, 1) == b"\0"  # the sentinel
    assert memory.read(page + 0x26C, 0x2D0 - 0x26C) == bytes(0x2D0 - 0x26C)


def test_the_page_tables_map_4_gib_onto_themselves_and_the_descriptors_are_flat(memory: GuestMemory) -> None:
    start = load(memory, parse_image(bzimage(CODE)))
    for address in (0, MIB, 3 * MIB, 0x8000_0000, 0xFEE0_0000, 0xFFFF_F000):
        table = start.cr3
        for shift in (39, 30, 21):
            entry = number(memory, table + 8 * (address >> shift & 0x1FF), 8)
            assert entry & 3 == 3
            table = entry & ~0xFFF
        assert entry & 0x80
        assert table + address % (2 * MIB) == address
    code, data = (number(memory, start.gdt + selector, 8) for selector in start.selectors)
    assert (code >> 40 & 0xFF, data >> 40 & 0xFF) == (0x9B, 0x93)
    assert code >> 53 & 1  # of 64 bits


def test_a_32_bit_kernel_is_entered_in_protected_mode(memory: GuestMemory) -> None:
    for image in (bzimage(CODE, flags=0), bzimage(CODE, version=0x20B)):
        start = load(memory, parse_image(image))
        assert (start.mode, start.entry) == (StartMode.PROTECTED, MIB)
        assert number(memory, start.gdt + start.selectors[0], 8) >> 52 == 0x00C


def test_setup_data_is_a_list_that_ends_with_a_seed(memory: GuestMemory) -> None:
    image = parse_image(bzimage(CODE))
    start = image.load(memory, Given(setup_data=((3, b"pci"), (7, b"blob of data"))))
    at, found = number(memory, start.esi + 0x250, 8), []
    while at:
        following, kind, length = struct.unpack("<QII", memory.read(at, 16))
        found.append((kind, memory.read(at + 16, length)))
        at = following
    assert found[:2] == [(3, b"pci"), (7, b"blob of data")]
    ((kind, seed),) = found[2:]
    assert (kind, len(seed)) == (9, 32)
    assert any(seed)


def test_the_initrd_ends_below_the_kernels_limit_and_is_not_where_the_kernel_unpacks_itself(
    memory: GuestMemory,
) -> None:
    start = load(memory, parse_image(bzimage(CODE, initrd_max=3 * MIB - 1)), initrd=bytes(100))
    assert number(memory, start.esi + 0x218) == 3 * MIB - 4096
    start = load(memory, parse_image(bzimage(CODE, address=2 * MIB, init_size=2 * MIB)), initrd=bytes(100))
    assert number(memory, start.esi + 0x218) == 2 * MIB - 4096


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (bzimage(CODE)[:0x240], "ends too early"),
        (bzimage(CODE)[:0x700], "ends too early"),
        (bzimage(CODE)[:-16], "ends too early: it has 704 bytes of its 720"),
        (bzimage(CODE, version=0x203), "protocol 2.03 is older than 2.10"),
        (bzimage(CODE, header_length=0xFF), "header ends at 0x301"),
        (bzimage(CODE, header_length=0x20), "header ends at 0x222"),
        (bzimage(CODE, loaded_high=False), "zImage"),
    ],
)
def test_a_damaged_or_old_image_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse_image(image)


@pytest.mark.parametrize(
    ("image", "what", "why"),
    [
        (bzimage(CODE), {"command_line": "x" * 256}, "its command line has 256 bytes, and the kernel takes 255"),
        (bzimage(CODE), {"initrd": bytes(3 * MIB)}, r"no room for the initrd .*; give the machine more \(--memory\)"),
        (bzimage(CODE, address=16 * MIB), {}, r"needs memory up to 0x1005000, .* 0x400000 bytes; give .*\(--memory\)"),
        (bzimage(CODE, init_size=16 * MIB), {}, "needs memory up to 0x1100000"),
        (bzimage(CODE, address=0x90000, init_size=0x20000), {}, "RAM for kernels is 0x0 to 0x9fc00 and"),
        (bzimage(CODE, address=1 << 63), {}, "needs memory up to 0x8000000000005000"),
    ],
)
def test_an_image_for_which_there_is_no_room_is_refused(
    memory: GuestMemory, image: bytes, what: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        load(memory, parse_image(image), **what)  # type: ignore[arg-type]
