"""A frame of registers: which handler answers an access of a guest or of user space.

KVM: vgic-mmio.c. No access fails. Outside of registers, unaligned, or with a size that the register does not allow, a
read returns 0 and a write is ignored (vgic_get_mmio_region, check_region).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from irqchipd.chips.gic.vgic import GicCpu, Vgic

# A handler of registers with bits for each interrupt gets the first interrupt of the access, and the number of
# interrupts. Another handler gets the offset and the size.
Read: TypeAlias = Callable[[GicCpu, int, int], int]
Write: TypeAlias = Callable[[GicCpu, int, int, int], None]

INTERRUPTS: Final = 1024  # registers with bits for each interrupt have bits for this many
ATTRIBUTE_SIZE: Final = 4  # user space reads and writes 32 bits


def read_as_zero(_cpu: GicCpu, _first: int, _count: int) -> int:
    """KVM: vgic_mmio_read_raz."""
    return 0


def write_ignored(_cpu: GicCpu, _first: int, _count: int, _value: int) -> None:
    """KVM: vgic_mmio_write_wi."""


class Region:
    """Registers of one kind. KVM: struct vgic_register_region."""

    __slots__ = ("bits", "end", "read", "sizes", "start", "user_read", "user_write", "write")

    def __init__(
        self,
        start: int,
        length: int,
        read: Read,
        write: Write,
        *,
        user_read: Read | None = None,
        user_write: Write | None = None,
        bits: int = 0,
        sizes: tuple[int, ...] = (4,),
    ) -> None:
        """A region. bits is the number of bits per interrupt; then length is 0."""
        self.start: Final = start
        self.end: Final = start + (length or bits * INTERRUPTS // 8)
        self.bits: Final = bits
        self.sizes: Final = sizes
        self.read: Final[Read] = read
        self.write: Final[Write] = write
        self.user_read: Final[Read] = user_read or read
        self.user_write: Final[Write] = user_write or write


class Registers:
    """A frame. KVM: struct vgic_io_device."""

    def __init__(self, vgic: Vgic, regions: list[Region]) -> None:
        self._vgic: Final = vgic
        self._regions: Final = regions

    def read(self, cpu: GicCpu, offset: int, size: int) -> int:
        """A guest's read. KVM: dispatch_mmio_read."""
        region = self._find(offset, size)
        if region is None:
            return 0
        first, count = _reach(region, offset, size)
        return region.read(cpu, first, count) & ((1 << 8 * size) - 1)

    def write(self, cpu: GicCpu, offset: int, size: int, value: int) -> None:
        """A guest's write. KVM: dispatch_mmio_write."""
        region = self._find(offset, size)
        if region is not None:
            first, count = _reach(region, offset, size)
            region.write(cpu, first, count, value)

    def user_read(self, cpu: GicCpu, offset: int) -> int:
        """User space's read of a register. KVM: vgic_uaccess_read."""
        region = self._find(offset, ATTRIBUTE_SIZE)
        if region is None:
            return 0
        first, count = _reach(region, offset, ATTRIBUTE_SIZE)
        return region.user_read(cpu, first, count) & 0xFFFF_FFFF

    def user_write(self, cpu: GicCpu, offset: int, value: int) -> None:
        """User space's write of a register; may raise AccessRefused. KVM: vgic_uaccess_write."""
        region = self._find(offset, ATTRIBUTE_SIZE)
        if region is not None:
            first, count = _reach(region, offset, ATTRIBUTE_SIZE)
            region.user_write(cpu, first, count, value)

    def has(self, offset: int) -> bool:
        """Whether an offset has a register for user space. KVM: vgic_v2_has_attr_regs, vgic_v3_has_attr_regs."""
        return self._find(offset, ATTRIBUTE_SIZE) is not None

    def _find(self, offset: int, size: int) -> Region | None:
        for region in self._regions:
            if region.start <= offset < region.end:
                if size not in region.sizes or offset % size:
                    return None
                if region.bits and (offset - region.start) * 8 // region.bits >= self._vgic.interrupts:
                    return None
                return region
        return None


def _reach(region: Region, offset: int, size: int) -> tuple[int, int]:
    """A handler's arguments for an access, which may reach a part of an interrupt's bits if these are more than 32."""
    if not region.bits or region.bits > 8 * ATTRIBUTE_SIZE:
        return offset, size
    return (offset - region.start) * 8 // region.bits, size * 8 // region.bits
