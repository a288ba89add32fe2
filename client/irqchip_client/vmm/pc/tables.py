"""All the data that firmware leaves in memory, for a machine without firmware: kernels are loaded without a BIOS."""

from __future__ import annotations

import errno

from irqchip_client import Space
from irqchip_client._errors import InvalidArgument
from irqchip_client.devices import power
from irqchip_client.vmm.memory import GuestMemory

from .acpi import ALIGNMENT, acpi_tables, rsdp
from .bios_data import write_bios_data
from .board import Board
from .memory_map import MIB, MP_TABLE, RSDP
from .mp_table import mp_table

ACPI_TABLES = RSDP + ALIGNMENT


def write_tables(memory: GuestMemory, board: Board) -> int | None:
    """Writes the BIOS data areas, the MP table and ACPI's tables, and returns the RSDP's address.

    Without a devices.power.PowerManagement, there are no ACPI tables, and None is returned.

    InvalidArgument for less than 1 MiB of RAM, or for more vCPUs than the tables have room for.
    """
    if memory.size < MIB:
        raise InvalidArgument(errno.EINVAL, f"a PC's tables need 1 MiB of RAM; there are {memory.size:#x} bytes")
    write_bios_data(memory)
    memory.write(MP_TABLE, mp_table(board, MP_TABLE))
    if not board.has(Space.PIO, power.BASE):
        return None
    tables = acpi_tables(board)
    if ACPI_TABLES + len(tables.data) > MP_TABLE:
        raise InvalidArgument(errno.EINVAL, f"there is no room for the tables of {len(board.apic_ids)} vCPUs")
    memory.write(ACPI_TABLES, tables.placed(ACPI_TABLES))
    memory.write(RSDP, rsdp(ACPI_TABLES + tables.rsdt, ACPI_TABLES + tables.xsdt))
    return RSDP
