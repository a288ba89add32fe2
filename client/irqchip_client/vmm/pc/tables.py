"""All that firmware leaves in memory, for a machine that has none: kernels are loaded without a BIOS."""

from __future__ import annotations

from irqchip_client._sync.client import Vm
from irqchip_client.vmm.memory import GuestMemory

from .bios_data import write_bios_data


def write_tables(memory: GuestMemory, vm: Vm) -> None:  # noqa: ARG001
    """Writes the BIOS data areas into a guest's memory. InvalidArgument for less than 1 MiB of RAM."""
    write_bios_data(memory)
