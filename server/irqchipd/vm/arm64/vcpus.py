"""The operations of an arm64 vCPU: its initialisation, its system registers, its accesses and its run state."""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.chips.fault import FAULT
from irqchipd.chips.gic.gicv3 import SGI_REGISTERS
from irqchipd.chips.gic.icc import INTID_MASK, Icc
from irqchipd.vm.arm64.cpu import Arm64Cpu
from irqchipd.vm.arm64.lines import Arm64Lines
from irqchipd.vm.arm64.numbers import HOST_FEATURES, KNOWN_FEATURES, MP_STATES, TARGETS, Feature
from irqchipd.vm.arm64.timer import FREQUENCY
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.vcpu_state import MpState

_U32: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1


class Sysreg:
    """Encodings of system registers: op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2."""

    ISR: Final = 0xC608
    CNTFRQ: Final = 0xDF00
    CNTPCT: Final = 0xDF01
    CNTVCT: Final = 0xDF02
    CNTP_TVAL: Final = 0xDF10
    CNTP_CTL: Final = 0xDF11
    CNTP_CVAL: Final = 0xDF12
    CNTV_TVAL: Final = 0xDF18
    CNTV_CTL: Final = 0xDF19
    CNTV_CVAL: Final = 0xDF1A


_COUNTERS: Final = (Sysreg.CNTFRQ, Sysreg.CNTPCT, Sysreg.CNTVCT)
_PHYSICAL: Final = (Sysreg.CNTP_TVAL, Sysreg.CNTP_CTL, Sysreg.CNTP_CVAL)
_VIRTUAL: Final = (Sysreg.CNTV_TVAL, Sysreg.CNTV_CTL, Sysreg.CNTV_CVAL)
_INTERFACE: Final = frozenset(value for name, value in vars(Icc).items() if name.isupper())
_ACKNOWLEDGING: Final = (Icc.IAR0, Icc.IAR1)
_ENDING: Final = (Icc.EOIR0, Icc.EOIR1)
_IRQ_ASSERTED: Final = 1 << 7  # ISR_EL1.I
_FIQ_ASSERTED: Final = 1 << 6  # ISR_EL1.F


