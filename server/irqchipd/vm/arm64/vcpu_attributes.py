"""The attributes of a vCPU: the interrupts of its timers and its PMU, and the address of its stolen time.

KVM: arch_timer.c kvm_arm_timer_set_attr, pmu-emul.c kvm_arm_pmu_v3_set_attr, pvtime.c kvm_arm_pvtime_set_attr. The
process that runs the vCPU has the PMU's counters, and the memory with the stolen time.
"""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.chips.gic.interrupt import PRIVATE, SGIS
from irqchipd.vm.arm64.attribute_data import UNDEFINED, data_with, no_attribute, number_from
from irqchipd.vm.arm64.board import Arm64Board
from irqchipd.vm.arm64.cpu import Arm64Cpu
from irqchipd.vm.arm64.numbers import IPA_SIZE, Feature, Owner, VcpuGroup
from irqchipd.vm.arm64.timer import USUAL_PPIS
from irqchipd.vm.errors import VmError, invalid

_PPIS: Final = range(SGIS, PRIVATE)
TIMER_IRQS: Final = len(USUAL_PPIS)  # KVM_ARM_VCPU_TIMER_IRQ_VTIMER, _PTIMER, _HVTIMER, _HPTIMER
PMU_IRQ, PMU_INIT, PMU_FILTER, PMU_SET = range(4)  # KVM_ARM_VCPU_PMU_V3_*
PMU_EVENTS: Final = 1024  # of PMUv3 for Armv8.0
STOLEN_TIME: Final = 0  # KVM_ARM_VCPU_PVTIME_IPA
STOLEN_TIME_ALIGNMENT: Final = 64


