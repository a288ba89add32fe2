"""The MP table: processors, the IOAPIC and its interrupts, for kernels that do not read ACPI's tables.

Intel MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

from .board import AS_THE_BUS, IOAPIC_VERSION, Board
from .memory_map import LOCAL_APIC

SPECIFICATION = 4  # 1.4
PARAGRAPH = 16
# 4.1: signature, address, length in paragraphs, specification, checksum, features. No feature bits: the tables are
# there, and interrupts come by virtual wire mode, without an IMCR.
POINTER = struct.Struct("<4sI3B5x")
# 4.2: signature, length, specification, checksum, OEM, product, OEM table and its size, entries, local APIC.
HEADER = struct.Struct("<4sH2B8s12sIHHI4x")
# 4.3: the entries.
PROCESSOR_ENTRY = struct.Struct("<4B2I8x")  # type, local APIC's id and version, flags, signature, features
BUS_ENTRY = struct.Struct("<2B6s")
IOAPIC_ENTRY = struct.Struct("<4BI")
INTERRUPT_ENTRY = struct.Struct("<2BH4B")  # type, kind, flags, source bus and IRQ, destination and its input
PROCESSOR, BUS, IOAPIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)
ENABLED, BOOT_PROCESSOR = 1 << 0, 1 << 1
# 4.3.1: family 6, with an FPU and a local APIC; kernels ask CPUID.
SIGNATURE, FEATURES = 6 << 8, 1 << 9 | 1
BIGGEST_ID, EVERY_APIC = 0xFE, 0xFF
ISA = 0  # the bus's number


class Interrupt(IntEnum):
    """4.3.4: how an interrupt is delivered."""

    VECTORED = 0
    NMI = 1
    EXTERNAL = 3  # by the PICs


def mp_table(board: Board, address: int) -> bytes:
    """The floating pointer, and behind it the configuration table, for this address.

    The table leaves out processors with an APIC id above 254: an entry has no room for the id.
    """
    entries = list(_entries(board))
    body = b"".join(entries)
    header = HEADER.pack(
        b"PCMP",
        HEADER.size + len(body),
        SPECIFICATION,
        0,
        b"IRQCHIPD",
        b"PC".ljust(12),
        0,
        0,
        len(entries),
        LOCAL_APIC,
    )
    pointer = POINTER.pack(b"_MP_", address + PARAGRAPH, 1, SPECIFICATION, 0)
    return _with_checksum(pointer, 10) + _with_checksum(header + body, 7)


def _entries(board: Board) -> Iterator[bytes]:
    """Ascending by type, as 4.3 has them."""
    for number, apic_id in enumerate(board.apic_ids):
        if apic_id <= BIGGEST_ID:
            flags = ENABLED if number else ENABLED | BOOT_PROCESSOR
            yield PROCESSOR_ENTRY.pack(PROCESSOR, apic_id, board.apic_version, flags, SIGNATURE, FEATURES)
    yield BUS_ENTRY.pack(BUS, ISA, b"ISA".ljust(6))
    yield IOAPIC_ENTRY.pack(IOAPIC, board.ioapic_id, IOAPIC_VERSION, ENABLED, board.ioapic_address)
    for irq, pin in board.isa_pins.items():
        flags = board.inti_flags(irq)
        yield INTERRUPT_ENTRY.pack(IO_INTERRUPT, Interrupt.VECTORED, flags, ISA, irq, board.ioapic_id, pin)
    for line, kind in enumerate((Interrupt.EXTERNAL, Interrupt.NMI)):  # LINT0 and LINT1
        yield INTERRUPT_ENTRY.pack(LOCAL_INTERRUPT, kind, AS_THE_BUS, ISA, 0, EVERY_APIC, line)


def _with_checksum(table: bytes, at: int) -> bytes:
    """The table with a byte that makes the sum of all bytes 0."""
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1 :]
