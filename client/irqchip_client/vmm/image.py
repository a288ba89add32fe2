"""A PC's boot images: recognises and loads them. Each format has a file in boot/."""

from __future__ import annotations

from typing import Final

from .boot.elf import is_elf
from .boot.flat import BOOT_SECTOR, FlatImage
from .boot.given import BootImage, Given
from .boot.linux import recognise_linux
from .boot.multiboot import recognise_multiboot
from .boot.pvh import recognise_pvh
from .boot.segments import bad_image
from .memory import GuestMemory
from .start import Start

# A kernel may match several formats: the first match counts.
FORMATS: Final = (recognise_linux, recognise_multiboot, recognise_pvh)


def parse_image(image: bytes, *, flat_address: int = BOOT_SECTOR) -> BootImage:
    """Linux's bzImage, a multiboot image or an ELF file with an entry for PVH; anything else is a flat binary.

    flat_address  the address at which a flat binary is loaded and entered, in 16-bit real mode

    InvalidArgument for an empty image, another ELF file, or one that is damaged.
    """
    if not image:
        raise bad_image("it is empty; give a bzImage, a multiboot image or a flat binary")
    for recognise in FORMATS:
        if (recognised := recognise(image)) is not None:
            return recognised
    if is_elf(image):
        raise bad_image(
            "it is an ELF file without a multiboot header in its first 8 KiB, and without a note with an entry for PVH:"
            " link one into it, or make a flat binary of it, by objcopy -O binary"
        )
    return FlatImage(image, flat_address)


def load(
    memory: GuestMemory,
    image: BootImage,
    *,
    command_line: str = "",
    initrd: bytes | None = None,
    rsdp: int | None = None,
) -> Start:
    """Puts an image into a guest's memory, and returns how the first vCPU starts.

    rsdp  the address of ACPI's root pointer, for formats that pass it on; None if a kernel has to look for it

    InvalidArgument for too little memory, and for a flat binary with an initrd or a command line.
    """
    return image.load(memory, Given(command_line, initrd, rsdp))
