"""The attributes of a VM's devices, with the kernel's answers and its order of checks.

KVM: vgic-kvm-device.c. A vCPU's attributes are in vcpu_attributes.py.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from irqchipd.chips.gic.interrupt import PRIVATE
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.gic.registers import Registers
from irqchipd.chips.gic.vgic import GicCpu
from irqchipd.vm.arm64.attribute_data import UNDEFINED, data_with, no_attribute, number_from
from irqchipd.vm.arm64.board import Arm64Board
from irqchipd.vm.arm64.its import ItsAttributes
from irqchipd.vm.arm64.numbers import MAX_INTERRUPTS, Address, Control, DeviceType, Group
from irqchipd.vm.arm64.places import PAGE_4K, PAGE_64K, V2_CPU_SIZE, V2_DIST_SIZE, V3_DIST_SIZE, check_range
from irqchipd.vm.errors import VmError, invalid

_INFO_SHIFT: Final = 10  # KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT
_INFO: Final = 0x3FFFFF
_INTID: Final = 0x3FF
_U32: Final = 0xFFFF_FFFF
# The fields of GICv3's REDIST_REGION: the index, flags, the base and the count.
_INDEX: Final = 0xFF  # of the twelve bits the kernel keeps eight
_FLAGS_SHIFT, _FLAGS = 12, 0xF
_BASE: Final = 0xF_FFFF_FFFF_0000
_COUNT_SHIFT: Final = 52


class GicAttributes:
    """The attributes of a GIC."""

    def __init__(self, board: Arm64Board) -> None:
        self._board: Final = board

    # KVM_SET_DEVICE_ATTR. KVM: vgic_v2_set_attr, vgic_v3_set_attr.

    def set(self, group: int, attr: int, data: bytes) -> None:
        """Set an attribute."""
        board = self._board
        if self._has_registers(group):
            self._set_register(group, attr, data)
        elif group == Group.ADDR:
            self._set_address(attr, number_from(data, 8))
        elif group == Group.NR_IRQS:
            interrupts = number_from(data, 4)
            if not PRIVATE + 32 <= interrupts <= MAX_INTERRUPTS or interrupts % 32:
                raise invalid(f"{interrupts} interrupts; a multiple of 32 from 64 to 992 is allowed")
            if board.ready or board.interrupts_wanted:
                raise VmError(errno.EBUSY, "the number of interrupts is set already: it can be set only once")
            board.want_interrupts(interrupts)
        elif group == Group.CTRL and attr == Control.INIT:
            board.initialise()
        elif group == Group.CTRL and attr == Control.SAVE_PENDING_TABLES and board.v3 is not None:
            # Nothing to save: the VM has no LPIs. KVM: vgic_v3_save_pending_tables.
            if not board.initialised:
                raise VmError(errno.ENXIO, "the GIC is not initialised: set its attribute CTRL_INIT first")
        else:
            raise no_attribute(group, attr)

    def _set_address(self, attr: int, address: int) -> None:
        """KVM: kvm_vgic_addr."""
        board, places = self._board, self._board.places
        v2, v3 = board.v2 is not None, board.v3 is not None
        if attr == Address.V2_DIST and v2:
            self._place_dist(address, PAGE_4K, V2_DIST_SIZE)
        elif attr == Address.V2_CPU and v2:
            check_range(places.cpu, address, PAGE_4K, V2_CPU_SIZE)
            board.set_cpu_frame(address)
        elif attr == Address.V3_DIST and v3:
            self._place_dist(address, PAGE_64K, V3_DIST_SIZE)
        elif attr == Address.V3_REDIST and v3:
            board.place_redistributors(0, address, 0)
        elif attr == Address.V3_REDIST_REGION and v3:
            count, flags = address >> _COUNT_SHIFT, address >> _FLAGS_SHIFT & _FLAGS
            if not count or flags:
                raise invalid(f"{count} redistributors with flags {flags:#x}; use 1 or more, without flags")
            board.place_redistributors(address & _INDEX, address & _BASE, count)
        else:
            raise no_attribute(Group.ADDR, attr)

    def _place_dist(self, address: int, alignment: int, size: int) -> None:
        check_range(self._board.places.dist, address, alignment, size)
        self._board.set_dist(address)

    def set_device_addr(self, number: int, address: int) -> None:
        """KVM_ARM_SET_DEVICE_ADDR, only for a GICv2. KVM: kvm_set_legacy_vgic_v2_addr."""
        attr = number & 0xFFFF
        device = number >> 16 & 0xFFFF
        if device or attr not in (Address.V2_DIST, Address.V2_CPU) or self._board.v2 is None:
            raise VmError(errno.ENODEV, f"id {number:#x} is invalid: use 0 or 1, in a VM with a GICv2")
        self._set_address(attr, address)

    # KVM_GET_DEVICE_ATTR. KVM: vgic_v2_get_attr, vgic_v3_get_attr.

    def get(self, group: int, attr: int, data: bytes) -> bytes:
        """Get an attribute."""
        if self._has_registers(group):
            return self._get_register(group, attr, data)
        if group == Group.ADDR:
            return data_with(data, 8, self._get_address(attr, data))
        if group == Group.NR_IRQS:
            return data_with(data, 4, self._board.interrupts_wanted or PRIVATE)
        raise no_attribute(group, attr)

    def _get_address(self, attr: int, data: bytes) -> int:
        board, places = self._board, self._board.places
        v2, v3 = board.v2 is not None, board.v3 is not None
        if attr == Address.V3_REDIST_REGION:
            index = number_from(data, 8) & _INDEX
            if v3:
                region = places.region(index)
                if region is None:
                    raise VmError(errno.ENOENT, f"there is no region {index} of redistributors")
                return index | region.base | region.count << _COUNT_SHIFT
        if (attr == Address.V2_DIST and v2) or (attr == Address.V3_DIST and v3):
            return UNDEFINED if places.dist is None else places.dist
        if attr == Address.V2_CPU and v2:
            return UNDEFINED if places.cpu is None else places.cpu
        if attr == Address.V3_REDIST and v3:
            return places.regions[0].base if places.regions else UNDEFINED
        raise no_attribute(Group.ADDR, attr)

    # KVM_HAS_DEVICE_ATTR. KVM: vgic_v2_has_attr, vgic_v3_has_attr.

    def has(self, group: int, attr: int) -> None:
        """ENXIO for an unknown attribute."""
        v3 = self._board.v3 is not None
        if group == Group.ADDR:
            there = attr in ((Address.V3_DIST, Address.V3_REDIST, Address.V3_REDIST_REGION) if v3 else (0, 1))
        elif group == Group.NR_IRQS:
            there = True
        elif group == Group.CTRL:
            there = attr == Control.INIT or (v3 and attr == Control.SAVE_PENDING_TABLES)
        elif group == Group.LEVEL_INFO and v3:
            there = not attr >> _INFO_SHIFT & _INFO
        elif self._has_registers(group):
            there = self._has_register(group, attr)
        else:
            there = False
        if not there:
            raise no_attribute(group, attr)

    # Registers.

    def _has_registers(self, group: int) -> bool:
        if self._board.v2 is not None:
            return group in (Group.DIST_REGS, Group.CPU_REGS)
        return group in (Group.DIST_REGS, Group.REDIST_REGS, Group.CPU_SYSREGS, Group.LEVEL_INFO)

    def _cpu(self, group: int, attr: int) -> GicCpu:
        """The CPU that an attribute names, by id or by affinity: EINVAL for an unknown CPU.

        KVM: vgic_v2_parse_attr, vgic_v3_parse_attr.
        """
        board = self._board
        if board.v2 is not None:
            found = board.cpu_of.get(attr >> 32 & 0xFF)
            if found is None:
                raise invalid(f"attribute {attr:#x} names vCPU {attr >> 32 & 0xFF}, which does not exist")
            return found.in_gic
        assert board.v3 is not None
        if group == Group.DIST_REGS:
            cpu = board.v3.cpus[0] if board.v3.cpus else None
        else:
            affinity = attr >> 32
            cpu = board.v3.find_cpu(affinity & 0xFFFFFF | affinity >> 24 << 32)
        if cpu is None:
            raise invalid(f"attribute {attr:#x} names a vCPU that does not exist")
        return cpu

    def _frame(self, group: int) -> Registers:
        board = self._board
        if board.v2 is not None:
            return board.v2.distributor if group == Group.DIST_REGS else board.v2.cpu_registers
        assert board.v3 is not None
        return board.v3.distributor if group == Group.DIST_REGS else board.v3.redistributors.registers

    def _has_register(self, group: int, attr: int) -> bool:
        cpu = self._cpu(group, attr)
        if group == Group.CPU_SYSREGS:
            assert self._board.v3 is not None
            return self._board.v3.system_registers[cpu.index].has(attr & 0xFFFF)
        return self._frame(group).has(attr & _U32)

    def _set_register(self, group: int, attr: int, data: bytes) -> None:
        cpu = self._cpu(group, attr)
        v3 = self._board.v3
        if group == Group.CPU_SYSREGS:
            assert v3 is not None
            self._board.initialise_lazily()
            registers = v3.system_registers[cpu.index]
            registers.set(attr & 0xFFFF, number_from(data, 8))
            return
        value = number_from(data, 4)
        self._board.initialise_lazily()
        if group == Group.LEVEL_INFO:
            assert v3 is not None
            v3.write_lines(cpu, _intid(attr), value)
        else:
            self._frame(group).user_write(cpu, attr & _U32, value)

    def _get_register(self, group: int, attr: int, data: bytes) -> bytes:
        cpu = self._cpu(group, attr)
        self._board.initialise_lazily()
        v3 = self._board.v3
        if group == Group.CPU_SYSREGS:
            assert v3 is not None
            return data_with(data, 8, v3.system_registers[cpu.index].get(attr & 0xFFFF))
        if group == Group.LEVEL_INFO:
            assert v3 is not None
            return data_with(data, 4, v3.read_lines(cpu, _intid(attr)))
        return data_with(data, 4, self._frame(group).user_read(cpu, attr & _U32))


def _intid(attr: int) -> int:
    """The first interrupt of KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO."""
    if attr >> _INFO_SHIFT & _INFO:
        raise invalid(f"attribute {attr:#x} is invalid: only the level of lines can be read")
    return attr & _INTID


class VfioAttributes:
    """The attributes of a VFIO device, which has none."""

    def set(self, group: int, attr: int, data: bytes) -> None:  # noqa: ARG002
        """Refuse all."""
        raise no_attribute(group, attr)

    def get(self, group: int, attr: int, data: bytes) -> bytes:  # noqa: ARG002
        """Refuse all. KVM: kvm_main.c kvm_device_ioctl_attr, of a device without get_attr."""
        raise VmError(errno.EPERM, "a VFIO device has no readable attributes")

    def has(self, group: int, attr: int) -> None:
        """Refuse all."""
        raise no_attribute(group, attr)


class DeviceAttributes:
    """The attributes of all devices of a VM, by the numbers of the devices; kinds are the VM's own list."""

    def __init__(self, board: Arm64Board, kinds: Sequence[int]) -> None:
        self.gic: Final = GicAttributes(board)
        self._board: Final = board
        self._kinds: Final = kinds

    def _of(self, device: int) -> GicAttributes | ItsAttributes | VfioAttributes:
        kind = self._kinds[device]
        if kind == DeviceType.VFIO:
            return VfioAttributes()
        if kind == DeviceType.ITS:
            earlier = sum(one == DeviceType.ITS for one in self._kinds[:device])
            return ItsAttributes(self._board, self._board.its[earlier])
        return self.gic

    def set(self, device: int, group: int, attr: int, data: bytes) -> None:
        """KVM_SET_DEVICE_ATTR."""
        try:
            self._of(device).set(group, attr, data)
        except AccessRefused as refused:
            raise VmError(refused.number, str(refused)) from None

    def get(self, device: int, group: int, attr: int, data: bytes) -> bytes:
        """KVM_GET_DEVICE_ATTR."""
        try:
            return self._of(device).get(group, attr, data)
        except AccessRefused as refused:
            raise VmError(refused.number, str(refused)) from None

    def has(self, device: int, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR."""
        try:
            self._of(device).has(group, attr)
        except AccessRefused as refused:
            raise VmError(refused.number, str(refused)) from None
