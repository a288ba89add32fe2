"""The local APIC as a memory-mapped device, as in Linux KVM (arch/x86/kvm/lapic.c). Intel SDM vol. 3, chapter 11.

Messages that arrive, interrupts for the CPU, and the register page. lapic.py has the model-specific registers, the
x2APIC mode and the saved state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from irqchipd.chips.lapic_registers import (
    BASE_ENABLED,
    DEFAULT_BASE,
    DFR_CLUSTER,
    ICR2_WRITABLE,
    ICR_BUSY,
    LDR_WRITABLE,
    LVT_EXTINT,
    LVT_MASKED,
    LVT_MODE,
    LVT_NMI,
    LVT_WRITABLE,
    SVR_DIRECTED_EOI,
    SVR_ENABLED,
    SVR_WRITABLE,
    TIMER_DIVIDE_WRITABLE,
    VERSION_DIRECTED_EOI,
    WINDOW,
    WORDS,
    LapicRegisters,
    Quirk,
    Reg,
)
from irqchipd.chips.lapic_timer import TIMER_MODE, TSC_DEADLINE, ApicTimer, TimerWires
from irqchipd.chips.message import DeliveryMode, Message, from_icr, from_lvt, from_x2apic_icr


class LapicWires(TimerWires, Protocol):
    """The calls of a local APIC to its CPU and VM."""

    @property
    def quirks(self) -> int:
        """The enabled bits of Quirk."""

    def local_interrupt(self, message: Message) -> None:
        """The APIC sends itself the message of an LVT entry."""

    def send_ipi(self, icr: int, message: Message) -> None:
        """An interprocessor interrupt was sent; icr is the ICR's low half."""

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        """A vector left service; level_triggered is its TMR bit. The vector is -1 if nothing was in service."""

    def addressing_changed(self) -> None:
        """The ID, LDR, DFR or software enable may have changed."""

    def scan_needed(self) -> None:
        """The EOIs that concern the IOAPIC may have changed, without a change of an address."""

    def priorities_changed(self) -> None:
        """The CPU's next interrupt may have changed."""

    def signal(self, delivery_mode: int, vector: int) -> None:
        """The CPU was sent an NMI, SMI, INIT or start-up, which go past IRR; or a remote read."""


