"""Reads a PC's tables as a kernel does: it looks for the pointers, checks checksums, and follows addresses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from irqchip_client.vmm.memory import GuestMemory


def number(data: bytes, at: int, size: int) -> int:
    """A little endian number."""
    assert at + size <= len(data)
    return int.from_bytes(data[at : at + size], "little")


def look_for(memory: GuestMemory, signature: bytes, start: int, end: int) -> int | None:
    """The first paragraph in a range that begins with a signature."""
    return next((at for at in range(start, end, 16) if memory.read(at, len(signature)) == signature), None)


# ACPI.


@dataclass(frozen=True)
class Override:
    """An interrupt source override."""

    irq: int
    pin: int
    flags: int


def acpi(memory: GuestMemory, *, by_xsdt: bool = True) -> dict[str, bytes]:
    """Every table by its signature, from the RSDP on."""
    at = look_for(memory, b"RSD PTR ", 0xE0000, 0x100000)
    assert at is not None
    rsdp = memory.read(at, 36)
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    assert (rsdp[15], number(rsdp, 20, 4)) == (2, 36)
    size = 8 if by_xsdt else 4
    root = _table(memory, number(rsdp, 24, 8) if by_xsdt else number(rsdp, 16, 4))
    assert root[:4] == (b"XSDT" if by_xsdt else b"RSDT")
    tables = {}
    for place in range(36, len(root), size):
        table = _table(memory, number(root, place, size))
        tables[table[:4].decode()] = table
    fadt = tables["FACP"]
    assert number(fadt, 140, 8) == number(fadt, 40, 4)
    tables["DSDT"] = _table(memory, number(fadt, 40, 4))
    facs = number(fadt, 36, 4)
    assert number(fadt, 132, 8) == facs
    assert facs % 64 == 0
    tables["FACS"] = memory.read(facs, number(memory.read(facs, 8), 4, 4))
    return tables


def _table(memory: GuestMemory, address: int) -> bytes:
    table = memory.read(address, number(memory.read(address, 8), 4, 4))
    assert sum(table) & 0xFF == 0
    assert 0xE0000 <= address <= address + len(table) <= 0xF0000
    return table


def controllers(madt: bytes) -> Iterator[bytes]:
    """The MADT's entries."""
    at = 44
    while at < len(madt):
        assert madt[at + 1] >= 6
        yield madt[at : at + madt[at + 1]]
        at += madt[at + 1]
    assert at == len(madt)


def overrides(madt: bytes) -> dict[int, Override]:
    """Interrupt source overrides, by the ISA interrupt."""
    found = {}
    for entry in controllers(madt):
        if entry[0] == 2:
            assert (len(entry), entry[2]) == (10, 0)
            assert entry[3] not in found
            found[entry[3]] = Override(entry[3], number(entry, 4, 4), number(entry, 8, 2))
    return found


# The MP table.


@dataclass(frozen=True)
class MpTable:
    """The configuration table's entries by their types, and the local APICs' address."""

    local_apic: int
    entries: dict[int, list[bytes]]


def mp_table(memory: GuestMemory) -> MpTable:
    """The table that the floating pointer leads to."""
    at = look_for(memory, b"_MP_", 0xF0000, 0x100000)
    assert at is not None
    pointer = memory.read(at, 16)
    assert sum(pointer) & 0xFF == 0
    assert (pointer[8], pointer[9], pointer[11]) == (1, 4, 0)  # paragraphs, specification 1.4, a table
    address = number(pointer, 4, 4)
    table = memory.read(address, number(memory.read(address, 6), 4, 2))
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    entries: dict[int, list[bytes]] = {}
    place = 44
    kinds = []
    for _ in range(number(table, 34, 2)):
        length = 20 if table[place] == 0 else 8
        kinds.append(table[place])
        entries.setdefault(table[place], []).append(table[place : place + length])
        place += length
    assert place == len(table)
    assert kinds == sorted(kinds)
    return MpTable(number(table, 36, 4), entries)
