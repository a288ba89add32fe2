"""ACPI's tables for firmware: executing the loader's commands gives what a machine without firmware has in memory."""

from __future__ import annotations

import struct

from irqchip_client import RegionInfo, Space
from irqchip_client.devices import power
from irqchip_client.vmm.pc.acpi import ALIGNMENT, acpi_tables, rsdp
from irqchip_client.vmm.pc.board import Board
from irqchip_client.vmm.pc.table_loader import table_files

POWER = RegionInfo(Space.PIO, power.BASE, power.LENGTH)
BOARD = Board((0, 1), 0x14, 2, 0xFEC0_0000, {gsi: gsi or 2 for gsi in range(24) if gsi != 2}, regions=(POWER,))
PLACES = {"etc/acpi/tables": 0x3F_2340, "etc/acpi/rsdp": 0xF_6A10}


def name(field: bytes) -> str:
    assert len(field) == 56
    return field.rstrip(b"\0").decode()


def execute(files: dict[str, bytes]) -> dict[str, tuple[int, bytes]]:
    """What firmware makes of the files: their zone and content."""
    loader = files["etc/table-loader"]
    assert len(loader) % 128 == 0
    placed: dict[str, tuple[int, bytearray]] = {}
    for at in range(0, len(loader), 128):
        command, where = struct.unpack_from("<I56s", loader, at)
        match command:
            case 1:
                align, zone = struct.unpack_from("<IB", loader, at + 60)
                assert PLACES[name(where)] % align == 0
                placed[name(where)] = zone, bytearray(files[name(where)])
            case 2:
                what, offset, size = struct.unpack_from("<56sIB", loader, at + 60)
                data = placed[name(where)][1]
                value = int.from_bytes(data[offset : offset + size], "little") + PLACES[name(what)]
                data[offset : offset + size] = value.to_bytes(size, "little")
            case 3:
                offset, start, length = struct.unpack_from("<3I", loader, at + 60)
                data = placed[name(where)][1]
                data[offset] = (data[offset] - sum(data[start : start + length])) & 0xFF
            case _:
                raise AssertionError(f"command {command}")
    return {file: (zone, bytes(data)) for file, (zone, data) in placed.items()}


def test_the_loader_s_commands_place_the_tables() -> None:
    tables = acpi_tables(BOARD)
    at = PLACES["etc/acpi/tables"]
    assert at % ALIGNMENT == 0
    assert execute(table_files(BOARD)) == {
        "etc/acpi/tables": (1, tables.placed(at)),
        "etc/acpi/rsdp": (2, rsdp(at + tables.rsdt, at + tables.xsdt)),
    }


def test_without_power_management_there_are_none() -> None:
    assert table_files(Board((0,), 0x14, 2, 0xFEC0_0000, {})) == {}
