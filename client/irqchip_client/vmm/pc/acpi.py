"""ACPI's tables: processors, interrupt controllers, power-off and devices. ACPI Specification 6.5, chapter 5.2.

The machine is not hardware-reduced. A kernel on a hardware-reduced machine uses neither PICs nor PIT (Linux:
arch/x86/kernel/acpi/boot.c acpi_generic_reduced_hw_init), and both are there. So the machine has ACPI's fixed hardware,
devices.power, with its timer and with power-off through the PM1 control register.

Addresses of tables are offsets until the tables are placed, so that a firmware can place them, too.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from irqchip_client import Space
from irqchip_client._errors import InvalidArgument
from irqchip_client.devices import power

from .board import AS_THE_BUS, Board
from .dsdt import I8042_COMMAND, RTC, dsdt_terms
from .memory_map import LOCAL_APIC

OEM, TABLE, CREATOR = b"IRQCHP", b"IRQCHIPD", b"IRQC"
# 5.2.6: signature, length, revision, checksum, OEM and table id, OEM revision, creator and its revision.
HEADER = struct.Struct("<4sI2B6s8sI4sI")
CHECKSUM: Final = 9  # its offset
# 5.2.5.3, RSDP: signature, checksum, OEM, revision, RSDT, length, XSDT, checksum of all.
RSDP = struct.Struct("<8sB6sB2IQB3x")
RSDP_FIRST_CHECKSUM, RSDP_RSDT, RSDP_CHECKSUM, RSDP_XSDT, RSDP_FIRST_PART = 8, 16, 32, 24, 20
FACS_SIZE, FACS_VERSION = 64, 2
ALIGNMENT: Final = 64  # 5.2.10 requires it of the FACS

# 5.2.12, MADT.
PCAT_COMPAT = 1 << 0  # there are PICs, too
LAPIC_ENTRY = struct.Struct("<4BI")
IOAPIC_ENTRY = struct.Struct("<4B2I")
OVERRIDE_ENTRY = struct.Struct("<4BIH")
LAPIC_NMI_ENTRY = struct.Struct("<3BHB")
X2APIC_ENTRY = struct.Struct("<2BH3I")
X2APIC_NMI_ENTRY = struct.Struct("<2BHIB3x")
LAPIC, IOAPIC, OVERRIDE, LAPIC_NMI, X2APIC, X2APIC_NMI = 0, 1, 2, 4, 9, 10
ENABLED = 1 << 0
FIRST_X2APIC_ID: Final = 255  # 5.2.12.12: lower ids have local APIC entries
ISA, NMI_LINE = 0, 1  # the overridden bus; LINT1

# 5.2.9, FADT.
FADT_SIZE, FADT_REVISION, FADT_MINOR = 276, 6, 5
FADT_FACS, FADT_DSDT, FADT_X_FACS, FADT_X_DSDT = 36, 40, 132, 140
# IAPC_BOOT_ARCH.
LEGACY_DEVICES, HAS_8042, NO_VGA, NO_MSI, NO_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
# The flags: WBINVD works; C1 on all processors; there are no fixed buttons; the RTC wakes by no fixed register; the
# reset register is there; no display.
FLAGS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 12
NO_C2, NO_C3 = 101, 1001  # latencies, microseconds
CENTURY = 0x32  # in the RTC's memory
SYSTEM_IO, BY_BYTE, BY_WORD, BY_DWORD = 1, 1, 2, 3  # 5.2.3.2, generic address structure


@dataclass(frozen=True, slots=True)
class Pointer:
    """`size` bytes at `offset`, little endian, that have the offset of a table, and later its address."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Checksum:
    """A byte at `offset` that makes the sum of a table's bytes 0."""

    offset: int
    start: int
    length: int


@dataclass(slots=True)
class AcpiTables:
    """All tables but the RSDP, one behind the other, on boundaries of ALIGNMENT.

    data        the bytes, with offsets into themselves in place of addresses, and with checksums 0
    pointers, checksums
                the places that a loader of the tables completes, the pointers first
    rsdt, xsdt  the offsets of the two root tables
    """

    data: bytearray = field(default_factory=bytearray)
    pointers: list[Pointer] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)
    rsdt: int = 0
    xsdt: int = 0

    def add(self, table: bytes, *pointers: Pointer) -> int:
        """Adds a table with a header. Its pointers are offsets into it. Returns its offset."""
        start = self.add_plain(table)
        self.pointers += [Pointer(start + each.offset, each.size) for each in pointers]
        self.checksums.append(Checksum(start + CHECKSUM, start, len(table)))
        return start

    def add_plain(self, table: bytes) -> int:
        """Adds a table without a checksum. Returns its offset."""
        self.data += bytes(-len(self.data) % ALIGNMENT)
        start = len(self.data)
        self.data += table
        return start

    def placed(self, address: int) -> bytes:
        """The tables for an address, a multiple of ALIGNMENT."""
        data = bytearray(self.data)
        for pointer in self.pointers:
            place = slice(pointer.offset, pointer.offset + pointer.size)
            data[place] = (int.from_bytes(data[place], "little") + address).to_bytes(pointer.size, "little")
        for each in self.checksums:
            data[each.offset] = -sum(data[each.start : each.start + each.length]) & 0xFF
        return bytes(data)


