"""A PC's firmware: an image in ROM that ends at 4 GiB, where the processor begins, and a copy of its end below 1 MiB.

The copy below 1 MiB is in RAM, as when a PC's host bridge has turned its shadow RAM on. This machine has no host
bridge. SeaBIOS (src/fw/shadow.c make_bios_writable) looks for one, reports that it is missing, and takes the RAM as is.
"""

from __future__ import annotations

import errno

from irqchip_client._errors import InvalidArgument

from .memory import PAGE, GuestMemory
from .pc.memory_map import E820_ENTRY, MIB, Kind, MemoryRange

END = 1 << 32
LARGEST = 16 * MIB
SHADOW, SHADOW_END = 0x2_0000, MIB  # the most bytes of the copy, and where it ends


def load_firmware(memory: GuestMemory, image: bytes) -> None:
    """Puts an image into ROM and shadow RAM: vCPU 0 begins in it after RESET.

    InvalidArgument for an image whose size is no multiple of 4 KiB, or more than 16 MiB; and for less RAM than 1 MiB.
    """
    if not 0 < len(image) <= LARGEST or len(image) % PAGE:
        raise InvalidArgument(
            errno.EINVAL,
            f"a firmware image has a multiple of {PAGE} bytes, and {LARGEST // MIB} MiB at most; "
            f"this one has {len(image)} bytes",
        )
    memory.add_rom(END - len(image), image)
    shadow = image[-SHADOW:]
    memory.write(SHADOW_END - len(shadow), shadow)


def firmware_files(memory: GuestMemory) -> dict[str, bytes]:
    """The files of fw_cfg that describe this machine to firmware. QEMU: hw/i386/fw_cfg.c fw_cfg_arch_create."""
    return {"etc/e820": E820_ENTRY.pack(*MemoryRange(memory.start, memory.size, Kind.RAM))}
