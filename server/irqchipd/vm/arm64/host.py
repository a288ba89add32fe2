"""The host of an arm64 VM: its GIC, which determines a VM's devices and number of vCPUs."""

from __future__ import annotations

from typing import Final

from irqchipd.vm.arm64.numbers import MAX_VCPUS_V2, MAX_VCPUS_V3, DeviceType
from irqchipd.vm.errors import invalid

VERSIONS: Final = (0, 2, 3)
LEAST_LIST_REGISTERS, MOST_LIST_REGISTERS = 2, 16  # with 1 there would always be an underflow, and so an exit
LEAST_PRIORITY_BITS, MOST_PRIORITY_BITS = 5, 7


def check_host(version: int, list_registers: int, priority_bits: int) -> None:
    """Refuse an invalid GIC of a host."""
    check_version(version)
    if not LEAST_LIST_REGISTERS <= list_registers <= MOST_LIST_REGISTERS:
        numbers = f"{LEAST_LIST_REGISTERS} to {MOST_LIST_REGISTERS}"
        raise invalid(f"{list_registers} list registers are out of range: use {numbers}")
    if not LEAST_PRIORITY_BITS <= priority_bits <= MOST_PRIORITY_BITS:
        bits = f"{LEAST_PRIORITY_BITS} to {MOST_PRIORITY_BITS}"
        raise invalid(f"{priority_bits} priority bits are out of range: use {bits}")


def check_version(version: int) -> None:
    """Refuse an unsupported GIC version."""
    if version not in VERSIONS:
        raise invalid(f"GIC version {version} is invalid: use 2, 3, or 0 for a host that can make either")


def max_vcpus(version: int) -> int:
    """The most vCPUs with a GIC of a version. Before a VM has a GIC, the version of the host's GIC counts."""
    return MAX_VCPUS_V2 if version == 2 else MAX_VCPUS_V3


def kinds_of(version: int) -> list[int]:
    """The types of devices that can be created."""
    kinds: list[int] = [DeviceType.VFIO]
    if version != 3:
        kinds.append(DeviceType.GICV2)
    if version != 2:
        kinds += [DeviceType.GICV3, DeviceType.ITS]
    return kinds
