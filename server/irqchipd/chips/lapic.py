"""The local APIC of one CPU in xAPIC mode, as Linux KVM has it (arch/x86/kvm/lapic.c). Intel SDM vol. 3, chapter 11."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from irqchipd.chips.message import DeliveryMode, Message, from_icr

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


VERSION = 0x5_0014  # six LVT entries, no directed EOI while an IOAPIC without an EOI register stands beside it

SVR_ENABLED = 1 << 8
SVR_DIRECTED_EOI = 1 << 12  # suppresses the broadcast of EOIs
SVR_WRITABLE = 0x3FF
DFR_FLAT, DFR_CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF
LDR_WRITABLE = 0xFF00_0000
ICR_BUSY = 1 << 12
ICR2_WRITABLE = 0xFF00_0000
TIMER_DIVIDE_WRITABLE = 0xB

# LVT entries. Every one has a vector, delivery status and mask.
LVT_MASKED = 1 << 16
LVT_EXTINT = DeliveryMode.EXTINT << 8
LVT_COMMON = LVT_MASKED | 1 << 12 | 0xFF
LVT_MODE = 7 << 8
LVT_PIN = 1 << 13 | 1 << 14 | 1 << 15  # polarity, remote IRR, level
LVT_TIMER_MODE = 3 << 17
LVT_WRITABLE = {
    Reg.LVT_TIMER: LVT_COMMON | LVT_TIMER_MODE,
    Reg.LVT_THERMAL: LVT_COMMON | LVT_MODE,
    Reg.LVT_PERFORMANCE: LVT_COMMON | LVT_MODE,
    Reg.LVT_LINT0: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_LINT1: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_ERROR: LVT_COMMON,
}
TIMER_TSC_DEADLINE = 2 << 17

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
    Reg.ICR2: "icr2",
    Reg.LVT_TIMER: "lvt_timer",
    Reg.LVT_THERMAL: "lvt_thermal",
    Reg.LVT_PERFORMANCE: "lvt_performance",
    Reg.LVT_LINT0: "lvt_lint0",
    Reg.LVT_LINT1: "lvt_lint1",
    Reg.LVT_ERROR: "lvt_error",
    Reg.TIMER_INITIAL_COUNT: "timer_initial_count",
    Reg.TIMER_DIVIDE: "timer_divide",
}
_VECTOR_MAPS = {Reg.ISR: "isr", Reg.TMR: "tmr", Reg.IRR: "irr"}
_WORD = struct.Struct("<I")


class LapicWires(Protocol):
    """What a local APIC tells its CPU and VM."""

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
    icr2: int = 0
    lvt_timer: int = LVT_MASKED
    lvt_thermal: int = LVT_MASKED
    lvt_performance: int = LVT_MASKED
    lvt_lint0: int = LVT_MASKED
    lvt_lint1: int = LVT_MASKED
    lvt_error: int = LVT_MASKED
    timer_initial_count: int = 0
    timer_divide: int = 0
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
        _WORD.pack_into(page, Reg.TIMER_CURRENT_COUNT, 0)  # KVM: lapic.c kvm_apic_get_state; the timer does not run
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
    """The chip."""

    wires: LapicWires = field(kw_only=True)
    base_address: int = DEFAULT_BASE

    @classmethod
    def at_reset(cls, wires: LapicWires, apic_id: int) -> Lapic:
        """As it powers on. KVM: lapic.c kvm_lapic_reset; the boot CPU's LINT0 already lets the PIC through."""
        return cls(wires=wires, id=(apic_id & 0xFF) << 24, lvt_lint0=LVT_MASKED if apic_id else LVT_EXTINT)

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
        """Whether the PIC's INTR reaches the CPU through LINT0. KVM: lapic.c kvm_apic_accept_pic_intr."""
        return self.lvt_lint0 & (LVT_MASKED | LVT_MODE) == LVT_EXTINT

    def acknowledge(self) -> int:
        """Accept the deliverable vector and return it, or -1. KVM: lapic.c kvm_apic_ack_interrupt."""
        vector = self.take()
        if vector >= 0:
            self.wires.priorities_changed()
        return vector

    # What arrives.

    def accept(self, message: Message) -> int:
        """Take a message that is for this APIC: 1 if it took it, 0 if not. KVM: lapic.c __apic_accept_irq."""
        mode = message.delivery_mode
        if mode <= DeliveryMode.LOWEST_PRIORITY:
            if not self.svr & SVR_ENABLED or (message.level_triggered and not message.asserted):
                return 0
            bit = 1 << message.vector
            if message.level_triggered:
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

    # Memory-mapped registers.

    def claims(self, address: int) -> bool:
        """Whether an address is in this CPU's register page."""
        return self.base_address <= address < self.base_address + WINDOW

    def read(self, address: int, size: int) -> int:
        """A guest's load. KVM: lapic.c kvm_lapic_reg_read; one that leaves its word, or the registers, reads 0."""
        start = address & 0xF
        if start + size > 4:
            return 0
        word = self._read_register(address - self.base_address & ~0xF)
        return word >> 8 * start & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store. KVM: lapic.c apic_mmio_write; one that is not an aligned word is dropped."""
        offset = address - self.base_address
        if size == 4 and not offset & 0xF:
            self._write_register(offset, value)

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
            case _ if offset in _WORDS:
                return int(getattr(self, _WORDS[offset]))
            case _:  # arbitration priority, the timer's count while it does not run, EOI, and what is no register
                return 0

    def _write_register(self, offset: int, value: int) -> None:
        """KVM: lapic.c kvm_lapic_reg_write."""
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
                self._write_svr(value & SVR_WRITABLE)
            case Reg.ICR:
                value &= ~ICR_BUSY
                self.wires.send_ipi(value, from_icr(value, self.icr2))
                self.icr = value
            case Reg.ICR2:
                self.icr2 = value & ICR2_WRITABLE
            case _ if offset in LVT_WRITABLE:
                self._write_lvt(offset, value)
            case Reg.TIMER_INITIAL_COUNT:
                if self.lvt_timer & LVT_TIMER_MODE != TIMER_TSC_DEADLINE:
                    self.timer_initial_count = value
            case Reg.TIMER_DIVIDE:
                self.timer_divide = value & TIMER_DIVIDE_WRITABLE
            case _:  # read-only, ESR (which KVM never sets), or no register
                pass

    def _end_of_interrupt(self) -> None:
        """KVM: lapic.c apic_set_eoi; with nothing in service an EOI is ignored."""
        vector = self.in_service
        if vector < 0:
            return
        self.isr ^= 1 << vector
        self.wires.priorities_changed()
        self.wires.end_of_interrupt(vector, bool(self.tmr >> vector & 1))

    def _write_svr(self, value: int) -> None:
        toggled = (self.svr ^ value) & SVR_ENABLED
        self.svr = value
        if not value & SVR_ENABLED:
            for offset in LVT_WRITABLE:
                name = _WORDS[offset]
                setattr(self, name, getattr(self, name) | LVT_MASKED)
            self.wires.priorities_changed()
        if toggled:
            self.wires.addressing_changed()

    def _write_lvt(self, offset: int, value: int) -> None:
        value &= LVT_WRITABLE[offset]
        if not self.svr & SVR_ENABLED:
            value |= LVT_MASKED
        if offset == Reg.LVT_TIMER and _crosses_deadline_mode(self.lvt_timer, value):
            self.timer_initial_count = 0
        setattr(self, _WORDS[offset], value)
        if offset == Reg.LVT_LINT0:
            self.wires.priorities_changed()

    # State.

    def registers(self) -> LapicRegisters:
        """What KVM_GET_LAPIC gives."""
        return LapicRegisters(*_values(self))

    def restore(self, registers: LapicRegisters) -> None:
        """What KVM_SET_LAPIC does: a raw copy, but for the version. KVM: lapic.c kvm_apic_set_state."""
        moved = _addressing(self) != _addressing(registers)
        forget_count = _crosses_deadline_mode(self.lvt_timer, registers.lvt_timer)
        for name in LapicRegisters.__slots__:
            setattr(self, name, getattr(registers, name))
        self.version = VERSION
        if forget_count:
            self.timer_initial_count = 0
        if moved:
            self.wires.addressing_changed()
        else:
            self.wires.scan_needed()
        self.wires.priorities_changed()


def _crosses_deadline_mode(old: int, new: int) -> bool:
    """Whether an LVT timer goes to or from TSC-deadline mode and forgets its count. KVM: lapic.c apic_update_lvtt."""
    return (old & LVT_TIMER_MODE == TIMER_TSC_DEADLINE) != (new & LVT_TIMER_MODE == TIMER_TSC_DEADLINE)


def _addressing(registers: LapicRegisters) -> tuple[int, int, int, int]:
    """What decides which messages reach an APIC."""
    return registers.id, registers.ldr, registers.dfr, registers.svr & SVR_ENABLED
