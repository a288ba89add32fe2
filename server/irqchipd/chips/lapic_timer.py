"""The timer of a local APIC, as in Linux KVM (arch/x86/kvm/lapic.c). Intel SDM vol. 3, 11.5.4.

The timer counts at 1 GHz, or at the frequency of the VM's bus, divided by the divider. Nothing here counts: the timer
has a time of expiry, and a read computes the count from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from irqchipd.chips.saved import check, in_range, not_too_late

# Bits 18:17 of the LVT timer entry. The fourth value is reserved, and its timer does nothing.
TIMER_MODE_SHIFT: Final = 17
TIMER_MODE: Final = 3 << TIMER_MODE_SHIFT
ONE_SHOT: Final = 0 << TIMER_MODE_SHIFT
PERIODIC: Final = 1 << TIMER_MODE_SHIFT
TSC_DEADLINE: Final = 2 << TIMER_MODE_SHIFT

MAX_BUS_NS: Final = ((1 << 64) - 1) // (0xFFFF_FFFF * 128)  # nanoseconds a cycle; KVM: x86.c, a period has 64 bits
MAX_PERIOD: Final = 0xFFFF_FFFF * 128  # nanoseconds, by the largest count and divisor, at 1 GHz
MIN_PERIOD: Final = 200_000  # nanoseconds; KVM: lapic.c limit_periodic_timer_frequency, min_timer_period_us
KHZ: Final = 1_000_000  # kHz to ticks a nanosecond
FOREVER: Final = (1 << 63) - 1  # later than any time of a VM

_U64: Final = (1 << 64) - 1


class TimerWires(Protocol):
    """The calls of a timer to its CPU and VM."""

    def now(self) -> int:
        """The VM's time, nanoseconds."""

    def set_timer(self, expires: int | None) -> None:
        """Call ApicTimer.expired at a time, which replaces the time before; None stops the timer."""

    def timer_expired(self) -> int:
        """Deliver the interrupt of the LVT timer entry.

        -1: it is masked, or the APIC disabled; 0: it is requested already; 1: delivered.
        """

    @property
    def lazy(self) -> bool:
        """Whether an expiry that changes nothing can be left out unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTimer:
    """The timer in a snapshot."""

    tsc_offset: int = 0
    timer_period_ns: int = 0
    timer_target_ns: int = 0
    tsc_deadline: int = 0
    timer_expires_ns: int | None = None
    timer_pending: bool = False
    timer_mode: int | None = None  # absent: the LVT timer entry's
    tsc_adjust: int = 0

    def check_timer(self, lvt_timer: int, bus_ns: int) -> None:
        """Refuse a state that no timer with this LVT entry and bus can have."""
        in_range(self.timer_mode, 0, TIMER_MODE >> TIMER_MODE_SHIFT, "timer_mode")
        in_range(self.timer_period_ns, 0, MAX_PERIOD * bus_ns, "an APIC timer's period")
        in_range(self.timer_target_ns, 0, FOREVER, "an APIC timer's target")
        in_range(self.timer_expires_ns, 0, FOREVER, "an APIC timer's expiry")
        periodic = self.mode(lvt_timer, TIMER_MODE) == PERIODIC and self.timer_expires_ns is not None
        check(not periodic or self.timer_period_ns >= MIN_PERIOD, "an APIC timer's period is too short")

    def mode(self, lvt_timer: int, mask: int) -> int:
        """The mode that the timer was in."""
        return lvt_timer & mask if self.timer_mode is None else self.timer_mode << TIMER_MODE_SHIFT


@dataclass(slots=True)
class ApicTimer:
    """The chip's timer. Register values are the local APIC's own; times are the VM's, nanoseconds."""

    wires: TimerWires
    tsc_khz: int = KHZ
    # The cycle of the bus, nanoseconds; the timer counts every 2^n-th cycle. KVM: KVM_CAP_X86_APIC_BUS_CYCLES_NS.
    bus_ns: int = 1
    # The CPU's TSC less the VM's time, ticks, modulo 2^64; and the guest's own part of this offset.
    tsc_offset: int = 0
    tsc_adjust: int = 0
    mode: int = ONE_SHOT
    # The modes that the guest's CPUID offers. KVM: kvm_timer timer_mode_mask.
    mode_mask: int = TIMER_MODE
    divisor: int = 0  # nanoseconds a count
    # The period of the initial count; 0 before the first one.
    period: int = 0
    # When the count is or was due to reach 0; 0 after a one-shot.
    target: int = 0
    # IA32_TSC_DEADLINE; 0 means no deadline.
    tsc_deadline: int = 0
    # The timer has expired, and its interrupt waits to be unmasked. KVM: lapic.c apic_has_pending_timer.
    pending: bool = False
    # Whether a periodic timer sleeps: its expiries change nothing until wake().
    dormant: bool = False

    def __post_init__(self) -> None:
        self.set_divide(0)

    # The TSC.

    def tsc(self, now: int) -> int:
        """The CPU's time stamp counter at a time."""
        return (now * self.tsc_khz // KHZ + self.tsc_offset) & _U64

    def write_tsc(self, value: int, *, host: bool = False) -> None:
        """WRMSR of IA32_TSC. A running deadline already is a time, and stays. KVM: x86.c kvm_set_msr_common."""
        offset = (value - self.wires.now() * self.tsc_khz // KHZ) & _U64
        if not host:
            self.tsc_adjust = (self.tsc_adjust + offset - self.tsc_offset) & _U64
        self.tsc_offset = offset

    def write_tsc_adjust(self, value: int, *, host: bool = False) -> None:
        """WRMSR of IA32_TSC_ADJUST: the TSC changes with it, unless a VMM restores the register."""
        if not host:
            self.tsc_offset = (self.tsc_offset + value - self.tsc_adjust) & _U64
        self.tsc_adjust = value

    # Registers.

    def current_count(self, initial_count: int) -> int:
        """The current count register. KVM: lapic.c apic_get_tmcct.

        At the very start this is the initial count: KVM's formula gives 0 there, but its clock has always advanced.
        """
        if self.mode == TSC_DEADLINE or not initial_count or not self.period:
            return 0
        self.wake()
        remaining = max(self.target - self.wires.now(), 0)
        left = remaining if remaining == self.period else remaining % self.period
        return left // self.divisor & 0xFFFF_FFFF  # KVM truncates; a restored state can make this larger

    def set_mode(self, lvt: int) -> bool:
        """The LVT timer entry was written. Returns whether to clear the counts. KVM: lapic.c apic_update_lvtt."""
        self.wake()
        mode = lvt & self.mode_mask
        crosses = (self.mode == TSC_DEADLINE) != (mode == TSC_DEADLINE)
        if crosses:
            self.stop()
            self.period = 0
            self.tsc_deadline = 0
        if mode != self.mode:
            self.mode = mode
            self._limit_period()
        return crosses

    def set_divide(self, divide: int) -> None:
        """The divide configuration register was restored. KVM: lapic.c update_divide_count."""
        self.divisor = self.bus_ns << (((divide & 3 | (divide & 8) >> 1) + 1) & 7)

    def change_divide(self, divide: int, initial_count: int) -> None:
        """The divide configuration register was written: the remaining count runs at the new rate.

        KVM: lapic.c kvm_lapic_reg_write; an expired one-shot has a remaining count of 0, and expires again.
        """
        old = self.divisor
        self.set_divide(divide)
        if self.divisor == old or not self.period:
            return
        self.wake()
        now = self.wires.now()
        self.wires.set_timer(None)
        self.period = initial_count * self.divisor
        self._limit_period()
        # A divide value restored in between was never used for counting, so the result can be large.
        self.target = min(now + max(self.target - now, 0) * self.divisor // old, FOREVER)
        self._run(now)

    def load(self, initial_count: int) -> None:
        """The initial count register was written. KVM: lapic.c start_apic_timer; 0 stops it."""
        self.stop()
        self.start(initial_count)

    def start(self, initial_count: int, count: int | None = None) -> None:
        """Begin at the initial count, or at the current count of a restored state. KVM: lapic.c __start_apic_timer.

        A periodic timer that is restored without a count begins anew; a one-shot counts as expired.
        """
        now = self.wires.now()
        if self.mode in (ONE_SHOT, PERIODIC):
            self.period = initial_count * self.divisor
            if not self.period:
                self.tsc_deadline = 0
                return
            self._limit_period()
            left = self.period if count is None else count * self.divisor
            if left > self.period or (not left and self.mode == PERIODIC):
                left = self.period
            self.target = min(now + left, FOREVER)
        self._run(now)

    def write_deadline(self, value: int) -> None:
        """WRMSR of IA32_TSC_DEADLINE. KVM: lapic.c kvm_set_lapic_tscdeadline_msr; ignored in the other modes."""
        if self.mode != TSC_DEADLINE:
            return
        self.stop()
        self.tsc_deadline = value
        self._run(self.wires.now())

    def stop(self) -> None:
        """Stop the timer, and drop a pending interrupt. KVM: lapic.c cancel_apic_timer."""
        self.wires.set_timer(None)
        self.pending = False
        self.dormant = False

    def wake(self) -> None:
        """End the sleep of dormant: the next expiry may have an effect, or be observed."""
        if self.dormant:
            self.dormant = False
            missed = self.wires.now() - self.target
            if missed >= 0:
                self.target += (missed // self.period + 1) * self.period
            self.wires.set_timer(self.target)

    # Expiry.

    def expired(self) -> None:
        """The timer's alarm rings. KVM: lapic.c apic_timer_fn."""
        if self.mode != PERIODIC:
            self._expire()
            return
        self.target = min(self.target + self.period, FOREVER)
        changed = self._expire()
        if changed or not self.wires.lazy:
            self.wires.set_timer(self.target)
        else:
            self.dormant = True

    def unmasked(self) -> None:
        """The LVT timer entry may be unmasked, or the APIC enabled: deliver a pending interrupt."""
        self.wake()
        if self.pending:
            self.pending = False
            self._expire()

    def _expire(self) -> bool:
        """KVM: lapic.c apic_timer_expired; one interrupt, however often the timer expires while masked.

        Returns whether the expiry had an effect.
        """
        if self.pending:
            return False
        # KVM waits for the vCPU's next entry into its guest; here the vCPU always is in its guest.
        status = self.wires.timer_expired()
        if status < 0:
            self.pending = True
            return True
        if self.mode == TSC_DEADLINE:
            self.tsc_deadline = 0
        elif self.mode == ONE_SHOT:
            self.tsc_deadline = 0
            self.target = 0
        return status > 0

    def _run(self, now: int) -> None:
        """KVM: lapic.c restart_apic_timer."""
        if self.pending and self.mode != PERIODIC:
            return
        if self.mode == TSC_DEADLINE:
            self._run_to_deadline(now)
        elif self.mode in (ONE_SHOT, PERIODIC) and self.period:
            if now >= self.target:
                self._expire()
                if self.mode == ONE_SHOT:
                    return
                self.target = min(self.target + self.period, FOREVER)
            self.wires.set_timer(self.target)

    def _run_to_deadline(self, now: int) -> None:
        """KVM: lapic.c start_sw_tscdeadline."""
        if not self.tsc_deadline:
            return
        left = self.tsc_deadline - self.tsc(now)  # ticks
        if left > 0:
            # The first nanosecond at which the TSC has reached the deadline. KVM: lapic.c __kvm_wait_lapic_expire
            expires = -(-(now * self.tsc_khz // KHZ + left) * KHZ // self.tsc_khz)
            self.wires.set_timer(min(expires, FOREVER))
        else:
            self._expire()

    def _limit_period(self) -> None:
        if self.mode == PERIODIC and self.period:
            self.period = max(self.period, MIN_PERIOD)

    # State.

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedTimer, except timer_expires_ns, which the wires know."""
        return {
            "tsc_offset": self.tsc_offset,
            "timer_period_ns": self.period,
            "timer_target_ns": self.target,
            "tsc_deadline": self.tsc_deadline,
            "timer_pending": self.pending,
            "timer_mode": self.mode >> TIMER_MODE_SHIFT,
            "tsc_adjust": self.tsc_adjust,
        }

    def resume(self, saved: SavedTimer, lvt_timer: int, divide: int) -> None:
        """Resume from a checked snapshot."""
        self.mode = saved.mode(lvt_timer, self.mode_mask)
        self.set_divide(divide)
        self.period, self.target = saved.timer_period_ns, saved.timer_target_ns
        self.tsc_offset, self.tsc_adjust = saved.tsc_offset, saved.tsc_adjust
        self.tsc_deadline, self.pending = saved.tsc_deadline, saved.timer_pending
        expires = saved.timer_expires_ns
        if expires is not None and self.mode == PERIODIC:
            now = self.wires.now()
            expires = not_too_late(expires, self.period, now)
            self.target = min(not_too_late(self.target, self.period, now), FOREVER)
        self.wires.set_timer(expires)
