"""The local APIC of one CPU: its model-specific registers, x2APIC mode, RESET and saved state. SDM vol. 3, 11.12.

The register page is in xapic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic_registers import (
    BASE_ADDRESS,
    BASE_BOOT_CPU,
    BASE_ENABLED,
    BASE_RESERVED,
    BASE_X2APIC,
    DEFAULT_BASE,
    ICR_BUSY,
    LVT_EXTINT,
    LVT_MASKED,
    REGISTERS,
    STATE_SIZE,
    SVR_ENABLED,
    VERSION,
    VERSION_DIRECTED_EOI,
    WORDS,
    X2APIC_ICR_RESERVED,
    LapicRegisters,
    Quirk,
    Reg,
)
from irqchipd.chips.lapic_timer import KHZ, TIMER_MODE, TSC_DEADLINE, ApicTimer, SavedTimer
from irqchipd.chips.message import Shorthand
from irqchipd.chips.saved import check, in_range
from irqchipd.chips.xapic import LapicWires, Xapic, lint0_is_nmi


class Msr:
    """Model-specific registers, SDM vol. 4. The x2APIC's are the register page's, one for every 16 bytes."""

    TSC: Final = 0x10
    APIC_BASE: Final = 0x1B
    TSC_ADJUST: Final = 0x3B
    TSC_DEADLINE: Final = 0x6E0
    X2APIC: Final = 0x800
    X2APIC_END: Final = 0x900


# The bits of a physical address. At reset the page is below 4 GiB.
LEAST_ADDRESS_BITS: Final = 32
ADDRESS_BITS: Final = 52

# Registers that an x2APIC lacks, or that can't be read.
_NOT_READ_AS_MSR: Final = {Reg.DFR, Reg.ICR2, Reg.ICR_HIGH}

_values = attrgetter(*REGISTERS)


@dataclass(frozen=True, slots=True)
class Features:
    """The features in a guest's CPUID that its local APIC depends on; by default all of them."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLapic(SavedTimer):
    """The chip in a snapshot. lapic is struct kvm_lapic_state; absent: the vCPU has no local APIC."""

    lapic: bytes | None = None
    apic_base: int = 0
    nmi_watchdog: bool | None = None  # absent: from LINT0
    lacks_x2apic: bool = False
    lacks_tsc_deadline: bool = False
    lacks_tsc_adjust: bool = False
    address_bits: int = 0  # 0: ADDRESS_BITS

    def check_lapic(self, apic_id: int, *, ioapic: bool, bus_ns: int) -> None:
        """Refuse a state that no local APIC of this ID can have."""
        assert self.lapic is not None
        check(len(self.lapic) == STATE_SIZE, f"a local APIC's state has {len(self.lapic)} bytes, not {STATE_SIZE}")
        registers = LapicRegisters.unpack(self.lapic)
        expected = Lapic.version_beside(ioapic=ioapic or self.lacks_x2apic)
        check(registers.version == expected, f"a local APIC's version is {registers.version:#x}, not {expected:#x}")
        # Checked with all features: the VMM may have set the guest's CPUID after the base.
        check(not Features().refuse_base(self.apic_base), f"apic_base {self.apic_base:#x}")
        x2apic, identity = bool(self.apic_base & BASE_X2APIC), (registers.id, registers.ldr)
        check(not x2apic or identity == (apic_id, x2apic_logical_id(apic_id)), "an x2APIC's ID differs from its vCPU's")
        in_range(self.address_bits or ADDRESS_BITS, LEAST_ADDRESS_BITS, ADDRESS_BITS, "address_bits")
        self.check_timer(registers.lvt_timer, bus_ns)

    def features(self) -> Features:
        """The features in the guest's CPUID."""
        return Features(
            x2apic=not self.lacks_x2apic,
            tsc_deadline=not self.lacks_tsc_deadline,
            tsc_adjust=not self.lacks_tsc_adjust,
            address_bits=self.address_bits or ADDRESS_BITS,
        )


