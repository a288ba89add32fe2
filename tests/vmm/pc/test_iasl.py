"""ACPI's tables as ACPICA's own tools see them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from irqchip_client import RegionInfo, Space
from irqchip_client.devices import I8042, FwCfg, Rtc, Uart
from irqchip_client.devices.virtio.places import PC
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.tables import write_tables
from tests.this_machine import MissingError, find

from . import reader
from .test_tables import BOARD

CLEAN = "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks"


@pytest.fixture(scope="module")
def tables() -> Iterator[dict[str, bytes]]:
    """The tables of a machine with all devices that the DSDT knows."""
    devices = [Uart(1), I8042(), Rtc(), FwCfg(1, 1 << 20)]
    regions = [RegionInfo(each.space, each.start, each.length) for device in devices for each in device.regions]
    regions += [RegionInfo(Space.MMIO, place.address, 0x1000) for place in PC]
    regions += [RegionInfo(Space.PIO, 0x1F0, 8)]
    board = replace(BOARD, apic_ids=(0, 1, 255), regions=(*BOARD.regions, *regions))
    with GuestMemory(1 << 20) as memory:
        write_tables(memory, board)
        yield reader.acpi(memory) | reader.acpi(memory, by_xsdt=False)


def iasl(*arguments: str, folder: Path) -> str:
    """The output of ACPICA's compiler and disassembler, which must succeed. Skips without one."""
    try:
        program = find("iasl")
    except MissingError as error:
        pytest.skip(f"ACPI's tables are not looked at {error} (Debian: acpica-tools)")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["FACP", "APIC", "FACS", "DSDT"])
def test_a_table_disassembles_and_compiles_again(tables: dict[str, bytes], name: str, tmp_path: Path) -> None:
    (tmp_path / "table.dat").write_bytes(tables[name])
    said = iasl("-d", "table.dat", folder=tmp_path)
    assert "Error" not in said
    assert "Warning" not in said
    assert "Invalid" not in (tmp_path / "table.dsl").read_text()
    said = iasl("-oa", "table.dsl", folder=tmp_path)  # without optimization
    if name == "DSDT":
        assert CLEAN in said
    again = (tmp_path / "table.aml").read_bytes()
    assert _without_creator(again) == _without_creator(tables[name])


def _without_creator(table: bytes) -> bytes:
    """A table without what the compiler writes about itself, and the checksum. The FACS has none of these."""
    return table if table[:4] == b"FACS" else table[:9] + table[10:28] + table[36:]


def test_the_disassembled_devices_are_those_that_were_meant(tables: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "dsdt.dat").write_bytes(tables["DSDT"])
    iasl("-d", "dsdt.dat", folder=tmp_path)
    text = " ".join((tmp_path / "dsdt.dsl").read_text().split())
    assert "Name (\\_S5, Package (0x04) // _S5_: S5 System State { 0x05, Zero, Zero, Zero })" in text
    for pnp in ("0000", "0100", "0800", "0C02", "0501", "0303", "0F13", "0B00", "0600"):
        assert f'EisaId ("PNP{pnp}")' in text
    assert text.count('"ACPI0007"') == 3
    assert text.count('"LNRO0005"') == len(PC)
    assert "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000010, }" in text
