"""The default places of a machine's virtio devices. The machine describes these places to the guest.

Each has a page of registers, and a level-triggered, active high line of its own, which no other device shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from irqchip_client.arm64 import spi

PAGE: Final = 0x1000  # bytes of addresses for a device
MOST: Final = 8  # devices: a PC's IOAPIC has as many pins above the ISA's


@dataclass(frozen=True, slots=True)
class Place:
    """The first address of a device's registers, and its line."""

    address: int
    gsi: int


# A PC: above the RAM of 3072 MiB at the most, and below the IOAPIC at FEC00000h; GSI 16 and up.
PC: Final = tuple(Place(0xD000_0000 + n * PAGE, 16 + n) for n in range(MOST))
# arm64: behind the SDK's own disk at A000000h; SPI 16 and up, as on QEMU's virt board.
ARM64: Final = tuple(Place(0x0A00_1000 + n * PAGE, spi(16 + n)) for n in range(MOST))
