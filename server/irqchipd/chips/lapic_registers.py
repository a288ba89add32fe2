"""The register page of a local APIC: its layout and its contents. Intel SDM vol. 3, table 11-1."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Final

from irqchipd.chips.lapic_timer import TIMER_MODE
from irqchipd.chips.message import DeliveryMode

DEFAULT_BASE: Final = 0xFEE0_0000
WINDOW: Final = 0x1000  # bytes of address space
STATE_SIZE: Final = 1024  # struct kvm_lapic_state
VECTORS: Final = 256
ALL_VECTORS: Final = (1 << VECTORS) - 1


class Reg:
    """Offsets in the register page, SDM table 11-1. ISR, TMR and IRR are eight words each, 10h apart."""

    ID: Final = 0x020
    VERSION: Final = 0x030
    TPR: Final = 0x080
    ARBITRATION: Final = 0x090
    PPR: Final = 0x0A0
    EOI: Final = 0x0B0
    LDR: Final = 0x0D0
    DFR: Final = 0x0E0
    SVR: Final = 0x0F0
    ISR: Final = 0x100
    TMR: Final = 0x180
    IRR: Final = 0x200
    ESR: Final = 0x280
    ICR: Final = 0x300
    ICR_HIGH: Final = 0x304  # KVM: the upper half of an x2APIC's 64-bit ICR
    ICR2: Final = 0x310
    LVT_TIMER: Final = 0x320
    LVT_THERMAL: Final = 0x330
    LVT_PERFORMANCE: Final = 0x340
    LVT_LINT0: Final = 0x350
    LVT_LINT1: Final = 0x360
    LVT_ERROR: Final = 0x370
    TIMER_INITIAL_COUNT: Final = 0x380
    TIMER_CURRENT_COUNT: Final = 0x390
    TIMER_DIVIDE: Final = 0x3E0
    SELF_IPI: Final = 0x3F0  # of an x2APIC


# IA32_APIC_BASE.
BASE_BOOT_CPU: Final = 1 << 8
BASE_X2APIC: Final = 1 << 10
BASE_ENABLED: Final = 1 << 11
BASE_ADDRESS: Final = ~0xFFF
BASE_RESERVED: Final = 0x2FF  # and bits above a physical address


class Quirk:
    """KVM's departures from a local APIC, which can be disabled: KVM_X86_QUIRK_*."""

    LINT0_REENABLED: Final = 1 << 0  # the boot CPU's LINT0 passes the PIC's interrupts after reset
    LAPIC_MMIO_HOLE: Final = 1 << 2  # the page of a disabled APIC, or of an x2APIC, reads as all ones, and is claimed


QUIRKS: Final = Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE

VERSION: Final = 0x5_0014  # six LVT entries
VERSION_DIRECTED_EOI: Final = 1 << 24

SVR_ENABLED: Final = 1 << 8
SVR_DIRECTED_EOI: Final = 1 << 12  # suppresses the broadcast of EOIs
SVR_WRITABLE: Final = 0x3FF
DFR_FLAT: Final = 0xFFFF_FFFF
DFR_CLUSTER: Final = 0x0FFF_FFFF
LDR_WRITABLE: Final = 0xFF00_0000
ICR_BUSY: Final = 1 << 12
ICR2_WRITABLE: Final = 0xFF00_0000
X2APIC_ICR_RESERVED: Final = 0xFFF << 20 | 3 << 16 | 1 << 13
TIMER_DIVIDE_WRITABLE: Final = 0xB

# LVT entries. Every one has a vector, delivery status and mask.
LVT_MASKED: Final = 1 << 16
LVT_EXTINT: Final = DeliveryMode.EXTINT << 8
LVT_NMI: Final = DeliveryMode.NMI << 8
LVT_COMMON: Final = LVT_MASKED | 1 << 12 | 0xFF
LVT_MODE: Final = 7 << 8
LVT_PIN: Final = 1 << 13 | 1 << 14 | 1 << 15  # polarity, remote IRR, level
LVT_WRITABLE: Final = {
    Reg.LVT_TIMER: LVT_COMMON | TIMER_MODE,
    Reg.LVT_THERMAL: LVT_COMMON | LVT_MODE,
    Reg.LVT_PERFORMANCE: LVT_COMMON | LVT_MODE,
    Reg.LVT_LINT0: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_LINT1: LVT_COMMON | LVT_MODE | LVT_PIN,
    Reg.LVT_ERROR: LVT_COMMON,
}

# The fields for words of the register page. ISR, TMR and IRR are instead one 256-bit number each.
WORDS: Final = {
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
VECTOR_MAPS: Final = {Reg.ISR: "isr", Reg.TMR: "tmr", Reg.IRR: "irr"}
_WORD: Final = struct.Struct("<I")


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
    # The page that was restored last: KVM keeps its words outside of registers.
    page: bytes = bytes(STATE_SIZE)

    @property
    def in_service(self) -> int:
        """The highest vector in service, or -1.

        KVM: lapic.c count_vectors, which counts in 8 bits: the 256 vectors of a full, restored ISR count as 0.
        """
        return self.isr.bit_length() - 1 if self.isr != ALL_VECTORS else -1

    @property
    def ppr(self) -> int:
        """Processor priority: the higher of TPR and the class of the highest vector in service."""
        in_service = max(self.in_service, 0) & 0xF0
        return self.tpr & 0xFF if self.tpr & 0xF0 >= in_service else in_service

    def deliverable(self) -> int:
        """The vector the CPU would accept now, or -1: its class is above PPR's. KVM: kvm_apic_has_interrupt."""
        vector = self.irr.bit_length() - 1
        if vector < 0 or vector & 0xF0 <= self.tpr & 0xF0 or (self.isr and vector & 0xF0 <= self.ppr & 0xF0):
            return -1
        return vector

    def take(self) -> int:
        """Move the deliverable vector from IRR into ISR and return it, or -1."""
        vector = self.deliverable()
        if vector >= 0:
            self.irr ^= 1 << vector
            self.isr |= 1 << vector
        return vector

    def pack(self) -> bytes:
        """struct kvm_lapic_state, 1024 bytes."""
        return _packed(self.page, self.ppr, *_values(self))

    @classmethod
    def unpack(cls, page: bytes) -> LapicRegisters:
        """From struct kvm_lapic_state; any 1024 bytes are valid, as in the kernel."""
        registers = cls(page=bytes(page))
        for offset, name in WORDS.items():
            setattr(registers, name, _WORD.unpack_from(page, offset)[0])
        for offset, name in VECTOR_MAPS.items():
            words = (_WORD.unpack_from(page, offset + 0x10 * word)[0] << 32 * word for word in range(8))
            setattr(registers, name, sum(words))
        return registers


_values: Final = attrgetter(*WORDS.values(), *VECTOR_MAPS.values())


@lru_cache(64)
def _packed(page: bytes, ppr: int, *values: int) -> bytes:
    """The page with these registers. States that somebody looks at one after the other mostly have the same."""
    packed = bytearray(page)
    for offset, value in zip(WORDS, values, strict=False):
        _WORD.pack_into(packed, offset, value)
    _WORD.pack_into(packed, Reg.PPR, ppr)
    for offset, vectors in zip(VECTOR_MAPS, values[len(WORDS) :], strict=True):
        for word in range(8):
            _WORD.pack_into(packed, offset + 0x10 * word, vectors >> 32 * word & 0xFFFF_FFFF)
    return bytes(packed)


REGISTERS: Final = tuple(field.name for field in fields(LapicRegisters))
