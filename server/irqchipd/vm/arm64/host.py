"""What the host of an arm64 VM has: its GIC, and with it the devices and vCPUs that a VM can have."""

from __future__ import annotations

from typing import Final

from irqchipd.vm.arm64.numbers import MAX_VCPUS_V2, MAX_VCPUS_V3, DeviceType
from irqchipd.vm.errors import invalid

VERSIONS: Final = (0, 2, 3)
LEAST_LIST_REGISTERS, MOST_LIST_REGISTERS = 2, 16  # one would always be an underflow, and so an exit
LEAST_PRIORITY_BITS, MOST_PRIORITY_BITS = 5, 7


def check_host(version: int, list_registers: int, priority_bits: int) -> None:
    """Refuse a GIC that no host has."""
    check_version(version)
    if not LEAST_LIST_REGISTERS <= list_registers <= MOST_LIST_REGISTERS:
        numbers = f"{LEAST_LIST_REGISTERS} to {MOST_LIST_REGISTERS}"
        raise invalid(f"{list_registers} list registers are out of range: use {numbers}")
    if not LEAST_PRIORITY_BITS <= priority_bits <= MOST_PRIORITY_BITS:
        bits = f"{LEAST_PRIORITY_BITS} to {MOST_PRIORITY_BITS}"
        raise invalid(f"{priority_bits} priority bits are out of range: use {bits}")


def check_version(version: int) -> None:
    """Refuse a version that no GIC has here."""
    if version not in VERSIONS:
        raise invalid(f"GIC version {version} is invalid: use 2, 3, or 0 for a host that can make either")


def max_vcpus(version: int) -> int:
    """How many vCPUs a GIC of a version allows; that of a host allows a VM as many before it has one."""
    return MAX_VCPUS_V2 if version == 2 else MAX_VCPUS_V3


def kinds_of(version: int) -> list[int]:
    """The types of devices that can be created."""
    kinds: list[int] = [DeviceType.VFIO]
    if version != 3:
        kinds.append(DeviceType.GICV2)
    if version != 2:
        kinds += [DeviceType.GICV3, DeviceType.ITS]
    return kinds