class Arm64Vcpus(Arm64Lines):
    """The operations of a VM's vCPUs."""

    def vcpu_init(self, vcpu: int, target: int | None, features: int) -> None:
        """KVM_ARM_VCPU_INIT; None is the preferred target. KVM: arm.c kvm_vcpu_set_target."""
        with self._turn:
            cpu = self._arm_cpu(vcpu)
            self._check_alive()
            if target is not None and target not in TARGETS:
                raise invalid(f"target {target} is invalid on this host: use {' or '.join(map(str, TARGETS))}")
            if features & ~KNOWN_FEATURES:
                raise VmError(errno.ENOENT, f"features {features:#x} are unknown: use a subset of {KNOWN_FEATURES:#x}")
            if features & ~HOST_FEATURES:
                raise invalid(f"features {features:#x}: this host has only {HOST_FEATURES:#x}")
            board = self._arm
            lasting = features & ~Feature.POWER_OFF
            if board.features is not None and board.features != lasting:
                raise invalid(f"features {lasting:#x} differ from the first vCPU's {board.features:#x}: use those")
            board.features = lasting
            cpu.initialise(features)

    # The guest runs.

    def _arm_cpu(self, vcpu: int) -> Arm64Cpu:
        cpu = self._arm.cpu_of.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _enter(self, vcpu: int) -> Vcpu:
        return self._run(vcpu)

    def _run(self, vcpu: int) -> Arm64Cpu:
        """The vCPU enters its guest, maybe for the first time. KVM: arm.c kvm_arch_vcpu_run_pid_change."""
        cpu = self._arm_cpu(vcpu)
        board = self._arm
        if not cpu.has_run:
            self._check_alive()
            if cpu.features is None:
                raise VmError(errno.ENOEXEC, f"vCPU {vcpu} of VM {self.name!r} is not initialised: call VcpuInit first")
            if board.v3 is not None:
                board.v3.settle_affinities()
            board.map_frames()
            board.wire_timers(cpu)
            if cpu.features & Feature.PMU_V3 and not cpu.pmu_ready and board.gic is not None:
                # KVM: kvm_arm_pmu_v3_enable
                raise invalid(f"the PMU of vCPU {vcpu} is not initialised: set that attribute first")
            cpu.has_run = True
        elif board.dead is not None:
            raise board.dead
        board.running = cpu
        cpu.enter_guest()
        return cpu

    def _check_halt(self, vcpu: int) -> None:
        self._run(vcpu).exit_guest()  # WFI traps

    # System registers.

    def sysreg_read(self, vcpu: int, sysreg: int) -> int | None:
        """A vCPU's MRS: the value, FAULT where it is undefined, or None for a register that irqchipd lacks."""
        with self._turn:
            cpu = self._run(vcpu)
            value = self._read(cpu, sysreg)
            cpu.exit_guest()
            return value

    def _read(self, cpu: Arm64Cpu, sysreg: int) -> int | None:
        if sysreg == Sysreg.ISR:
            irq, fiq = cpu.outputs()
            return irq * _IRQ_ASSERTED | fiq * _FIQ_ASSERTED
        if sysreg in _INTERFACE:
            v3 = self._arm.v3
            value = None if v3 is None else v3.interfaces[cpu.index].read(sysreg)
            if self._board.observer is not None and sysreg in _ACKNOWLEDGING and value is not None:
                self._board.observer.gic_acknowledged(cpu.id, value)
            return FAULT if value is None else value
        if sysreg in _COUNTERS:
            return FREQUENCY if sysreg == Sysreg.CNTFRQ else cpu.virtual_timer.count
        if sysreg in _PHYSICAL or sysreg in _VIRTUAL:
            timer = cpu.virtual_timer if sysreg in _VIRTUAL else cpu.physical_timer
            if sysreg in (Sysreg.CNTP_CTL, Sysreg.CNTV_CTL):
                return timer.read_control()
            return timer.compare if sysreg in (Sysreg.CNTP_CVAL, Sysreg.CNTV_CVAL) else timer.read_value()
        return None

    def sysreg_write(self, vcpu: int, sysreg: int, value: int) -> int | None:
        """A vCPU's MSR: 0, FAULT where it is undefined, or None for a register that irqchipd lacks."""
        with self._turn:
            if value >> 64:
                raise invalid(f"value {value:#x} does not fit into a system register, which has 64 bits")
            cpu = self._run(vcpu)
            v3 = self._arm.v3
            if sysreg in SGI_REGISTERS and v3 is not None:
                cpu.exit_guest()  # the access traps
                v3.generate_sgi(cpu.in_gic, sysreg, value)
                cpu.step()
                return 0
            result = self._write(cpu, sysreg, value)
            cpu.exit_guest()
            return result

    def _write(self, cpu: Arm64Cpu, sysreg: int, value: int) -> int | None:
        if sysreg in _INTERFACE:
            v3 = self._arm.v3
            if v3 is None or not v3.interfaces[cpu.index].write(sysreg, value):
                return FAULT
            if self._board.observer is not None and sysreg in _ENDING:
                self._board.observer.gic_ended(cpu.id, value & INTID_MASK)
            return 0
        if sysreg in _PHYSICAL or sysreg in _VIRTUAL:
            timer = cpu.virtual_timer if sysreg in _VIRTUAL else cpu.physical_timer
            if sysreg in (Sysreg.CNTP_CTL, Sysreg.CNTV_CTL):
                timer.write_control(value & _U32)
            elif sysreg in (Sysreg.CNTP_CVAL, Sysreg.CNTV_CVAL):
                timer.write_compare(value & _U64)
            else:
                timer.write_value(value)
            return 0
        return FAULT if sysreg in _COUNTERS or sysreg == Sysreg.ISR else None

    # Run state.

    def get_mp_state(self, vcpu: int) -> MpState:
        """KVM_GET_MP_STATE."""
        with self._turn:
            cpu = self._arm_cpu(vcpu)
            self._check_alive()
            return MpState(cpu.mp_state)

    def set_mp_state(self, vcpu: int, state: int) -> None:
        """KVM_SET_MP_STATE: EINVAL for an invalid state."""
        with self._turn:
            cpu = self._arm_cpu(vcpu)
            self._check_alive()
            if state not in MP_STATES:
                raise invalid(f"run state {state} is invalid; there are 0 RUNNABLE, 5 STOPPED and 10 SUSPENDED")
            cpu.mp_state = state
            cpu.priorities_changed()
