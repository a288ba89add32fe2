"""The local APIC of one CPU, as Linux KVM has it (arch/x86/kvm/lapic.c). Intel SDM vol. 3, chapter 11."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from irqchipd.chips.lapic_registers import (
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
    VERSION,
    VERSION_DIRECTED_EOI,
    WORDS,
    X2APIC_ICR_RESERVED,
    LapicRegisters,
    Reg,
)
from irqchipd.chips.lapic_timer import KHZ, TIMER_MODE, TSC_DEADLINE, ApicTimer, TimerWires
from irqchipd.chips.message import DeliveryMode, Message, Shorthand, from_icr, from_lvt, from_x2apic_icr

DEFAULT_BASE = 0xFEE0_0000
WINDOW = 0x1000  # bytes of address space


class Msr:
    """Model-specific registers, SDM vol. 4. The x2APIC's are the register page's, one for every 16 bytes."""

    TSC = 0x10
    APIC_BASE = 0x1B
    TSC_ADJUST = 0x3B
    TSC_DEADLINE = 0x6E0
    X2APIC, X2APIC_END = 0x800, 0x900


# IA32_APIC_BASE.
BASE_BOOT_CPU = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLED = 1 << 11
BASE_ADDRESS = ~0xFFF
BASE_RESERVED = 0x2FF  # and what is no physical address
ADDRESS_BITS = 52  # of a physical address, at most


class Quirk:
    """What KVM does otherwise than a local APIC, unless it is told not to: KVM_X86_QUIRK_*."""

    LINT0_REENABLED = 1 << 0  # the boot CPU's LINT0 lets the PIC through at reset
    LAPIC_MMIO_HOLE = 1 << 2  # the page of an APIC that is disabled, or an x2APIC, is all ones, and claimed


FAULT = -1  # what an access to an MSR gives that raises a general protection fault

# What an x2APIC has no register for, or none that is read.
_NOT_READ_AS_MSR = {Reg.DFR, Reg.ICR2, Reg.ICR_HIGH}


class LapicWires(TimerWires, Protocol):
    """What a local APIC tells its CPU and VM."""

    @property
    def quirks(self) -> int:
        """Which Quirks it has."""

    def local_interrupt(self, message: Message) -> None:
        """The APIC sends itself what one of its LVT entries says."""

    def send_ipi(self, icr: int, message: Message) -> None:
        """An interprocessor interrupt was sent; icr is the low half that sent it."""

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        """A vector left service; level_triggered is its TMR bit."""

    def addressing_changed(self) -> None:
        """The ID, LDR, DFR or software enable may have changed."""

    def scan_needed(self) -> None:
        """Which EOIs concern the IOAPIC may have changed, though no address has."""

    def priorities_changed(self) -> None:
        """What the CPU would take next may have changed."""

    def signal(self, delivery_mode: int, vector: int) -> None:
        """The CPU was sent an NMI, SMI, INIT or start-up, which go past IRR; or a remote read."""


_values = attrgetter(*LapicRegisters.__slots__)


@dataclass(frozen=True, slots=True)
class Features:
    """What a guest's CPUID says, as far as its local APIC goes by it; by default it has all that there is."""

    x2apic: bool = True  # leaf 1, ECX bit 21
    tsc_deadline: bool = True  # leaf 1, ECX bit 24
    tsc_adjust: bool = True  # leaf 7, EBX bit 1
    address_bits: int = ADDRESS_BITS  # leaf 80000008h, EAX bits 7:0

    def refuse_base(self, value: int) -> bool:
        """Whether IA32_APIC_BASE can't hold a value. KVM: lapic.c kvm_apic_set_base."""
        x2apic = value & BASE_X2APIC
        return bool(
            value & BASE_RESERVED
            or value >> self.address_bits
            or (x2apic and not self.x2apic)
            or (x2apic and not value & BASE_ENABLED)
        )


