"""The probes of a PC's chips, as for a logic analyser: the registers that an interrupt passes through.

The registers have a bit for each line, pin or vector. The parts are the PICs, the IOAPIC, and each local APIC.
"""

from __future__ import annotations

from collections.abc import Sequence

from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import MASKED, PINS, REMOTE_IRR, Ioapic
from irqchipd.vm.board import Probes, RawProbes
from irqchipd.vm.x86.cpu import Cpu

PICS, IOAPIC, LAPICS = range(3)  # the parts; those from LAPICS on are the local APICs
_PIC_REGISTERS = ("irr", "isr", "imr", "irq_base")


def raw_probes(pic: PicPair | None, ioapic: Ioapic | None, cpus: Sequence[Cpu]) -> list[RawProbes]:
    """See Probed."""
    raw: list[RawProbes] = [(), ()]
    if pic is not None:
        one, two = pic.primary, pic.secondary
        of_one = one.irr, one.isr, one.imr, one.irq_base
        raw[PICS] = pic.output, of_one, (two.irr, two.isr, two.imr, two.irq_base)
    if ioapic is not None:
        raw[IOAPIC] = ioapic.irr, tuple(ioapic.redirection)
    for cpu in cpus:
        lapic = cpu.lapic
        raw.append(() if lapic is None else (cpu.id, lapic.irr, lapic.isr, lapic.tmr, lapic.tpr, lapic.ppr))
    return raw


def named_probes(part: int, raw: RawProbes) -> Probes:
    """See Probed."""
    probes: Probes = {}
    if not raw:
        return probes
    if part == PICS:
        output, *registers = raw
        probes["pic.intr"] = 1, int(output)
        for number, values in enumerate(registers):
            for name, value in zip(_PIC_REGISTERS, values, strict=True):
                probes[f"pic{number}.{name}"] = 8, value
    elif part == IOAPIC:
        irr, redirection = raw
        remote_irr = masked = 0
        for pin, entry in enumerate(redirection):
            if entry & REMOTE_IRR:
                remote_irr |= 1 << pin
            if entry & MASKED:
                masked |= 1 << pin
        probes["ioapic0.irr"] = PINS, irr
        probes["ioapic0.remote_irr"] = PINS, remote_irr
        probes["ioapic0.masked"] = PINS, masked
    else:
        vcpu, irr, isr, tmr, tpr, ppr = raw
        for name, width, value in (
            ("irr", 256, irr),
            ("isr", 256, isr),
            ("tmr", 256, tmr),
            ("tpr", 8, tpr),
            ("ppr", 8, ppr),
        ):
            probes[f"lapic{vcpu}.{name}"] = width, value
    return probes
