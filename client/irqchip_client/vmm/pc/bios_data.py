"""The BIOS data areas (at 400h, and the extended one), which describe the machine to a kernel; and BIOS interrupts.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, sections 2 and 3. There is no BIOS. Its
calls return "not supported", so that a kernel that makes one in real mode goes on, as Xen and Linux do.
"""

from __future__ import annotations

import struct
from typing import Final

from irqchip_client.vmm.memory import GuestMemory

from .memory_map import BIOS_CALLS, EBDA, ROM_SEGMENT

START: Final = 0x400
SIZE: Final = 0x100
COM1: Final = 0x3F8
# The equipment word: a mathematics coprocessor, a pointing device, one serial port. No display and no disk drive.
COPROCESSOR, POINTING_DEVICE, ONE_SERIAL_PORT = 1 << 1, 1 << 2, 1 << 9
# The keyboard's buffer, as offsets from START; its head and tail are equal: it is empty.
BUFFER, BUFFER_END = 0x1E, 0x3E
ENHANCED_KEYBOARD = 1 << 4  # a keyboard of 101 keys

VECTORS: Final = 256
CALLS: Final = range(0x10, 0x1B)  # from video to the time of day
# 16-bit code: IRET; and behind it, for a call, carry is set in the flags on the stack, and AH has "not supported".
IGNORE = bytes.fromhex("cf")
NOT_SUPPORTED = bytes.fromhex(
    "55"  # push bp
    "89e5"  # mov bp, sp
    "804e0601"  # or byte [bp + 6], 1
    "5d"  # pop bp
    "b486"  # mov ah, 86h
    "cf"  # iret
)


def interrupt_vectors() -> bytes:
    """The real-mode interrupt vectors, at 0: calls are not supported, and all other interrupts are ignored."""
    ignore = BIOS_CALLS - (ROM_SEGMENT << 4)
    return b"".join(
        struct.pack("<2H", ignore + len(IGNORE) if vector in CALLS else ignore, ROM_SEGMENT)
        for vector in range(VECTORS)
    )


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
    """The area's first byte: its size in KiB."""
    return bytes([1])


def write_bios_data(memory: GuestMemory) -> None:
    """Writes vectors, their code and both areas. InvalidArgument for less than 1 MiB of memory."""
    memory.write(0, interrupt_vectors())
    memory.write(BIOS_CALLS, IGNORE + NOT_SUPPORTED)
    memory.write(START, bios_data_area())
    memory.write(EBDA, extended_bios_data_area())
