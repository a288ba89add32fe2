"""Flat binaries in 16-bit real mode: images in no other format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .given import Given
from .room import Room
from .segments import Segment, bad_image

BOOT_SECTOR: Final = 0x7C00  # the address of a PC's boot sector
FIRST_DISK: Final = 0x80  # a BIOS passes it in DL


@dataclass(frozen=True, slots=True)
class FlatImage:
    """A flat binary, which is loaded and entered at one address."""

    image: bytes = field(repr=False)
    entry: int = BOOT_SECTOR
    has_name_first = False

    def load(self, memory: GuestMemory, given: Given) -> Start:
        """See BootImage."""
        if given.command_line or given.initrd is not None:
            raise bad_image("a flat binary takes no command line and no initrd")
        Room(memory).load([Segment(self.entry, self.image, len(self.image))], self.entry)
        return Start(StartMode.REAL, self.entry, edx=FIRST_DISK)
