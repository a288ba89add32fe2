"""What a logic analyser would see of a GIC, the list registers of its vCPUs among it."""

from __future__ import annotations

from collections.abc import Sequence

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import GicV2
from irqchipd.chips.gic.gicv3 import GicV3
from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.interrupt import Interrupt
from irqchipd.chips.gic.list_register import ListRegister
from irqchipd.chips.gic.vgic import Vgic
from irqchipd.vm.board import Probes


def gic_probes(gic: Vgic, v2: GicV2 | None, v3: GicV3 | None) -> Probes:
    """A bit for each SPI, counted from 0, and each SGI and PPI of a vCPU; its priority mask and running priority."""
    probes: Probes = {}
    loaded: dict[int, ListRegister] = {}  # by the identity of the interrupt
    for cpu in gic.cpus:
        for register in cpu.interface.list_registers:
            loaded[id(gic.interrupt(cpu, register.intid))] = register
    _add(probes, "gic.spi", gic.spis, loaded)
    for cpu in gic.cpus:
        name = f"gic.cpu{cpu.id}"
        _add(probes, name, cpu.private, loaded)
        probes[f"{name}.pmr"] = 8, cpu.interface.vmcr.pmr
        running: int | None = None
        if v2 is not None and cpu.index < len(v2.frames):
            running = v2.frames[cpu.index].read(Gicc.RPR)
        elif v3 is not None and cpu.index < len(v3.interfaces):
            running = v3.interfaces[cpu.index].read(Icc.RPR)
        if running is not None:
            probes[f"{name}.running_priority"] = 8, running
    return probes


def _add(probes: Probes, name: str, interrupts: Sequence[Interrupt], loaded: dict[int, ListRegister]) -> None:
    if not interrupts:
        return
    line = enabled = pending = active = 0
    for number, interrupt in enumerate(interrupts):
        bit = 1 << number
        if interrupt.line:
            line |= bit
        if interrupt.enabled:
            enabled |= bit
        register = loaded.get(id(interrupt))
        # The guest's CPU interface works on the list register; the distributor has its state when the guest is left.
        if interrupt.pending if register is None else register.pending:
            pending |= bit
        if interrupt.active if register is None else register.active:
            active |= bit
    for part, value in (("line", line), ("enabled", enabled), ("pending", pending), ("active", active)):
        probes[f"{name}.{part}"] = len(interrupts), value