@dataclass(slots=True)
class Lapic(Xapic):
    """The chip."""

    features: Features = Features()

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
        """The state at power-on; by default the first CPU is the boot CPU. KVM: lapic.c kvm_lapic_reset."""
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
        """The boot CPU's LINT0 already passes the PIC's interrupts. KVM: lapic.c kvm_lapic_reset."""
        return LVT_EXTINT if self.boot_cpu and self.wires.quirks & Quirk.LINT0_REENABLED else LVT_MASKED

    @staticmethod
    def version_beside(*, ioapic: bool) -> int:
        """The version register. KVM: lapic.c kvm_apic_set_version; KVM's IOAPIC has no EOI register."""
        return VERSION if ioapic else VERSION | VERSION_DIRECTED_EOI

    def set_features(self, features: Features, *, ioapic: bool) -> None:
        """Set the features of the guest's CPUID. KVM: lapic.c kvm_vcpu_after_set_cpuid; no other register changes."""
        self.features = features
        self.timer.mode_mask = TIMER_MODE if features.tsc_deadline else TIMER_MODE & ~TSC_DEADLINE
        self.version = self.version_beside(ioapic=ioapic or not features.x2apic)

    def reset(self, *, init: bool) -> None:
        """RESET, or the CPU's INIT, which leaves the base and the ID. KVM: lapic.c kvm_lapic_reset.

        The TSC continues.
        """
        if not init:
            self._set_base(DEFAULT_BASE | BASE_ENABLED | (BASE_BOOT_CPU if self.boot_cpu else 0))
            self.id = (self.apic_id & 0xFF) << 24
        self.timer.stop()
        page, apic_id, ldr = self.page, self.id, self.ldr if self.x2apic else 0
        icr2 = self.icr2 if self.x2apic else 0
        icr_high = 0 if self.x2apic else self.icr_high
        reset = LapicRegisters(id=apic_id, ldr=ldr, icr2=icr2, icr_high=icr_high, version=self.version, page=page)
        for name in REGISTERS:
            setattr(self, name, getattr(reset, name))
        self.timer.set_mode(self.lvt_timer)
        self.timer.set_divide(self.timer_divide)
        self.lvt_lint0 = self._lint0_at_reset
        self.nmi_watchdog = False
        self.wires.addressing_changed()
        self.wires.priorities_changed()

    # Model-specific registers. The result None: the register is not the APIC's; FAULT: a general protection fault.

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
                if self.features.tsc_adjust:  # KVM: x86.c kvm_set_msr_common; otherwise the write is ignored
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
                return self.read_register(offset)
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
                return FAULT  # read-only, or no register
            case Reg.ESR:
                return FAULT if value else 0
            case Reg.SELF_IPI:
                if value > 0xFF:
                    return FAULT
                self.send_ipi(Shorthand.SELF << 18 | value, 0)
                return 0
            case _:
                return 0 if self.write_register(offset, value) else FAULT

    def _write_x2apic_icr(self, value: int) -> int:
        """KVM: lapic.c __kvm_x2apic_icr_write."""
        if value & X2APIC_ICR_RESERVED:
            return FAULT
        value &= ~ICR_BUSY
        self.send_ipi(value & 0xFFFF_FFFF, value >> 32)
        self.icr, self.icr_high = value & 0xFFFF_FFFF, value >> 32
        return 0

    def _write_base(self, value: int, host: bool) -> int:
        """IA32_APIC_BASE. KVM: lapic.c kvm_apic_set_base.

        A guest can only change modes in this order: xAPIC, x2APIC, disabled, xAPIC.
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
        self._take_base(value)
        if readdressed:
            self.wires.addressing_changed()
        self.timer.unmasked()
        self.wires.priorities_changed()

    def _take_base(self, value: int) -> None:
        """Set IA32_APIC_BASE, without the side effects of a write."""
        self.base = value
        self.base_address = value & BASE_ADDRESS
        self.hardware_enabled = bool(value & BASE_ENABLED)
        self.x2apic = bool(value & BASE_X2APIC)

    # State.

    def registers(self) -> LapicRegisters:
        """The state for KVM_GET_LAPIC. KVM: lapic.c kvm_apic_get_state; an x2APIC's in the layout of an xAPIC."""
        registers = LapicRegisters(*_values(self))
        if self.timer_initial_count:
            registers.timer_current_count = self.timer.current_count(self.timer_initial_count)
        if self.x2apic:
            registers.id = (self.apic_id << 24) & 0xFFFF_FFFF
            registers.icr2 = self.icr_high
        return registers

    def restore(self, registers: LapicRegisters) -> None:
        """KVM_SET_LAPIC: a raw copy, except for the version. KVM: lapic.c kvm_apic_set_state.

        The timer continues from the current count. An x2APIC's IDs can't be set.
        """
        was, version = _addressing(self), self.version
        for name in REGISTERS:
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

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedLapic, except timer_expires_ns."""
        return {
            "lapic": self.pack(),
            "apic_base": self.base,
            "nmi_watchdog": self.nmi_watchdog,
            "lacks_x2apic": not self.features.x2apic,
            "lacks_tsc_deadline": not self.features.tsc_deadline,
            "lacks_tsc_adjust": not self.features.tsc_adjust,
            "address_bits": self.features.address_bits,
            **self.timer.save(),
        }

    def resume(self, saved: SavedLapic, *, ioapic: bool) -> None:
        """Resume from a checked snapshot."""
        assert saved.lapic is not None
        registers = LapicRegisters.unpack(saved.lapic)
        for name in REGISTERS:
            setattr(self, name, getattr(registers, name))
        self._take_base(saved.apic_base)
        self.nmi_watchdog = lint0_is_nmi(self.lvt_lint0) if saved.nmi_watchdog is None else saved.nmi_watchdog
        self.set_features(saved.features(), ioapic=ioapic)
        self.timer.resume(saved, self.lvt_timer, self.timer_divide)


def x2apic_logical_id(apic_id: int) -> int:
    """The logical ID of an x2APIC: cluster and bit. KVM: lapic.c kvm_apic_calc_x2apic_ldr."""
    return (apic_id >> 4) << 16 | 1 << (apic_id & 0xF)


def _addressing(registers: LapicRegisters) -> tuple[int, int, int, int]:
    """The registers that decide which messages reach an APIC."""
    return registers.id, registers.ldr, registers.dfr, registers.svr & SVR_ENABLED