class VcpuAttributes:
    """The attributes of a VM's vCPUs."""

    def __init__(self, board: Arm64Board) -> None:
        self._board: Final = board

    def set(self, cpu: Arm64Cpu, group: int, attr: int, data: bytes) -> None:
        """KVM_SET_DEVICE_ATTR on a vCPU."""
        if group == VcpuGroup.TIMER:
            self._set_timer(attr, data)
        elif group == VcpuGroup.PMU:
            self._set_pmu(cpu, attr, data)
        elif group == VcpuGroup.PVTIME and attr == STOLEN_TIME:
            address = number_from(data, 8)
            if address % STOLEN_TIME_ALIGNMENT:
                raise invalid(f"the stolen time's address {address:#x} is not a multiple of {STOLEN_TIME_ALIGNMENT}")
            if cpu.stolen_time is not None:
                raise VmError(errno.EEXIST, f"the stolen time is at {cpu.stolen_time:#x} already")
            if address >= IPA_SIZE:
                raise invalid(f"the stolen time's address {address:#x} is beyond the guest's memory")
            cpu.stolen_time = address
        else:
            raise no_attribute(group, attr)

    def _set_timer(self, attr: int, data: bytes) -> None:
        board = self._board
        if board.gic is None:
            raise invalid("the timers have no GIC to interrupt: create it first")
        ppi = number_from(data, 4)
        if ppi not in _PPIS:
            raise invalid(f"interrupt {ppi} is not a PPI: use 16 to 31")
        if board.ppis_fixed:
            raise VmError(errno.EBUSY, "a vCPU has run: the timers keep their interrupts")
        if attr >= TIMER_IRQS:
            raise no_attribute(VcpuGroup.TIMER, attr)
        board.ppis[attr] = ppi

    def _set_pmu(self, cpu: Arm64Cpu, attr: int, data: bytes) -> None:
        board = self._board
        self._check_pmu()
        if cpu.pmu_ready:
            raise VmError(errno.EBUSY, f"the PMU of vCPU {cpu.id} is initialised already")
        if attr == PMU_IRQ:
            if board.gic is None:
                raise invalid("there is no GIC that the PMU could interrupt: create it first")
            interrupt = number_from(data, 4)
            if not SGIS <= interrupt < 1020:
                raise invalid(f"interrupt {interrupt} is neither a PPI nor an SPI: use 16 to 1019")
            for other in board.cpus:
                # All vCPUs have the same PPI, or each vCPU has its own SPI. KVM: pmu_irq_is_valid.
                same = other.pmu_interrupt == interrupt
                if other.pmu_interrupt and same != (interrupt < PRIVATE):
                    raise invalid(f"interrupt {interrupt} conflicts with {other.pmu_interrupt} of vCPU {other.id}")
            if cpu.pmu_interrupt:
                raise VmError(errno.EBUSY, f"the PMU of vCPU {cpu.id} has interrupt {cpu.pmu_interrupt} already")
            cpu.pmu_interrupt = interrupt
        elif attr == PMU_INIT:
            # KVM: kvm_arm_pmu_v3_init
            if board.gic is not None:
                if not board.initialised:
                    raise VmError(errno.ENODEV, "the GIC is not initialised: set its attribute CTRL_INIT first")
                if not cpu.pmu_interrupt:
                    raise VmError(errno.ENXIO, "the PMU has no interrupt: set that attribute first")
                self._own(cpu)
            cpu.pmu_ready = True
        elif attr == PMU_FILTER:
            self._check_filter(data)
        else:  # also PMU_SET: the PMU is in another process
            raise no_attribute(VcpuGroup.PMU, attr)

    def _own(self, cpu: Arm64Cpu) -> None:
        """Give the PMU its interrupt: EINVAL beyond the GIC's interrupts, EEXIST if another device has it."""
        gic, number = self._board.gic, cpu.pmu_interrupt
        assert gic is not None
        if number >= gic.interrupts:
            raise invalid(f"interrupt {number} of the PMU does not exist; the GIC has {gic.interrupts}")
        if not gic.own(gic.interrupt(cpu.in_gic, number), Owner.PMU):
            raise VmError(errno.EEXIST, f"interrupt {number} of vCPU {cpu.id} is a timer's: give the timer another")

    def get(self, cpu: Arm64Cpu, group: int, attr: int, data: bytes) -> bytes:
        """KVM_GET_DEVICE_ATTR on a vCPU."""
        if group == VcpuGroup.TIMER and attr < TIMER_IRQS:
            return data_with(data, 4, self._board.ppis[attr])
        if group == VcpuGroup.PMU and attr == PMU_IRQ:
            if self._board.gic is None:
                raise invalid("there is no GIC that the PMU could interrupt: create it first")
            self._check_pmu()
            if not cpu.pmu_interrupt:
                raise VmError(errno.ENXIO, "the PMU has no interrupt")
            return data_with(data, 4, cpu.pmu_interrupt)
        if group == VcpuGroup.PVTIME and attr == STOLEN_TIME:
            return data_with(data, 8, UNDEFINED if cpu.stolen_time is None else cpu.stolen_time)
        raise no_attribute(group, attr)

    def has(self, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR on a vCPU."""
        there = (
            (group == VcpuGroup.TIMER and attr < TIMER_IRQS)
            or (group == VcpuGroup.PMU and attr <= PMU_SET and self._has_pmu)
            or (group == VcpuGroup.PVTIME and attr == STOLEN_TIME)
        )
        if not there:
            raise no_attribute(group, attr)

    @property
    def _has_pmu(self) -> bool:
        """Whether the VM's vCPUs have PMUs, including vCPUs that are not initialised yet."""
        features = self._board.features
        return features is not None and bool(features & Feature.PMU_V3)

    def _check_pmu(self) -> None:
        if not self._has_pmu:
            raise VmError(errno.ENODEV, "the VM's vCPUs have no PMU: initialise them with feature 3")

    def _check_filter(self, data: bytes) -> None:
        """Check a filter of events; the process that counts them applies it. KVM: struct kvm_pmu_event_filter."""
        value = number_from(data, 8)
        base, events, action = value & 0xFFFF, value >> 16 & 0xFFFF, value >> 32 & 0xFF
        if base + events > PMU_EVENTS or action > 1:
            raise invalid(f"{events} events from {base} and action {action}; there are {PMU_EVENTS}, and actions 0, 1")
        if any(cpu.has_run for cpu in self._board.cpus):
            raise VmError(errno.EBUSY, "a vCPU has run: the PMU keeps its filter")
