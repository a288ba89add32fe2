"""The generic timers of a vCPU, and the interrupts that they drive. KVM: arch/arm64/kvm/arch_timer.c.

Like the host of the golden traces, the host has no virtualisation host extensions (VHE). The virtual timer is hardware,
and its interrupt is mapped to the guest's; the kernel emulates the physical timer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from irqchipd.chips.saved import in_range
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.numbers import Owner
from irqchipd.vm.clock import Alarm
from irqchipd.vm.turns import MAX_TIME

TICK: Final = 16  # nanoseconds
FREQUENCY: Final = 1_000_000_000 // TICK  # CNTFRQ_EL0, that of the golden traces' machine

ENABLE: Final = 1 << 0  # CNTV_CTL_EL0.ENABLE
MASKED: Final = 1 << 1  # IMASK
STATUS: Final = 1 << 2  # ISTATUS
_CAN_FIRE: Final = ENABLE | MASKED
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1

VIRTUAL: Final = 0
PHYSICAL: Final = 1
TIMERS: Final = 2
OWNERS: Final = (Owner.VIRTUAL_TIMER, Owner.PHYSICAL_TIMER)
# By KVM_ARM_VCPU_TIMER_IRQ_*; the last two timers are for a guest's hypervisor, which is not supported.
USUAL_PPIS: Final = (27, 30, 28, 26)


class TimerWires(Protocol):
    """The output of a timer to its vCPU."""

    def timer_changed(self, timer: int, level: bool) -> None:
        """The timer drives its interrupt's line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTimer:
    """A timer in a snapshot: its registers, and the level of its interrupt's line."""

    control: int
    compare: int
    level: bool

    def check(self, which: int) -> None:
        """Refuse a state that no timer can have."""
        in_range(self.control, 0, (ENABLE | MASKED) if which == VIRTUAL else _U32 & ~STATUS, "a timer's control")
        in_range(self.compare, 0, _U64, "a timer's compare value")


class Timer:
    """One timer. The counters of all vCPUs are the VM's time in ticks."""

    __slots__ = ("_agenda", "_alarm", "_which", "_wires", "compare", "control", "level", "wired")

    def __init__(self, agenda: Agenda, wires: TimerWires, which: int, rank: int) -> None:
        self._agenda = agenda
        self._wires = wires
        self._which = which
        self.control = 0
        self.compare = 0
        self.level = False
        # Whether the vCPU has run with a GIC: then the timer drives its interrupt (timer->enabled).
        self.wired = False
        self._alarm = Alarm(rank, self._ring)

    @property
    def count(self) -> int:
        """The counter: CNTVCT_EL0, CNTPCT_EL0."""
        return self._agenda.clock.now() // TICK

    @property
    def fires(self) -> bool:
        """Whether the output is high. KVM: kvm_timer_should_fire."""
        return self.control & _CAN_FIRE == ENABLE and self.compare <= self.count

    def read_control(self) -> int:
        """CNTV_CTL_EL0, CNTP_CTL_EL0. The kernel's timer has ISTATUS while disabled, too (read_timer_ctl)."""
        expired = self.compare <= self.count and (self._which == PHYSICAL or self.control & ENABLE)
        return self.control | (STATUS if expired else 0)

    def write_control(self, value: int) -> None:
        """CNTV_CTL_EL0, CNTP_CTL_EL0. KVM's emulated timer keeps all bits but ISTATUS (kvm_arm_timer_write)."""
        self.control = value & ((ENABLE | MASKED) if self._which == VIRTUAL else _U32 & ~STATUS)
        self.changed()

    def write_compare(self, value: int) -> None:
        """CNTV_CVAL_EL0, CNTP_CVAL_EL0."""
        self.compare = value
        self.changed()

    def read_value(self) -> int:
        """CNTV_TVAL_EL0, CNTP_TVAL_EL0: the remaining ticks."""
        return self.compare - self.count & _U32

    def write_value(self, value: int) -> None:
        """CNTV_TVAL_EL0, CNTP_TVAL_EL0."""
        value &= _U32
        self.write_compare(self.count + value - (value >> 31 << 32) & _U64)

    def reset(self) -> None:
        """KVM: kvm_timer_vcpu_reset."""
        self.control = 0
        if self.wired:
            self._drive(False)
        self._set_alarm()

    def load(self) -> None:
        """The vCPU enters its guest. KVM: kvm_timer_vcpu_load_gic, and timer_emulate for the physical timer."""
        if self.wired:
            fires = self.fires
            if self._which == VIRTUAL or fires != self.level:
                self._drive(fires)

    def changed(self) -> None:
        """A register was written: interrupt at once, or when the time comes."""
        if self.wired:
            fires = self.fires
            # The hardware interrupts when the line rises; the entry into the guest sees that the line has fallen.
            if fires != self.level and (fires or self._which == PHYSICAL):
                self._drive(fires)
            self._set_alarm()

    def _drive(self, level: bool) -> None:
        """KVM: kvm_timer_update_irq."""
        self.level = level
        self._wires.timer_changed(self._which, level)

    def _set_alarm(self) -> None:
        deadline: int | None = None
        if self.control & _CAN_FIRE == ENABLE and self.compare > self.count and self.compare * TICK <= MAX_TIME:
            deadline = self.compare * TICK
        self._agenda.set_alarm(self._alarm, deadline)

    def _ring(self) -> None:
        """KVM: kvm_arch_timer_handler, kvm_hrtimer_expire, and kvm_bg_timer_expire of a halted vCPU."""
        if self.fires:
            self._drive(True)

    def save(self) -> SavedTimer:
        """The timer, for a snapshot."""
        return SavedTimer(control=self.control, compare=self.compare, level=self.level)

    def resume(self, saved: SavedTimer) -> None:
        """Resume from a checked snapshot."""
        self.control, self.compare, self.level = saved.control, saved.compare, saved.level
        if self.wired:
            self._set_alarm()
