"""What a logic analyser would see of a PC's chips."""

from __future__ import annotations

from collections.abc import Iterable

from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import MASKED, PINS, REMOTE_IRR, Ioapic
from irqchipd.vm.board import Probes
from irqchipd.vm.x86.cpu import Cpu


def chip_probes(pic: PicPair | None, ioapic: Ioapic | None, cpus: Iterable[Cpu]) -> Probes:
    """The registers that an interrupt passes through, a bit for each line, pin or vector; and INTR of the PICs."""
    probes: Probes = {}
    if pic is not None:
        probes["pic.intr"] = 1, int(pic.output)
        for name, chip in (("pic0", pic.primary), ("pic1", pic.secondary)):
            probes[f"{name}.irr"] = 8, chip.irr
            probes[f"{name}.isr"] = 8, chip.isr
            probes[f"{name}.imr"] = 8, chip.imr
            probes[f"{name}.irq_base"] = 8, chip.irq_base
    if ioapic is not None:
        remote_irr = masked = 0
        for pin, entry in enumerate(ioapic.redirection):
            if entry & REMOTE_IRR:
                remote_irr |= 1 << pin
            if entry & MASKED:
                masked |= 1 << pin
        probes["ioapic0.irr"] = PINS, ioapic.irr
        probes["ioapic0.remote_irr"] = PINS, remote_irr
        probes["ioapic0.masked"] = PINS, masked
    for cpu in cpus:
        lapic = cpu.lapic
        if lapic is not None:
            probes[f"lapic{cpu.id}.irr"] = 256, lapic.irr
            probes[f"lapic{cpu.id}.isr"] = 256, lapic.isr
            probes[f"lapic{cpu.id}.tmr"] = 256, lapic.tmr
            probes[f"lapic{cpu.id}.tpr"] = 8, lapic.tpr
            probes[f"lapic{cpu.id}.ppr"] = 8, lapic.ppr
    return probes
