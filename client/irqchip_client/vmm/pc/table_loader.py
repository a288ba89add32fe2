"""ACPI's tables for firmware, which places them itself: as files of fw_cfg, and the commands of "etc/table-loader".

QEMU: hw/acpi/bios-linker-loader.c. A command has 128 bytes, and names files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from irqchip_client import Space
from irqchip_client.devices import power

from . import acpi
from .acpi import ALIGNMENT, AcpiTables, acpi_tables, rsdp
from .board import Board

TABLES, RSDP, LOADER = b"etc/acpi/tables", b"etc/acpi/rsdp", "etc/table-loader"
ALLOCATE = struct.Struct("<I56sIB63x")  # 1; file, alignment, zone
ADD_POINTER = struct.Struct("<I56s56sIB7x")  # 2; file, file whose address is added, offset and size of the pointer
ADD_CHECKSUM = struct.Struct("<I56s3I56x")  # 3; file, offset of the checksum, start and length of its bytes
ANYWHERE, BELOW_1_MIB = 1, 2  # zones
RSDP_ALIGNMENT = 16


def table_files(board: Board) -> dict[str, bytes]:
    """The files of fw_cfg, by name; no files without a devices.power.PowerManagement."""
    if not board.has(Space.PIO, power.BASE):
        return {}
    tables = acpi_tables(board)
    return {
        TABLES.decode(): bytes(tables.data),
        RSDP.decode(): _unchecked(rsdp(tables.rsdt, tables.xsdt)),
        LOADER: b"".join(_commands(tables)),
    }


def _unchecked(pointer: bytes) -> bytes:
    """The RSDP with checksums of 0, which the loader then computes."""
    data = bytearray(pointer)
    data[acpi.RSDP_FIRST_CHECKSUM] = data[acpi.RSDP_CHECKSUM] = 0
    return bytes(data)


def _commands(tables: AcpiTables) -> Iterator[bytes]:
    yield ALLOCATE.pack(1, RSDP, RSDP_ALIGNMENT, BELOW_1_MIB)
    yield ALLOCATE.pack(1, TABLES, ALIGNMENT, ANYWHERE)
    for pointer in tables.pointers:
        yield ADD_POINTER.pack(2, TABLES, TABLES, pointer.offset, pointer.size)
    for each in tables.checksums:
        yield ADD_CHECKSUM.pack(3, TABLES, each.offset, each.start, each.length)
    yield ADD_POINTER.pack(2, RSDP, TABLES, acpi.RSDP_RSDT, 4)
    yield ADD_POINTER.pack(2, RSDP, TABLES, acpi.RSDP_XSDT, 8)
    yield ADD_CHECKSUM.pack(3, RSDP, acpi.RSDP_FIRST_CHECKSUM, 0, acpi.RSDP_FIRST_PART)
    yield ADD_CHECKSUM.pack(3, RSDP, acpi.RSDP_CHECKSUM, 0, acpi.RSDP.size)