@dataclass(slots=True)
class Xapic(LapicRegisters):
    """A local APIC in xAPIC and x2APIC mode. The current count field is 0: a read computes it from the timer."""

    wires: LapicWires = field(kw_only=True)
    # The CPU's ID, which is the ID in x2APIC mode and the initial ID in xAPIC mode.
    apic_id: int = field(kw_only=True)
    timer: ApicTimer = field(kw_only=True)
    # IA32_APIC_BASE, and its fields.
    base: int = DEFAULT_BASE | BASE_ENABLED
    base_address: int = DEFAULT_BASE
    hardware_enabled: bool = True
    x2apic: bool = False
    # Whether a PC's firmware starts on this CPU.
    boot_cpu: bool = False
    # KVM: lapic.h lvt0_in_nmi_mode, which the VM counts. A software disable masks LINT0 without changing this, and a
    # write of LINT0 sets this from the written value, although a disabled APIC masks LINT0.
    nmi_watchdog: bool = False

    # For the CPU.

    @property
    def enabled(self) -> bool:
        """Whether software has enabled the APIC; otherwise it accepts no fixed interrupts."""
        return bool(self.svr & SVR_ENABLED)

    @property
    def directed_eoi(self) -> bool:
        """Whether SVR suppresses the broadcast of EOIs to the IOAPIC."""
        return bool(self.svr & SVR_DIRECTED_EOI)

    @property
    def passes_extint(self) -> bool:
        """Whether the PIC's INTR reaches the CPU. KVM: lapic.c kvm_apic_accept_pic_intr.

        INTR passes through LINT0; or directly, if the APIC is disabled in hardware.
        """
        return self.lvt_lint0 & (LVT_MASKED | LVT_MODE) == LVT_EXTINT or not self.hardware_enabled

    def interrupt(self) -> int:
        """The vector the CPU would accept now, or -1. KVM: lapic.c kvm_apic_has_interrupt."""
        return self.deliverable() if self.hardware_enabled else -1

    def acknowledge(self) -> int:
        """Accept the deliverable vector and return it, or -1. KVM: lapic.c kvm_apic_ack_interrupt."""
        vector = self.take() if self.hardware_enabled else -1
        if vector >= 0:
            if self.timer.dormant:
                self.timer.wake()
            self.wires.priorities_changed()
        return vector

    # Messages that arrive.

    def accept(self, message: Message) -> int:
        """Take a message for this APIC: 1 if the APIC took the message, 0 if not. KVM: lapic.c __apic_accept_irq."""
        mode = message.delivery_mode
        if mode <= DeliveryMode.LOWEST_PRIORITY:
            if (
                not self.svr & SVR_ENABLED
                or not self.hardware_enabled
                or (message.level_triggered and not message.asserted)
            ):
                return 0
            bit = 1 << message.vector
            if message.level_triggered:
                if self.timer.dormant:
                    self.timer.wake()
                self.tmr |= bit
            else:
                self.tmr &= ~bit
            self.irr |= bit  # here KVM never reports an interrupt as coalesced
            self.wires.priorities_changed()
            return 1
        if mode == DeliveryMode.EXTINT or (
            mode == DeliveryMode.INIT and message.level_triggered and not message.asserted
        ):
            return 0
        self.wires.signal(mode, message.vector if mode == DeliveryMode.STARTUP else 0)
        return 1

    def deliver_local(self, lvt: int) -> None:
        """Send the message of an LVT entry. KVM: lapic.c kvm_apic_local_deliver."""
        if self.hardware_enabled and not lvt & LVT_MASKED:
            self.wires.local_interrupt(from_lvt(lvt))

    def deliver_timer(self) -> int:
        """Send the message of the LVT timer entry: TimerWires.timer_expired. KVM: lapic.c apic_has_pending_timer."""
        if not self.hardware_enabled or not self.svr & SVR_ENABLED or self.lvt_timer & LVT_MASKED:
            return -1
        message = from_lvt(self.lvt_timer)
        coalesced = not message.delivery_mode and (self.irr & ~self.tmr) >> message.vector & 1
        self.wires.local_interrupt(message)
        return 0 if coalesced else 1

    # CR8, which is the upper half of TPR. KVM: lapic.c kvm_lapic_set_tpr, also while the APIC is disabled.

    @property
    def cr8(self) -> int:
        """The value of a guest's MOV from CR8."""
        return self.tpr >> 4 & 0xF

    def write_cr8(self, value: int) -> None:
        """A guest's MOV to CR8, of four bits."""
        self.tpr = value << 4
        self.wires.priorities_changed()

    # Memory-mapped registers.

    def claims(self, address: int) -> bool:
        """Whether an address is in this CPU's register page. KVM: lapic.c apic_mmio_read."""
        if not self.base_address <= address < self.base_address + WINDOW:
            return False
        return (self.hardware_enabled and not self.x2apic) or bool(self.wires.quirks & Quirk.LAPIC_MMIO_HOLE)

    def read(self, address: int, size: int) -> int:
        """A guest's load. KVM: lapic.c apic_mmio_read; a load across a word's end, or outside of registers, reads 0.

        The page of a disabled APIC, or of an x2APIC, is a hole.
        """
        if self.x2apic or not self.hardware_enabled:
            return (1 << 8 * size) - 1
        start = address & 0xF
        if start + size > 4:
            return 0
        word = self.read_register(address - self.base_address & ~0xF)
        return word >> 8 * start & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store. KVM: lapic.c apic_mmio_write; any store but an aligned word is dropped."""
        offset = address - self.base_address
        if size == 4 and not offset & 0xF and self.hardware_enabled and not self.x2apic:
            self.write_register(offset, value)

    # Registers, by their offset in the page.

    def read_register(self, offset: int) -> int:
        match offset:
            case Reg.PPR:
                return self.ppr
            case _ if Reg.ISR <= offset < Reg.TMR:
                return self.isr >> 2 * (offset - Reg.ISR) & 0xFFFF_FFFF
            case _ if Reg.TMR <= offset < Reg.IRR:
                return self.tmr >> 2 * (offset - Reg.TMR) & 0xFFFF_FFFF
            case _ if Reg.IRR <= offset < Reg.ESR:
                return self.irr >> 2 * (offset - Reg.IRR) & 0xFFFF_FFFF
            case Reg.TIMER_CURRENT_COUNT:
                return self.timer.current_count(self.timer_initial_count)
            case _ if offset in WORDS:
                return int(getattr(self, WORDS[offset]))
            case _:  # arbitration priority, EOI, and no register
                return 0

    def write_register(self, offset: int, value: int) -> bool:
        """Write a register. Returns whether the register can be written. KVM: lapic.c kvm_lapic_reg_write."""
        match offset:
            case Reg.ID:
                self.id = value & 0xFF00_0000
                self.wires.addressing_changed()
            case Reg.TPR:
                self.tpr = value & 0xFF
                self.wires.priorities_changed()
            case Reg.EOI:
                self._end_of_interrupt()
            case Reg.LDR:
                self.ldr = value & LDR_WRITABLE
                self.wires.addressing_changed()
            case Reg.DFR:
                self.dfr = value | DFR_CLUSTER
                self.wires.addressing_changed()
            case Reg.SVR:
                self._write_svr(value)
            case Reg.ESR:
                pass  # KVM never sets it
            case Reg.ICR:
                value &= ~ICR_BUSY
                self.send_ipi(value, self.icr2)
                self.icr = value
            case Reg.ICR2:
                self.icr2 = value & ICR2_WRITABLE
            case _ if offset in LVT_WRITABLE:
                self._write_lvt(offset, value)
            case Reg.TIMER_INITIAL_COUNT:
                if self.timer.mode != TSC_DEADLINE:
                    self.timer_initial_count = value
                    self.timer.load(value)
            case Reg.TIMER_DIVIDE:
                self.timer_divide = value & TIMER_DIVIDE_WRITABLE
                self.timer.change_divide(self.timer_divide, self.timer_initial_count)
            case _:  # read-only, or no register
                return False
        return True

    def send_ipi(self, low: int, high: int) -> None:
        self.wires.send_ipi(low, from_x2apic_icr(low, high) if self.x2apic else from_icr(low, high))

    def _end_of_interrupt(self) -> None:
        """KVM: lapic.c apic_set_eoi; with nothing in service an EOI is ignored."""
        vector = self.in_service
        if vector < 0:
            self.wires.end_of_interrupt(-1, False)
            return
        self.isr ^= 1 << vector
        self.wires.priorities_changed()
        self.wires.end_of_interrupt(vector, bool(self.tmr >> vector & 1))

    def _write_svr(self, value: int) -> None:
        directed = SVR_DIRECTED_EOI if self.version & VERSION_DIRECTED_EOI else 0
        value &= SVR_WRITABLE | directed
        toggled = (self.svr ^ value) & SVR_ENABLED
        self.svr = value
        if not value & SVR_ENABLED:
            for offset in LVT_WRITABLE:
                name = WORDS[offset]
                setattr(self, name, getattr(self, name) | LVT_MASKED)
            self.timer.wake()
            self.timer.pending = False
            self.wires.priorities_changed()
        elif toggled:
            self.timer.unmasked()
        if toggled:
            self.wires.addressing_changed()

    def _write_lvt(self, offset: int, value: int) -> None:
        value &= LVT_WRITABLE[offset]
        if offset == Reg.LVT_TIMER:
            value &= ~TIMER_MODE | self.timer.mode_mask
        elif offset == Reg.LVT_LINT0:
            self.nmi_watchdog = lint0_is_nmi(value)
        if not self.svr & SVR_ENABLED:
            value |= LVT_MASKED
        setattr(self, WORDS[offset], value)
        if offset == Reg.LVT_TIMER:
            if self.timer.set_mode(value):
                self.timer_initial_count = 0
            self.timer.unmasked()
        if offset == Reg.LVT_LINT0:
            self.wires.priorities_changed()


def lint0_is_nmi(lvt: int) -> bool:
    """Whether a LINT0 makes the PIT's ticks NMIs (the NMI watchdog). KVM: lapic.c apic_lvt_nmi_mode."""
    return lvt & (LVT_MASKED | LVT_MODE) == LVT_NMI
