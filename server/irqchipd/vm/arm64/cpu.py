"""An arm64 vCPU: its part of the GIC, its timers, and what wakes it from WFI."""

from __future__ import annotations

from typing import Final, Protocol

from irqchipd.chips.gic.vgic import GicCpu
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.numbers import Feature
from irqchipd.vm.arm64.timer import PHYSICAL, VIRTUAL, Timer
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.vcpu_state import MpState, Outcome

# A halt's outcome, in Taken's second part: the vCPU's IRQ or FIQ is asserted. The halt acknowledges nothing.
IRQ: Final = 2
FIQ: Final = 3


class GicSide(Protocol):
    """The GIC, for a vCPU; a GicCpu is the vCPU's part of the GIC."""

    def flush(self, cpu: GicCpu) -> None:
        """Load a CPU interface, and fill its list registers."""

    def sync(self, cpu: GicCpu) -> None:
        """Take the list registers back."""

    def outputs(self, cpu: GicCpu) -> tuple[bool, bool]:
        """IRQ and FIQ of a CPU interface whose list registers are filled."""

    def pending(self, cpu: GicCpu) -> bool:
        """Whether an interrupt would wake a vCPU."""

    def drive_timer(self, cpu: GicCpu, timer: int, level: bool) -> None:
        """A vCPU's timer drives its PPI."""

    def forget_timer(self, cpu: GicCpu) -> None:
        """Start the interrupt of a vCPU's virtual timer anew. KVM: kvm_vgic_reset_mapped_irq."""


class Arm64Cpu(Vcpu):
    """A vCPU. This class implements TimerWires."""

    def __init__(self, agenda: Agenda, gic: GicSide, vcpu_id: int, index: int) -> None:
        super().__init__(agenda, vcpu_id, index)
        self._side = gic
        self.gic: GicCpu | None = None
        # The features of KVM_ARM_VCPU_INIT, or None before it.
        self.features: int | None = None
        # The run state now, and after KVM_ARM_VCPU_INIT.
        self.mp_state: int = MpState.RUNNABLE
        self.initial_state: int = MpState.RUNNABLE
        self.has_run = False
        # HCR_EL2.VI and VF, which KVM_IRQ_LINE sets without a GIC: bit 0 IRQ, bit 1 FIQ.
        self.lines = 0
        # The address of the stolen time (KVM_ARM_VCPU_PVTIME_IPA), and the PMU's interrupt.
        self.stolen_time: int | None = None
        self.pmu_interrupt = 0
        self.pmu_ready = False
        self.virtual_timer: Final = Timer(agenda, self, VIRTUAL, 2 * index)
        self.physical_timer: Final = Timer(agenda, self, PHYSICAL, 2 * index + 1)

    @property
    def affinity(self) -> int:
        """MPIDR_EL1's affinity once the vCPU is initialised. KVM: sys_regs.c reset_mpidr."""
        return self.id & 0xF | (self.id >> 4 & 0xFF) << 8 | (self.id >> 12 & 0xFF) << 16

    @property
    def in_gic(self) -> GicCpu:
        """The vCPU's part of the GIC; the VM must have a GIC."""
        assert self.gic is not None
        return self.gic

    # The guest runs for one instruction.

    def enter_guest(self) -> None:
        """KVM: arm.c kvm_arch_vcpu_load, and kvm_arch_vcpu_ioctl_run up to the entry."""
        self.virtual_timer.load()
        self.physical_timer.load()
        self.flush()

    def flush(self) -> None:
        """KVM: kvm_vgic_flush_hwstate; the state of the CPU interface is loaded, too."""
        if self.gic is not None:
            self._side.flush(self.gic)

    def exit_guest(self) -> None:
        """KVM: kvm_vgic_sync_hwstate."""
        if self.gic is not None:
            self._side.sync(self.gic)
        self.priorities_changed()

    def step(self) -> None:
        """After a trapped instruction: enter the guest after it, and exit again."""
        self.flush()
        self.exit_guest()

    def outputs(self) -> tuple[bool, bool]:
        """Whether IRQ and FIQ are asserted, while the guest runs: ISR_EL1."""
        if self.gic is None:
            return bool(self.lines & 1), bool(self.lines & 2)
        irq, fiq = self._side.outputs(self.gic)
        return irq or bool(self.lines & 1), fiq or bool(self.lines & 2)

    # Interrupts.

    def has_interrupt(self) -> bool:
        """KVM: arm.c kvm_arch_vcpu_runnable."""
        if self.mp_state != MpState.RUNNABLE:
            return False
        return self.lines != 0 or (self.gic is not None and self._side.pending(self.gic))

    def wake(self, interrupts_masked: bool) -> Outcome:  # noqa: ARG002 - PSTATE does not mask this
        if not self.has_interrupt():
            return None
        self.flush()
        irq, fiq = self.outputs()
        if self.gic is not None:
            self._side.sync(self.gic)
        return 0, FIQ if fiq and not irq else IRQ

    def timer_changed(self, timer: int, level: bool) -> None:
        """A timer drives the line of its PPI."""
        if self.gic is not None:
            self._side.drive_timer(self.gic, timer, level)

    def wire_timers(self) -> None:
        """The vCPU runs with a GIC: let the timers interrupt. KVM: kvm_timer_enable."""
        for timer in (self.virtual_timer, self.physical_timer):
            timer.wired = True
            timer.changed()

    def initialise(self, features: int) -> None:
        """KVM_ARM_VCPU_INIT, with checked features. KVM: arm.c kvm_arch_vcpu_ioctl_vcpu_init, kvm_reset_vcpu."""
        self.features = features & ~Feature.POWER_OFF
        self.mp_state = self.initial_state = MpState.STOPPED if features & Feature.POWER_OFF else MpState.RUNNABLE
        self.lines = 0
        if self.gic is not None:
            self.gic.affinity = self.affinity
        self.reset_timers()

    def reset_timers(self) -> None:
        """KVM: kvm_timer_vcpu_reset."""
        self.virtual_timer.reset()
        self.physical_timer.reset()
        if self.gic is not None and self.virtual_timer.wired:
            self._side.forget_timer(self.gic)

    def reset(self) -> None:
        """RESET: the state after KVM_ARM_VCPU_INIT."""
        self.reset_count += 1
        self.lines = 0
        self.mp_state = self.initial_state
        self.virtual_timer.reset()
        self.physical_timer.reset()
