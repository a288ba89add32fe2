"""The local APIC of one CPU, as Linux KVM has it (arch/x86/kvm/lapic.c). Intel SDM vol. 3, chapter 11."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from irqchipd.chips.lapic_timer import KHZ, TIMER_MODE, TSC_DEADLINE, ApicTimer, TimerWires
from irqchipd.chips.message import DeliveryMode, Message, Shorthand, from_icr, from_lvt, from_x2apic_icr

DEFAULT_BASE = 0xFEE0_0000
WINDOW = 0x1000  # bytes of address space
STATE_SIZE = 1024  # struct kvm_lapic_state
VECTORS = 256
ALL_VECTORS = (1 << VECTORS) - 1


class Reg:
    """Offsets in the register page, SDM table 11-1. ISR, TMR and IRR are eight words each, 10h apart."""

    ID = 0x020
    VERSION = 0x030
    TPR = 0x080
    ARBITRATION = 0x090
    PPR = 0x0A0
    EOI = 0x0B0
    LDR = 0x0D0
    DFR = 0x0E0
    SVR = 0x0F0
    ISR = 0x100
    TMR = 0x180
    IRR = 0x200
    ESR = 0x280
    ICR = 0x300
    ICR_HIGH = 0x304  # KVM: where the upper half of an x2APIC's 64-bit ICR is kept
    ICR2 = 0x310
    LVT_TIMER = 0x320
    LVT_THERMAL = 0x330
    LVT_PERFORMANCE = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360
    LVT_ERROR = 0x370
    TIMER_INITIAL_COUNT = 0x380
    TIMER_CURRENT_COUNT = 0x390
    TIMER_DIVIDE = 0x3E0
    SELF_IPI = 0x3F0  # of an x2APIC


class Msr:
    """Model-specific registers, SDM vol. 4. The x2APIC's are the register page's, one for every 16 bytes."""

    TSC = 0x10
    APIC_BASE = 0x1B
    TSC_DEADLINE = 0x6E0
    X2APIC, X2APIC_END = 0x800, 0x900


# IA32_APIC_BASE.
BASE_BOOT_CPU = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLED = 1 << 11
BASE_ADDRESS = 0xFFFF_F000
# KVM: x86.c kvm_apic_set_base; beyond 52 bits there are no physical addresses (a VM's CPUID may say fewer).
BASE_RESERVED = ~((1 << 52) - 1) | 0x2FF

FAULT = -1  # what an access to an MSR gives that raises a general protection fault

VERSION = 0x5_0014  # six LVT entries
VERSION_DIRECTED_EOI = 1 << 24

SVR_ENABLED = 1 << 8
SVR_DIRECTED_EOI = 1 << 12  # suppresses the broadcast of EOIs
SVR_WRITABLE = 0x3FF
DFR_FLAT, DFR_CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF
LDR_WRITABLE = 0xFF00_0000
ICR_BUSY = 1 << 12
ICR2_WRITABLE = 0xFF00_0000
X2APIC_ICR_RESERVED = 0xFFF << 20 | 3 << 16 | 1 << 13
TIMER_DIVIDE_WRITABLE = 0xB

# LVT entries. Every one has a vector, delivery status and mask.
LVT_MASKED = 1 << 16
LVT_EXTINT = DeliveryMode.EXTINT << 8
LVT_NMI = DeliveryMode.NMI << 8
LVT_COMMON = LVT_MASKED | 1 << 12 | 0xFF
LVT_MODE = 7 << 8
LVT_PIN = 1 << 13 | 1 << 14 | 1 << 15  # polarity, remote IRR, level
LVT_WRITABLE = {
    Reg.LVT_TIMER: LVT_COMMON | TIMER_MODE,
    Reg.LVT_THERMAL: LVT_COMMON | LVT_MODE,
    Reg.LVT_PERFORMANCE: LVT_COMMON | LVT_MODE,
    Reg.LVT_LINT0: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_LINT1: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_ERROR: LVT_COMMON,
}

# Where the words of the register page are kept. ISR, TMR and IRR are one 256-bit number each instead.
_WORDS = {
    Reg.ID: "id",
    Reg.VERSION: "version",
    Reg.TPR: "tpr",
    Reg.LDR: "ldr",
    Reg.DFR: "dfr",
    Reg.SVR: "svr",
    Reg.ESR: "esr",
    Reg.ICR: "icr",
    Reg.ICR_HIGH: "icr_high",
    Reg.ICR2: "icr2",
    Reg.LVT_TIMER: "lvt_timer",
    Reg.LVT_THERMAL: "lvt_thermal",
    Reg.LVT_PERFORMANCE: "lvt_performance",
    Reg.LVT_LINT0: "lvt_lint0",
    Reg.LVT_LINT1: "lvt_lint1",
    Reg.LVT_ERROR: "lvt_error",
    Reg.TIMER_INITIAL_COUNT: "timer_initial_count",
    Reg.TIMER_CURRENT_COUNT: "timer_current_count",
    Reg.TIMER_DIVIDE: "timer_divide",
}
# What an x2APIC has no register for, or none that is read.
_NOT_READ_AS_MSR = {Reg.DFR, Reg.ICR2, Reg.ICR_HIGH}
_VECTOR_MAPS = {Reg.ISR: "isr", Reg.TMR: "tmr", Reg.IRR: "irr"}
_WORD = struct.Struct("<I")


class LapicWires(TimerWires, Protocol):
    """What a local APIC tells its CPU and VM."""

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
        """The CPU was sent an NMI, SMI, INIT or start-up, which go past IRR."""


@dataclass(slots=True)
class LapicRegisters:
    """The register page, at reset by default. Words hold what a guest reads; bit n of isr, tmr and irr is vector n."""

    id: int = 0
    version: int = VERSION
    tpr: int = 0
    ldr: int = 0
    dfr: int = DFR_FLAT
    svr: int = 0xFF
    # KVM: never set; a write is ignored.
    esr: int = 0
    icr: int = 0
    icr_high: int = 0
    icr2: int = 0
    lvt_timer: int = LVT_MASKED
    lvt_thermal: int = LVT_MASKED
    lvt_performance: int = LVT_MASKED
    lvt_lint0: int = LVT_MASKED
    lvt_lint1: int = LVT_MASKED
    lvt_error: int = LVT_MASKED
    timer_initial_count: int = 0
    timer_divide: int = 0
    timer_current_count: int = 0
    # In service, last accepted as level-triggered, requested.
    isr: int = 0
    tmr: int = 0
    irr: int = 0
    # The page that was restored last: KVM keeps its words that are no registers.
    page: bytes = bytes(STATE_SIZE)

    @property
    def in_service(self) -> int:
        """The highest vector in service, or -1.

        KVM: lapic.c count_vectors, of which a restored ISR has 256; they are counted in 8 bits, and that is none.
        """
        return self.isr.bit_length() - 1 if self.isr != ALL_VECTORS else -1

    @property
    def ppr(self) -> int:
        """Processor priority: the higher of TPR and the class of the highest vector in service."""
        in_service = max(self.in_service, 0) & 0xF0
        return self.tpr & 0xFF if self.tpr & 0xF0 >= in_service else in_service

    def deliverable(self) -> int:
        """The vector the CPU would accept now, or -1: its class is above PPR's. KVM: kvm_apic_has_interrupt."""
        highest = self.irr.bit_length() - 1
        return highest if highest >= 0 and (highest & 0xF0) > self.ppr else -1

    def take(self) -> int:
        """Move the deliverable vector from IRR into ISR and return it, or -1."""
        vector = self.deliverable()
        if vector >= 0:
            self.irr ^= 1 << vector
            self.isr |= 1 << vector
        return vector

    def pack(self) -> bytes:
        """struct kvm_lapic_state, 1024 bytes."""
        page = bytearray(self.page)
        for offset, name in _WORDS.items():
            _WORD.pack_into(page, offset, getattr(self, name))
        _WORD.pack_into(page, Reg.PPR, self.ppr)
        for offset, name in _VECTOR_MAPS.items():
            vectors = getattr(self, name)
            for word in range(8):
                _WORD.pack_into(page, offset + 0x10 * word, vectors >> 32 * word & 0xFFFF_FFFF)
        return bytes(page)

    @classmethod
    def unpack(cls, page: bytes) -> LapicRegisters:
        """From struct kvm_lapic_state; any 1024 bytes are a state, as in the kernel."""
        registers = cls(page=bytes(page))
        for offset, name in _WORDS.items():
            setattr(registers, name, _WORD.unpack_from(page, offset)[0])
        for offset, name in _VECTOR_MAPS.items():
            words = (_WORD.unpack_from(page, offset + 0x10 * word)[0] << 32 * word for word in range(8))
            setattr(registers, name, sum(words))
        return registers


