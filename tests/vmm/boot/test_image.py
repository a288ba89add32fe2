"""Which format an image has, and what no image may do."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import InvalidArgument
from irqchip_client.vmm.boot.flat import FlatImage
from irqchip_client.vmm.boot.linux import LinuxImage
from irqchip_client.vmm.boot.multiboot import MultibootImage
from irqchip_client.vmm.boot.pvh import PvhImage
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .images import CODE, MIB, bzimage, elf64, multiboot_elf, multiboot_header, note, pvh_elf

XEN_NOTE = note(b"Xen\0", 18, struct.pack("<I", MIB))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (bzimage(CODE), LinuxImage),
        (multiboot_elf(MIB, MIB, CODE, 300), MultibootImage),
        (pvh_elf(MIB, MIB, CODE), PvhImage),
        (elf64(MIB, MIB, multiboot_header(0) + CODE, XEN_NOTE), MultibootImage),  # both: as in QEMU
        (CODE, FlatImage),
        (bytes(510) + b"\x55\xaa" + b"\xeb\x66HdrX", FlatImage),  # a boot sector
    ],
)
def test_a_format_is_recognised_by_its_header(image: bytes, kind: type) -> None:
    assert type(parse_image(image)) is kind


def test_any_other_image_is_flat_and_starts_in_real_mode(memory: GuestMemory) -> None:
    assert load(memory, parse_image(CODE)) == Start(StartMode.REAL, 0x7C00, edx=0x80)
    assert memory.read(0x7C00, len(CODE)) == CODE
    assert load(memory, parse_image(CODE, flat_address=0x10000)).entry == 0x10000


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="it is empty"):
        parse_image(b"")


@pytest.mark.parametrize("what", [{"command_line": "x"}, {"initrd": b"x"}])
def test_a_flat_binary_has_no_use_for_a_command_line_or_an_initrd(memory: GuestMemory, what: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="a flat binary takes no command line and no initrd"):
        load(memory, parse_image(CODE), **what)  # type: ignore[arg-type]


IMAGES = (
    bzimage(CODE),
    bzimage(CODE, flags=0),
    multiboot_elf(MIB, MIB, CODE, 300),
    multiboot_header(1 << 16, MIB + 4, MIB, 0, 0, MIB + 36) + CODE,
    elf64(MIB, MIB, multiboot_header(0) + CODE),
    pvh_elf(MIB, MIB, CODE),
)
# Where numbers are that an image controls.
PLACES = (*range(0x100), *range(0x1F0, 0x270))
NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 0x9FC00, 0xFFFFF, MIB, 4 * MIB, 0xFFFF_F000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1]),
)


@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([1, 2, 4, 8]), NUMBERS), max_size=4),
    st.integers(0, 1 << 12),
    st.sampled_from([None, 0, 1, 5000, 3 * MIB]),
)
def test_a_damaged_image_boots_or_is_refused_and_spoils_nothing(
    image: bytes, damages: list[tuple[int, int, int]], cut: int, initrd: int | None
) -> None:
    damaged = bytearray(image[: max(len(image) - cut, 1) if cut < len(image) else len(image)])
    for at, size, value in damages:
        if at + size <= len(damaged):
            damaged[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    with GuestMemory(4 * MIB) as memory, suppress(InvalidArgument):
        firmware = bytes(range(256)) * 4
        memory.write(0x9FC00, firmware)
        memory.write(MIB - 1024, firmware)
        start = load(
            memory,
            parse_image(bytes(damaged), flat_address=0x7C00),
            command_line="" if initrd is None else "line",
            initrd=None if initrd is None else bytes(initrd),
        )
        assert 0 <= start.entry < memory.size
        assert memory.read(0x9FC00, 1024) == firmware
        assert memory.read(MIB - 1024, 1024) == firmware


@given(st.binary(max_size=2000))
def test_any_bytes_boot_or_are_refused(junk: bytes) -> None:
    with GuestMemory(4 * MIB) as memory:
        for image in (junk, multiboot_header(1 << 16) + junk, b"\x7fELF\x02" + junk, b"\x7fELF\x01" + junk):
            with suppress(InvalidArgument):
                load(memory, parse_image(image))
