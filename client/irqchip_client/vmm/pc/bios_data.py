"""The BIOS data area, at 400h, and the extended one: what a BIOS says of the machine to a kernel.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, section 3.
"""

from __future__ import annotations

from typing import Final

from irqchip_client.vmm.memory import GuestMemory

from .memory_map import EBDA

START: Final = 0x400
SIZE: Final = 0x100
COM1: Final = 0x3F8
# The equipment word: a mathematics coprocessor, a pointing device, one serial port. No display and no disk drive.
COPROCESSOR, POINTING_DEVICE, ONE_SERIAL_PORT = 1 << 1, 1 << 2, 1 << 9
# The keyboard's buffer, as offsets from START; its head and tail are equal: it is empty.
BUFFER, BUFFER_END = 0x1E, 0x3E
ENHANCED_KEYBOARD = 1 << 4  # a keyboard of 101 keys


def bios_data_area() -> bytes:
    """The bytes from 400h on."""
    area = bytearray(SIZE)
    for address, word in (
        (0x400, COM1),
        (0x40E, EBDA >> 4),
        (0x410, COPROCESSOR | POINTING_DEVICE | ONE_SERIAL_PORT),
        (0x413, EBDA >> 10),  # base memory, KiB
        (0x41A, BUFFER),
        (0x41C, BUFFER),
        (0x480, BUFFER),
        (0x482, BUFFER_END),
        (0x496, ENHANCED_KEYBOARD),
    ):
        area[address - START : address - START + 2] = word.to_bytes(2, "little")
    area[0x47C - START] = 1  # COM1's time limit
    return bytes(area)


def extended_bios_data_area() -> bytes:
    """The first bytes of it: its size in KiB."""
    return bytes([1])


def write_bios_data(memory: GuestMemory) -> None:
    """Writes both areas. InvalidArgument for a memory that ends below them."""
    memory.write(START, bios_data_area())
    memory.write(EBDA, extended_bios_data_area())