_values = attrgetter(*LapicRegisters.__slots__)


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

    @classmethod
    def at_reset(cls, wires: LapicWires, apic_id: int, tsc_khz: int = KHZ, *, ioapic: bool = True) -> Lapic:
        """As it powers on. KVM: lapic.c kvm_lapic_reset; the boot CPU's LINT0 already lets the PIC through."""
        return cls(
            wires=wires,
            apic_id=apic_id,
            timer=ApicTimer(wires, tsc_khz),
            id=(apic_id & 0xFF) << 24,
            version=cls.version_beside(ioapic=ioapic),
            lvt_lint0=LVT_MASKED if apic_id else LVT_EXTINT,
            base=DEFAULT_BASE | BASE_ENABLED | (0 if apic_id else BASE_BOOT_CPU),
        )

    @staticmethod
    def version_beside(*, ioapic: bool) -> int:
        """The version register. KVM: lapic.c kvm_apic_set_version; its IOAPIC has no EOI register."""
        return VERSION if ioapic else VERSION | VERSION_DIRECTED_EOI

    def reset(self, *, init: bool) -> None:
        """RESET, or the CPU's INIT, which leaves the base and the ID. KVM: lapic.c kvm_lapic_reset.

        The TSC goes on.
        """
        if not init:
            self._set_base(DEFAULT_BASE | BASE_ENABLED | (0 if self.apic_id else BASE_BOOT_CPU))
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
        if not self.apic_id:
            self.lvt_lint0 = LVT_EXTINT
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

    @property
    def passes_nmi(self) -> bool:
        """Whether LINT0 makes the PIT's ticks NMIs (the NMI watchdog). KVM: lapic.c apic_lvt_nmi_mode."""
        return self.lvt_lint0 & (LVT_MASKED | LVT_MODE) == LVT_NMI

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
        if mode == DeliveryMode.REMOTE_READ:
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

    # Memory-mapped registers.

    def claims(self, address: int) -> bool:
        """Whether an address is in this CPU's register page."""
        return self.base_address <= address < self.base_address + WINDOW

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
            case _:
                return None

    def write_msr(self, msr: int, value: int) -> int | None:
        """A guest's WRMSR; 0 is success."""
        match msr:
            case _ if Msr.X2APIC <= msr < Msr.X2APIC_END:
                return self._write_x2apic(msr - Msr.X2APIC << 4, value) if self.x2apic else FAULT
            case Msr.APIC_BASE:
                return self._write_base(value)
            case Msr.TSC_DEADLINE:
                if self.hardware_enabled:
                    self.timer.write_deadline(value)
                return 0
            case Msr.TSC:
                self.timer.write_tsc(value)
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
            case _ if Reg.ISR <= offset < Reg.ESR or (offset in _WORDS and offset not in _NOT_READ_AS_MSR):
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

    def _write_base(self, value: int) -> int:
        """IA32_APIC_BASE. KVM: lapic.c kvm_apic_set_base.

        xAPIC, x2APIC, disabled, xAPIC: the modes can be gone through in no other direction.
        """
        if value == self.base:
            return 0
        enabled, x2apic = bool(value & BASE_ENABLED), bool(value & BASE_X2APIC)
        if (
            value & BASE_RESERVED
            or (x2apic and not self.hardware_enabled)
            or (x2apic and not enabled)
            or (self.x2apic and enabled and not x2apic)
        ):
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
            case _ if offset in _WORDS:
                return int(getattr(self, _WORDS[offset]))
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
                name = _WORDS[offset]
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
        if not self.svr & SVR_ENABLED:
            value |= LVT_MASKED
        setattr(self, _WORDS[offset], value)
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


def _addressing(registers: LapicRegisters) -> tuple[int, int, int, int]:
    """What decides which messages reach an APIC."""
    return registers.id, registers.ldr, registers.dfr, registers.svr & SVR_ENABLED
