"""Where a GIC is in the guest's memory: addresses, and regions of redistributors.

KVM: vgic-kvm-device.c kvm_vgic_addr, vgic-mmio-v3.c from vgic_v3_alloc_redist_region on.
"""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.chips.gic.redistributor import FRAME_SIZE
from irqchipd.vm.arm64.numbers import IPA_SIZE
from irqchipd.vm.errors import VmError, invalid

PAGE_4K: Final = 0x1000
PAGE_64K: Final = 0x10000
V2_DIST_SIZE: Final = 0x1000
V2_CPU_SIZE: Final = 0x2000
V3_DIST_SIZE: Final = 0x10000
MAX_REGIONS: Final = 256  # the kernel keeps eight bits of an index
_ADDRESSES: Final = 1 << 64


class RedistributorRegion:
    """Memory for consecutive redistributors. KVM: struct vgic_redist_region."""

    __slots__ = ("base", "count", "index", "used")

    def __init__(self, index: int, base: int, count: int) -> None:
        self.index: Final = index
        self.base: Final = base
        # The number of redistributors that fit; 0 for a region that grows with the VM's vCPUs.
        self.count: Final = count
        # The number of places given to vCPUs, including vCPUs whose creation failed.
        self.used = 0

    @property
    def is_full(self) -> bool:
        """Whether no place is left."""
        return self.count != 0 and self.used >= self.count

    def size(self, vcpus: int) -> int:
        """Bytes, in a VM with this many vCPUs."""
        return FRAME_SIZE * (self.count or vcpus)

    def overlaps(self, base: int, size: int, vcpus: int) -> bool:
        """Whether a range overlaps the region."""
        return base + size > self.base and base < self.base + self.size(vcpus)


class Place:
    """A vCPU's redistributor: its region, and its index in the region. KVM: rd_iodev, rdreg and rdreg_index."""

    __slots__ = ("base", "index", "region")

    def __init__(self, region: RedistributorRegion | None, index: int, base: int) -> None:
        # None after the region was removed; the redistributor keeps its address.
        self.region = region
        self.index: Final = index
        self.base: Final = base


def check_range(taken: int | None, address: int, alignment: int, size: int) -> None:
    """Refuse an address: EEXIST, EINVAL, E2BIG. KVM: vgic_check_iorange."""
    if taken is not None:
        raise VmError(errno.EEXIST, f"the address is {taken:#x} already: it can be set only once")
    if address % alignment or size % alignment:
        raise invalid(f"address {address:#x} is not a multiple of {alignment:#x}: use one")
    if address + size >= _ADDRESSES:
        raise invalid(f"address {address:#x} is too near the end of the address space")
    if address >= IPA_SIZE or address + size > IPA_SIZE:
        raise VmError(errno.E2BIG, f"{size:#x} bytes at address {address:#x} end above {IPA_SIZE:#x}")


class Places:
    """The places of one VM's GIC, and of its vCPUs' redistributors in the order of creation."""

    def __init__(self) -> None:
        self.dist: int | None = None
        self.cpu: int | None = None
        self.regions: list[RedistributorRegion] = []
        # By a vCPU's index; None without a place.
        self.of: list[Place | None] = []

    def region(self, index: int) -> RedistributorRegion | None:
        """A region by its index. KVM: vgic_v3_rdist_region_from_index."""
        for region in self.regions:
            if region.index == index:
                return region
        return None

    def add_region(self, index: int, base: int, count: int) -> None:
        """KVM: vgic_v3_alloc_redist_region."""
        vcpus = len(self.of)
        size = FRAME_SIZE * (count or vcpus)
        if base + size >= _ADDRESSES:
            raise invalid(f"a region at {base:#x} is too near the end of the address space")
        if not self.regions:
            if index:
                raise invalid(f"region {index} can't be the first: begin with region 0")
        else:
            last = self.regions[-1]
            if not count and last.count:
                raise invalid("there are redistributor regions: add a region instead of a single address")
            if not count:
                raise VmError(errno.EEXIST, f"the redistributors are at {last.base:#x} already")
            if index != last.index + 1:
                raise invalid(f"region {index} is not the next: use {last.index + 1}")
        if not count and self.dist is not None and _overlap(base, size, self.dist, V3_DIST_SIZE):
            raise invalid(f"redistributors at {base:#x} would overlap the distributor at {self.dist:#x}")
        if any(region.overlaps(base, size, vcpus) for region in self.regions):
            raise invalid(f"redistributors at {base:#x} would overlap another region of redistributors")
        check_range(None, base, PAGE_64K, size)
        self.regions.append(RedistributorRegion(index, base, count))

    def remove_region(self, index: int) -> None:
        """KVM: vgic_v3_free_redist_region."""
        region = self.region(index)
        assert region is not None
        self.regions.remove(region)
        for place in self.of:
            if place is not None and place.region is region:
                place.region = None

    def fits(self) -> bool:
        """Whether all is inside the guest's memory, and the distributor overlaps nothing. KVM: vgic_v3_check_base."""
        vcpus = len(self.of)
        for region in self.regions:
            try:
                check_range(None, region.base, PAGE_64K, region.size(vcpus))
            except VmError:
                return False
        dist = self.dist
        return dist is None or not any(region.overlaps(dist, V3_DIST_SIZE, vcpus) for region in self.regions)

    def find(self) -> Place | None:
        """The next redistributor's place, or None if all regions are full. KVM: vgic_register_redist_iodev."""
        for region in self.regions:
            if not region.is_full:
                if not self.fits():
                    raise invalid("the redistributors would overlap the distributor, or be beyond the guest's memory")
                return Place(region, region.used, region.base + FRAME_SIZE * region.used)
        return None

    def is_last(self, cpu: int) -> bool:
        """GICR_TYPER.Last. KVM: vgic_mmio_vcpu_rdist_is_last."""
        place = self.of[cpu]
        if place is None or place.region is None:
            return False
        region = place.region
        if place.index < region.used - 1:
            return False
        if region.count and place.index == region.count - 1:
            end = region.base + region.count * FRAME_SIZE
            return not any(other.base == end and other.used for other in self.regions)
        return True

    def v2_overlap(self) -> bool:
        """Whether a GICv2's two frames overlap. KVM: vgic_v2_check_base."""
        assert self.dist is not None
        assert self.cpu is not None
        return _overlap(self.dist, V2_DIST_SIZE, self.cpu, V2_CPU_SIZE)


def _overlap(base: int, size: int, other: int, other_size: int) -> bool:
    return base + size > other and base < other + other_size