def acpi_tables(board: Board) -> AcpiTables:
    """Makes the tables for a machine. InvalidArgument without a devices.power.PowerManagement."""
    if not board.has(Space.PIO, power.BASE):
        raise InvalidArgument(
            errno.EINVAL,
            f"ACPI describes power management, and no device answers at port {power.BASE:#x}: run a PowerManagement",
        )
    tables = AcpiTables()
    facs = tables.add_plain(struct.pack("<4sI24xB31x", b"FACS", FACS_SIZE, FACS_VERSION))
    dsdt = tables.add(_with_header(b"DSDT", 2, dsdt_terms(board)))
    fadt = tables.add(
        _fadt(board, facs, dsdt),
        *(Pointer(offset, 4) for offset in (FADT_FACS, FADT_DSDT)),
        *(Pointer(offset, 8) for offset in (FADT_X_FACS, FADT_X_DSDT)),
    )
    madt = tables.add(_with_header(b"APIC", 5, b"".join(_madt(board))))
    tables.rsdt = _add_root(tables, b"RSDT", 4, fadt, madt)
    tables.xsdt = _add_root(tables, b"XSDT", 8, fadt, madt)
    return tables


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """5.2.5.3: the root system description pointer, for tables at these addresses."""
    pointer = bytearray(RSDP.pack(b"RSD PTR ", 0, OEM, 2, rsdt, RSDP.size, xsdt, 0))
    pointer[RSDP_FIRST_CHECKSUM] = -sum(pointer[:RSDP_FIRST_PART]) & 0xFF
    pointer[RSDP_CHECKSUM] = -sum(pointer) & 0xFF
    return bytes(pointer)


def _with_header(signature: bytes, revision: int, body: bytes) -> bytes:
    return HEADER.pack(signature, HEADER.size + len(body), revision, 0, OEM, TABLE, 1, CREATOR, 1) + body


def _add_root(tables: AcpiTables, signature: bytes, size: int, *others: int) -> int:
    """5.2.7 and 5.2.8: a table of the other tables' addresses."""
    body = b"".join(other.to_bytes(size, "little") for other in others)
    pointers = [Pointer(HEADER.size + size * number, size) for number in range(len(others))]
    return tables.add(_with_header(signature, 1, body), *pointers)


def _fadt(board: Board, facs: int, dsdt: int) -> bytes:
    """5.2.9: the fixed description table, by the offsets of its table 5.9. Fields that are not set here are 0."""
    boot = LEGACY_DEVICES | NO_VGA | NO_MSI
    boot |= HAS_8042 if board.has(Space.PIO, I8042_COMMAND) else 0
    has_rtc = board.has(Space.PIO, RTC)
    boot |= 0 if has_rtc else NO_RTC
    table = bytearray(_with_header(b"FACP", FADT_REVISION, bytes(FADT_SIZE - HEADER.size)))
    event, control, timer = power.BASE, power.BASE + power.CONTROL, power.BASE + power.TIMER
    for offset, form, value in (
        (FADT_FACS, "<I", facs),
        (FADT_DSDT, "<I", dsdt),
        (46, "<H", power.SCI),
        (56, "<I", event),
        (64, "<I", control),
        (76, "<I", timer),
        (88, "<4B", (4, 2, 0, 4)),  # the lengths of event, control, PM2 control and timer
        (96, "<2H", (NO_C2, NO_C3)),
        (108, "<B", CENTURY if has_rtc else 0),
        (109, "<H", boot),
        (112, "<I", FLAGS),
        (116, "<12s", _port(power.RESET_PORT, 8, BY_BYTE)),
        (128, "<B", power.RESET_CPU | power.RESET_HARD),
        (131, "<B", FADT_MINOR),
        (FADT_X_FACS, "<Q", facs),  # Xen complains if the two differ
        (FADT_X_DSDT, "<Q", dsdt),
        (148, "<12s", _port(event, 32, BY_WORD)),
        (172, "<12s", _port(control, 16, BY_WORD)),
        (208, "<12s", _port(timer, 32, BY_DWORD)),
        (268, "<8s", TABLE),  # hypervisor vendor identity
    ):
        struct.pack_into(form, table, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(table)


def _port(port: int, bits: int, access: int) -> bytes:
    """5.2.3.2: a register at a port."""
    return struct.pack("<4BQ", SYSTEM_IO, bits, 0, access, port)


def _madt(board: Board) -> Iterator[bytes]:
    """5.2.12: the interrupt controllers. ACPI's global system interrupts are the IOAPIC's pins."""
    yield struct.pack("<2I", LOCAL_APIC, PCAT_COMPAT)
    for number, apic_id in enumerate(board.apic_ids):
        if apic_id < FIRST_X2APIC_ID:
            yield LAPIC_ENTRY.pack(LAPIC, LAPIC_ENTRY.size, number, apic_id, ENABLED)
        else:
            yield X2APIC_ENTRY.pack(X2APIC, X2APIC_ENTRY.size, 0, apic_id, ENABLED, number)
    yield IOAPIC_ENTRY.pack(IOAPIC, IOAPIC_ENTRY.size, board.ioapic_id, 0, board.ioapic_address, 0)
    for irq, pin in board.isa_pins.items():
        flags = board.inti_flags(irq)
        if pin != irq or flags != AS_THE_BUS:
            yield OVERRIDE_ENTRY.pack(OVERRIDE, OVERRIDE_ENTRY.size, ISA, irq, pin, flags)
    yield LAPIC_NMI_ENTRY.pack(LAPIC_NMI, LAPIC_NMI_ENTRY.size, 0xFF, AS_THE_BUS, NMI_LINE)
    if any(apic_id >= FIRST_X2APIC_ID for apic_id in board.apic_ids):
        yield X2APIC_NMI_ENTRY.pack(X2APIC_NMI, X2APIC_NMI_ENTRY.size, AS_THE_BUS, 0xFFFF_FFFF, NMI_LINE)