@dataclass(slots=True)
class Lapic(LapicRegisters):
    """The chip. Its timer's current count is worked out when it is read; the field is 0."""

    wires: LapicWires = field(kw_only=True)
    # The CPU's, which is the ID in x2APIC mode and the first in xAPIC mode.
    apic_id: int = field(kw_only=True)
    timer: ApicTimer = field(kw_only=True)
    # IA32_APIC_BASE, and what it says.
    base: int = DEFAULT_BASE | BASE_ENABLED
    base_address: int = DEFAULT_BASE
    hardware_enabled: bool = True
    x2apic: bool = False
    # The CPU that a PC's firmware starts on.
    boot_cpu: bool = False
    features: Features = Features()
    # KVM: lapic.h lvt0_in_nmi_mode, of which the VM counts those that are set. A software disable masks LINT0 and
    # leaves this; and a write of LINT0 counts as it was written, though a disabled APIC masks it.
    nmi_watchdog: bool = False

    @classmethod
    def at_reset(
        cls,
        wires: LapicWires,
        apic_id: int,
        tsc_khz: int = KHZ,
        *,
        boot_cpu: bool | None = None,
        ioapic: bool = True,
        bus_ns: int = 1,
    ) -> Lapic:
        """As it powers on; without boot_cpu, the first is that. KVM: lapic.c kvm_lapic_reset."""
        boot_cpu = not apic_id if boot_cpu is None else boot_cpu
        lapic = cls(
            wires=wires,
            apic_id=apic_id,
            timer=ApicTimer(wires, tsc_khz, bus_ns),
            id=(apic_id & 0xFF) << 24,
            version=cls.version_beside(ioapic=ioapic),
            base=DEFAULT_BASE | BASE_ENABLED | (BASE_BOOT_CPU if boot_cpu else 0),
            boot_cpu=boot_cpu,
        )
        lapic.lvt_lint0 = lapic._lint0_at_reset
        return lapic

    @property
    def _lint0_at_reset(self) -> int:
        """The boot CPU's already lets the PIC through. KVM: lapic.c kvm_lapic_reset."""
        return LVT_EXTINT if self.boot_cpu and self.wires.quirks & Quirk.LINT0_REENABLED else LVT_MASKED

    @staticmethod
    def version_beside(*, ioapic: bool) -> int:
        """The version register. KVM: lapic.c kvm_apic_set_version; its IOAPIC has no EOI register."""
        return VERSION if ioapic else VERSION | VERSION_DIRECTED_EOI

    def set_features(self, features: Features, *, ioapic: bool) -> None:
        """The guest's CPUID is another one. KVM: lapic.c kvm_vcpu_after_set_cpuid; no other register changes."""
        self.features = features
        self.timer.mode_mask = TIMER_MODE if features.tsc_deadline else TIMER_MODE & ~TSC_DEADLINE
        self.version = self.version_beside(ioapic=ioapic or not features.x2apic)

    def reset(self, *, init: bool) -> None:
        """RESET, or the CPU's INIT, which leaves the base and the ID. KVM: lapic.c kvm_lapic_reset.

        The TSC goes on.
        """
        if not init:
            self._set_base(DEFAULT_BASE | BASE_ENABLED | (BASE_BOOT_CPU if self.boot_cpu else 0))
            self.id = (self.apic_id & 0xFF) << 24
        self.timer.stop()
        page, apic_id, ldr = self.page, self.id, self.ldr if self.x2apic else 0
        icr2 = self.icr2 if self.x2apic else 0
        icr_high = 0 if self.x2apic else self.icr_high
        reset = LapicRegisters(id=apic_id, ldr=ldr, icr2=icr2, icr_high=icr_high, version=self.version, page=page)
        for name in LapicRegisters.__slots__:
            setattr(self, name, getattr(reset, name))
        self.timer.set_mode(self.lvt_timer)
        self.timer.set_divide(self.timer_divide)
        self.lvt_lint0 = self._lint0_at_reset
        self.nmi_watchdog = False
        self.wires.addressing_changed()
        self.wires.priorities_changed()

    # What the CPU asks.

    @property
    def enabled(self) -> bool:
        """Whether software has enabled it: one that is not accepts no fixed interrupts."""
        return bool(self.svr & SVR_ENABLED)

    @property
    def directed_eoi(self) -> bool:
        """Whether its EOIs are kept from the IOAPIC."""
        return bool(self.svr & SVR_DIRECTED_EOI)

    @property
    def passes_extint(self) -> bool:
        """Whether the PIC's INTR reaches the CPU. KVM: lapic.c kvm_apic_accept_pic_intr.

        Through LINT0; or, where the APIC is disabled in hardware, as in a CPU that has none.
        """
        return self.lvt_lint0 & (LVT_MASKED | LVT_MODE) == LVT_EXTINT or not self.hardware_enabled

    def interrupt(self) -> int:
        """The vector the CPU would accept now, or -1. KVM: lapic.c kvm_apic_has_interrupt."""
        return self.deliverable() if self.hardware_enabled else -1

    def acknowledge(self) -> int:
        """Accept the deliverable vector and return it, or -1. KVM: lapic.c kvm_apic_ack_interrupt."""
        vector = self.take() if self.hardware_enabled else -1
        if vector >= 0:
            self.timer.wake()
            self.wires.priorities_changed()
        return vector

    # What arrives.

    def accept(self, message: Message) -> int:
        """Take a message that is for this APIC: 1 if it took it, 0 if not. KVM: lapic.c __apic_accept_irq."""
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
                self.timer.wake()
                self.tmr |= bit
            else:
                self.tmr &= ~bit
            self.irr |= bit  # KVM never reports an interrupt coalesced here
            self.wires.priorities_changed()
            return 1
        if mode == DeliveryMode.EXTINT or (
            mode == DeliveryMode.INIT and message.level_triggered and not message.asserted
        ):
            return 0
        self.wires.signal(mode, message.vector if mode == DeliveryMode.STARTUP else 0)
        return 1

    def deliver_local(self, lvt: int) -> None:
        """Send what an LVT entry says. KVM: lapic.c kvm_apic_local_deliver."""
        if self.hardware_enabled and not lvt & LVT_MASKED:
            self.wires.local_interrupt(from_lvt(lvt))

    def deliver_timer(self) -> int:
        """Send what the LVT timer entry says; see TimerWires.timer_expired. KVM: lapic.c apic_has_pending_timer."""
        if not self.hardware_enabled or not self.svr & SVR_ENABLED or self.lvt_timer & LVT_MASKED:
            return -1
        message = from_lvt(self.lvt_timer)
        coalesced = not message.delivery_mode and (self.irr & ~self.tmr) >> message.vector & 1
        self.wires.local_interrupt(message)
        return 0 if coalesced else 1

    # CR8, which is the upper half of TPR. KVM: lapic.c kvm_lapic_set_tpr, whether the APIC is disabled or not.

    @property
    def cr8(self) -> int:
        """What a guest's MOV from CR8 gives."""
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
        """A guest's load. KVM: lapic.c apic_mmio_read; one that leaves its word, or the registers, reads 0.

        The page of an APIC that is disabled, or an x2APIC, is a hole.
        """
        if self.x2apic or not self.hardware_enabled:
            return (1 << 8 * size) - 1
        start = address & 0xF
        if start + size > 4:
            return 0
        word = self._read_register(address - self.base_address & ~0xF)
        return word >> 8 * start & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store. KVM: lapic.c apic_mmio_write; one that is not an aligned word is dropped."""
        offset = address - self.base_address
        if size == 4 and not offset & 0xF and self.hardware_enabled and not self.x2apic:
            self._write_register(offset, value)

    # Model-specific registers. None is one that is not the APIC's, FAULT a general protection fault.

    def read_msr(self, msr: int) -> int | None:
        """A guest's RDMSR."""
        match msr:
            case _ if Msr.X2APIC <= msr < Msr.X2APIC_END:
                return self._read_x2apic(msr - Msr.X2APIC << 4) if self.x2apic else FAULT
            case Msr.APIC_BASE:
                return self.base
            case Msr.TSC_DEADLINE:
                # KVM: lapic.c kvm_get_lapic_tscdeadline_msr
                live = self.hardware_enabled and self.timer.mode == TSC_DEADLINE
                return self.timer.tsc_deadline if live else 0
            case Msr.TSC:
                return self.timer.tsc(self.wires.now())
            case Msr.TSC_ADJUST:
                return self.timer.tsc_adjust
            case _:
                return None

    def write_msr(self, msr: int, value: int, *, host: bool = False) -> int | None:
        """A guest's WRMSR, or the VMM's KVM_SET_MSRS; 0 is success."""
        match msr:
            case _ if Msr.X2APIC <= msr < Msr.X2APIC_END:
                return self._write_x2apic(msr - Msr.X2APIC << 4, value) if self.x2apic else FAULT
            case Msr.APIC_BASE:
                return self._write_base(value, host)
            case Msr.TSC_DEADLINE:
                if self.hardware_enabled:
                    self.timer.write_deadline(value)
                return 0
            case Msr.TSC:
                self.timer.write_tsc(value, host=host)
                return 0
            case Msr.TSC_ADJUST:
                if self.features.tsc_adjust:  # KVM: x86.c kvm_set_msr_common; else it is ignored
                    self.timer.write_tsc_adjust(value, host=host)
                return 0
            case _:
                return None

    def _read_x2apic(self, offset: int) -> int:
        """KVM: lapic.c kvm_lapic_msr_read."""
        match offset:
            case Reg.ICR:
                return self.icr_high << 32 | self.icr
            case Reg.PPR:
                return self.ppr
            case _ if Reg.ISR <= offset < Reg.ESR or (offset in WORDS and offset not in _NOT_READ_AS_MSR):
                return self._read_register(offset)
            case _:
                return FAULT

    def _write_x2apic(self, offset: int, value: int) -> int:
        """KVM: lapic.c kvm_lapic_msr_write."""
        if offset == Reg.ICR:
            return self._write_x2apic_icr(value)
        if value >> 32:
            return FAULT
        match offset:
            case Reg.ID | Reg.LDR | Reg.DFR | Reg.ICR2:
                return FAULT  # read-only, or none
            case Reg.ESR:
                return FAULT if value else 0
            case Reg.SELF_IPI:
                if value > 0xFF:
                    return FAULT
                self._send_ipi(Shorthand.SELF << 18 | value, 0)
                return 0
            case _:
                return 0 if self._write_register(offset, value) else FAULT

    def _write_x2apic_icr(self, value: int) -> int:
        """KVM: lapic.c __kvm_x2apic_icr_write."""
        if value & X2APIC_ICR_RESERVED:
            return FAULT
        value &= ~ICR_BUSY
        self._send_ipi(value & 0xFFFF_FFFF, value >> 32)
        self.icr, self.icr_high = value & 0xFFFF_FFFF, value >> 32
        return 0

    def _write_base(self, value: int, host: bool) -> int:
        """IA32_APIC_BASE. KVM: lapic.c kvm_apic_set_base.

        xAPIC, x2APIC, disabled, xAPIC: a guest can go through the modes in no other direction.
        """
        if value == self.base:
            return 0
        enabled, x2apic = bool(value & BASE_ENABLED), bool(value & BASE_X2APIC)
        backwards = (x2apic and not self.hardware_enabled) or (self.x2apic and enabled and not x2apic)
        if self.features.refuse_base(value) or (backwards and not host):
            return FAULT
        self._set_base(value)
        return 0

    def _set_base(self, value: int) -> None:
        """KVM: lapic.c __kvm_apic_set_base."""
        enabled, x2apic = bool(value & BASE_ENABLED), bool(value & BASE_X2APIC)
        readdressed = enabled != self.hardware_enabled
        if enabled and not self.hardware_enabled:
            self.id = (self.apic_id & 0xFF) << 24
        if x2apic != self.x2apic:
            if x2apic:
                self.id = self.apic_id
                self.ldr = x2apic_logical_id(self.apic_id)
                readdressed = True
            elif enabled:
                self.id = (self.apic_id & 0xFF) << 24
                readdressed = True
        self.restore_base(value)
        if readdressed:
            self.wires.addressing_changed()
        self.timer.unmasked()
        self.wires.priorities_changed()

    def restore_base(self, value: int) -> None:
        """Take over IA32_APIC_BASE and nothing of what changing it does."""
        self.base = value
        self.base_address = value & BASE_ADDRESS
        self.hardware_enabled = bool(value & BASE_ENABLED)
        self.x2apic = bool(value & BASE_X2APIC)

    # Registers, by their offset in the page.

    def _read_register(self, offset: int) -> int:
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
            case _:  # arbitration priority, EOI, and what is no register
                return 0

    def _write_register(self, offset: int, value: int) -> bool:
        """Whether it is one that can be written. KVM: lapic.c kvm_lapic_reg_write."""
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
                self._send_ipi(value, self.icr2)
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

    def _send_ipi(self, low: int, high: int) -> None:
        self.wires.send_ipi(low, from_x2apic_icr(low, high) if self.x2apic else from_icr(low, high))

    def _end_of_interrupt(self) -> None:
        """KVM: lapic.c apic_set_eoi; with nothing in service an EOI is ignored."""
        vector = self.in_service
        if vector < 0:
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

    # State.

    def registers(self) -> LapicRegisters:
        """What KVM_GET_LAPIC gives. KVM: lapic.c kvm_apic_get_state; of an x2APIC, in the layout of an xAPIC."""
        registers = LapicRegisters(*_values(self))
        if self.timer_initial_count:
            registers.timer_current_count = self.timer.current_count(self.timer_initial_count)
        if self.x2apic:
            registers.id = (self.apic_id << 24) & 0xFFFF_FFFF
            registers.icr2 = self.icr_high
        return registers

    def restore(self, registers: LapicRegisters) -> None:
        """What KVM_SET_LAPIC does: a raw copy, but for the version. KVM: lapic.c kvm_apic_set_state.

        The timer runs on from the current count. An x2APIC's IDs are not to be set.
        """
        was, version = _addressing(self), self.version
        for name in LapicRegisters.__slots__:
            setattr(self, name, getattr(registers, name))
        self.version = version
        self.nmi_watchdog = lint0_is_nmi(self.lvt_lint0)
        if self.x2apic:
            self.id, self.ldr = self.apic_id, x2apic_logical_id(self.apic_id)
            self.icr_high = self.icr2
        self.timer.stop()
        if self.timer.set_mode(self.lvt_timer):
            self.timer_initial_count = 0
        self.timer.set_divide(self.timer_divide)
        count, self.timer_current_count = self.timer_current_count, 0
        self.timer.start(self.timer_initial_count, count)
        if was != _addressing(self):
            self.wires.addressing_changed()
        else:
            self.wires.scan_needed()
        self.wires.priorities_changed()


def x2apic_logical_id(apic_id: int) -> int:
    """The logical ID of an x2APIC: cluster and bit. KVM: lapic.c kvm_apic_calc_x2apic_ldr."""
    return (apic_id >> 4) << 16 | 1 << (apic_id & 0xF)


def lint0_is_nmi(lvt: int) -> bool:
    """Whether a LINT0 makes the PIT's ticks NMIs (the NMI watchdog). KVM: lapic.c apic_lvt_nmi_mode."""
    return lvt & (LVT_MASKED | LVT_MODE) == LVT_NMI


def _addressing(registers: LapicRegisters) -> tuple[int, int, int, int]:
    """What decides which messages reach an APIC."""
    return registers.id, registers.ldr, registers.dfr, registers.svr & SVR_ENABLED
