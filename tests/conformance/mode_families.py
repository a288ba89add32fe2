"""More families of random operations (see families.py): the modes of a local APIC, of a vCPU and of an irqchip."""

from __future__ import annotations

from random import Random

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU, BASE_ENABLED, BASE_X2APIC, LVT_MASKED, LapicRegisters, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.x86.capabilities import X2APIC_32BIT_IDS, Cap
from irqchipd.vm.x86.machine import SPLIT_IRQCHIP
from irqchipd.vm.x86.vcpu_state import MP_STATES
from tests.conformance.machines import Op
from tests.conformance.script import (
    ALL_MODES,
    INIT,
    LVTS,
    STARTUP,
    U32,
    VCPU_IDS,
    Script,
)

X2APIC = BASE_ENABLED | BASE_X2APIC


class ModeScript(Script):
    """A script that reads and writes model-specific registers."""

    def base(self) -> None:
        """An IA32_APIC_BASE, mostly with a mode that can be entered."""
        bits = self.rng.choice((0, BASE_ENABLED, BASE_ENABLED, X2APIC, X2APIC, X2APIC, BASE_X2APIC))
        bits |= self.one_in(4) * BASE_BOOT_CPU | self.one_in(12) << self.rng.choice((0, 7, 9, 52, 63))
        self.add("msr_write", self.vcpu(), Msr.APIC_BASE, LAPIC_BASE | bits)

    def register(self) -> int:
        """A register whose value does not depend on time."""
        if self.one_in(6):
            return self.rng.choice((Msr.APIC_BASE, Msr.TSC_DEADLINE))
        register = Msr.X2APIC + self.rng.randrange(0x100 if self.one_in(4) else 0x40)
        return register if register != Msr.X2APIC + (Reg.TIMER_CURRENT_COUNT >> 4) else Msr.X2APIC

    def msr_read(self) -> None:
        self.add("msr_read", self.vcpu(), self.register())

    def msr_write(self) -> None:
        number, value = self.register(), self.word()
        match number:
            case Msr.APIC_BASE:
                self.base()
                return
            case Msr.TSC_DEADLINE:
                value = self.rng.choice((0, 1, 1 << 62, value))
            case _ if number == Msr.X2APIC + (Reg.ICR >> 4):
                self.icr()
                return
            case _ if number == Msr.X2APIC + (Reg.LVT_TIMER >> 4):
                value = self.lvt(Reg.LVT_TIMER) | LVT_MASKED
        if self.one_in(20):
            value |= 1 << self.rng.randrange(32, 64)
        self.add("msr_write", self.vcpu(), number, value)

    def take_if_enabled(self) -> None:
        self.add("take_if_enabled", self.vcpu())

    def x2apic_write(self, register: int, value: int) -> None:
        self.add("msr_write", self.vcpu(), Msr.X2APIC + (register >> 4), value)

    def icr(self) -> None:
        """Send an IPI."""
        low = self.mode() << 8 | self.vector() | self.rng.randrange(4) << 18 * self.one_in(3)
        low = self.sane_low(low | self.one_in(2) << 11 | self.one_in(2) << 14 | self.one_in(3) << 15)
        destination = self.rng.choice((self.destination(), self.vcpu(), U32, 1 << 16 | 3, self.few_bits(32)))
        self.x2apic_write(Reg.ICR, destination << 32 | low | self.one_in(12) << self.rng.choice((12, 13, 16, 20)))

    def self_ipi(self) -> None:
        self.x2apic_write(Reg.SELF_IPI, self.vector() | self.one_in(12) << 8)

    def msr_program(self) -> None:
        match self.rng.randrange(4):
            case 0:
                self.x2apic_write(Reg.TPR, self.rng.choice((0, 0x20, 0x55, 0x100)))
            case 1:
                register = self.rng.choice(LVTS)
                self.x2apic_write(register, self.lvt(register))
            case 2:
                self.x2apic_write(Reg.SVR, self.rng.choice((0x1FF, 0x1FF, 0xFF, 0x11FF)))
            case _:
                self.x2apic_write(Reg.EOI, self.one_in(6))


def x2apic(rng: Random) -> list[Op]:
    """Disabled local APICs, xAPICs and x2APICs side by side, programmed through the page and through MSRs."""
    script = ModeScript(rng, rng.choice(VCPU_IDS))
    script.enable_all()
    return script.some_of(
        [
            (6, script.base),
            (8, script.msr_read),
            (8, script.msr_write),
            (8, script.msr_program),
            (8, script.icr),
            (4, script.self_ipi),
            (4, script.ipi),
            (4, script.msi),
            (3, script.address),
            (3, script.lapic_program),
            (3, script.lapic_read),
            (4, script.line),
            (3, script.program),
            (8, script.take_if_enabled),
            (3, script.ack),
            (4, script.get_state),
            (1, script.set_lapic),
        ]
    )


def startup(rng: Random) -> list[Op]:
    """INIT, SIPI, NMIs and remote reads at any time and in any state; no guest runs."""
    script = Script(rng, rng.choice(VCPU_IDS))
    script.modes = (*ALL_MODES, *3 * (INIT, STARTUP))
    script.ops.insert(0, ["set_boot_cpu_id", script.one_in(3) * script.vcpu()])

    def get() -> None:
        script.add("get_mp_state", script.vcpu())

    def set_state() -> None:
        script.add("set_mp_state", script.vcpu(), rng.choice((*MP_STATES, 5, 10)))

    def get_events() -> None:
        script.add("get_events", script.vcpu())

    def set_events() -> None:
        interrupt = [1, script.vector()] if script.one_in(3) else [0, 0]
        pending = rng.choice((None, 0, 1, 2, 255))
        sipi = rng.choice((None, rng.randrange(256)))
        script.add("set_events", script.vcpu(), interrupt, script.one_in(6), pending, script.one_in(3), sipi)

    return script.some_of(
        [
            (20, script.msi),
            (10, get),
            (6, set_state),
            (6, get_events),
            (3, set_events),
            (2, lambda: script.add("nmi", script.vcpu())),
            (6, lambda: script.add("get_lapic_page", script.vcpu())),
            (4, script.set_lapic),
            (3, script.set_ioapic),
            (4, script.line),
            (2, script.routing),
        ]
    )


def split(rng: Random) -> list[Op]:
    """A split irqchip: routes to MSIs, EOIs for the VMM's IOAPIC, and interrupts from the VMM's PIC."""
    script = ModeScript(rng, rng.choice(([0], [0, 1], [0, 1, 2], [2, 0])))
    script.ops[0] = ["enable_cap", SPLIT_IRQCHIP, rng.choice((24, 24, 24, 0, 6, 255))]
    script.vectors = rng.sample((0x31, 0x32, 0x41, 0xFE), 3)
    script.destinations = [*script.vcpus, rng.choice((0xFF, 1, 2, 0x55))]
    script.enable_all()

    def message() -> tuple[int, int]:
        logical = script.one_in(4) << 2
        level = script.one_in(2) << 15
        return LAPIC_BASE | script.destination() << 12 | logical, script.mode() << 8 | level | script.vector()

    def routes() -> None:
        gsis = rng.sample((*script.pins, 23, 24, 100), rng.randrange(5))
        script.add("set_gsi_routing", [[gsi, "msi", *message()] for gsi in gsis])

    def msi() -> None:
        script.add("signal_msi", *message(), 0)

    def lint0() -> None:
        script.lapic_write(script.vcpu(), Reg.LVT_LINT0, rng.choice((0x700, 0x700, LVT_MASKED | 0x700, 0x31)))

    def svr() -> None:
        script.lapic_write(script.vcpu(), Reg.SVR, rng.choice((0x1FF, 0x11FF, 0xFF)))

    return script.some_of(
        [
            (16, script.line),
            (6, routes),
            (6, msi),
            (8, script.take_if_enabled),
            (8, script.ack),
            (10, script.eoi),
            (8, lambda: script.add("ended", script.vcpu())),
            (5, lambda: script.add("interrupt", script.vcpu(), script.vector())),
            (2, lint0),
            (2, svr),
            (2, script.address),
            (1, script.base),
            (1, script.set_lapic),
            (2, lambda: script.add("get_lapic_page", script.vcpu())),
        ]
    )


def wide(rng: Random) -> list[Op]:
    """APIC IDs wider than 8 bits, with and without KVM_CAP_X2APIC_API, in every mode and mixed."""
    vcpus = rng.choice(([0, 255, 256, 300], [1, 257, 511, 4095], [0, 1, 300], [256, 0], [4095, 44, 300]))
    script, flags = ModeScript(rng, vcpus), rng.randrange(4)
    script.ops.insert(0, ["enable_cap", Cap.X2APIC_API, flags])
    script.destinations = [*(vcpu & 0xFF for vcpu in vcpus), 0xFF]
    destinations = [*script.destinations, *vcpus, U32, 1 << 16 | 3, 0x12_1000]
    if script.one_in(2):
        for vcpu in script.vcpus:
            if not script.one_in(4):
                script.add("host_msr_write", vcpu, Msr.APIC_BASE, LAPIC_BASE | X2APIC)
                script.add("host_msr_write", vcpu, Msr.X2APIC + (Reg.SVR >> 4), 0x1FF)

    def message() -> tuple[int, int]:
        destination = rng.choice(destinations)
        address = LAPIC_BASE | (destination & 0xFF) << 12 | (destination >> 8) << 40 | script.one_in(4) << 2
        address |= script.one_in(6) << 3 | script.one_in(12) << rng.randrange(32, 40)
        return address, script.mode() << 8 | script.vector()

    def msi() -> None:
        script.add("signal_msi", *message(), 0)

    def icr() -> None:
        low = script.mode() << 8 | script.vector() | script.one_in(3) << 11 | script.one_in(8) << 18
        script.x2apic_write(Reg.ICR, rng.choice(destinations) << 32 | low)

    def routes() -> None:
        script.add("set_gsi_routing", [[gsi, "msi", *message()] for gsi in rng.sample(script.pins, rng.randrange(4))])

    def host_base() -> None:
        bits = rng.choice((0, BASE_ENABLED, X2APIC, X2APIC))
        script.add("host_msr_write", script.vcpu(), Msr.APIC_BASE, LAPIC_BASE | bits)

    def restore() -> None:
        """Restore a page with any ID except one that KVM refuses halfway."""
        vcpu = script.vcpu()
        identity = vcpu if flags & X2APIC_32BIT_IDS else rng.choice((vcpu, vcpu << 24 & U32, 1, 2 << 24))
        registers = LapicRegisters(id=identity, ldr=rng.choice((0, 1 << 24)), svr=rng.choice((0x1FF, 0xFF)))
        script.add("set_lapic", vcpu, registers.pack().hex())

    return script.some_of(
        [
            (16, msi),
            (8, icr),
            (4, script.ipi),
            (4, script.base),
            (4, host_base),
            (4, restore),
            (4, script.line),
            (3, routes),
            (3, script.program),
            (3, script.address),
            (3, script.msr_program),
            (6, script.take_if_enabled),
            (8, lambda: script.add("get_lapic_page", script.vcpu())),
        ]
    )
