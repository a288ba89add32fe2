"""The probes of a GIC, as for a logic analyser, including the vCPUs' list registers.

The parts are the SPIs, and each vCPU with its SGIs and PPIs. A probe has a bit for each interrupt; SPIs count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import GicV2
from irqchipd.chips.gic.gicv3 import GicV3
from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.interrupt import Interrupt
from irqchipd.chips.gic.list_register import ListRegister
from irqchipd.chips.gic.vgic import Vgic
from irqchipd.vm.board import Probes, RawProbes

_BITS = ("line", "enabled", "pending", "active")


def raw_probes(gic: Vgic, v2: GicV2 | None, v3: GicV3 | None) -> list[RawProbes]:
    """See Probed."""
    loaded: dict[int, ListRegister] = {}  # by the identity of the interrupt
    for cpu in gic.cpus:
        for register in cpu.interface.list_registers:
            loaded[id(gic.interrupt(cpu, register.intid))] = register
    raw: list[RawProbes] = [(-1, len(gic.spis), *_bits(gic.spis, loaded), 0, None)]
    for cpu in gic.cpus:
        running: int | None = None
        if v2 is not None and cpu.index < len(v2.frames):
            running = v2.frames[cpu.index].read(Gicc.RPR)
        elif v3 is not None and cpu.index < len(v3.interfaces):
            running = v3.interfaces[cpu.index].read(Icc.RPR)
        bits = _bits(cpu.private, loaded)
        raw.append((cpu.id, len(cpu.private), *bits, cpu.interface.vmcr.pmr, running))
    return raw


def named_probes(raw: RawProbes) -> Probes:
    """See Probed."""
    vcpu, count, *bits, pmr, running = raw
    name = "gic.spi" if vcpu < 0 else f"gic.cpu{vcpu}"
    probes: Probes = {}
    if count:
        for part, value in zip(_BITS, bits, strict=True):
            probes[f"{name}.{part}"] = count, value
    if vcpu >= 0:
        probes[f"{name}.pmr"] = 8, pmr
        if running is not None:
            probes[f"{name}.running_priority"] = 8, running
    return probes


def _bits(interrupts: Sequence[Interrupt], loaded: dict[int, ListRegister]) -> tuple[int, int, int, int]:
    line = enabled = pending = active = 0
    bit = 1
    for interrupt in interrupts:
        if interrupt.line:
            line |= bit
        if interrupt.enabled:
            enabled |= bit
        # The guest's CPU interface changes the list register; the distributor gets the state when the vCPU exits.
        register = loaded.get(id(interrupt)) if loaded else None
        if interrupt.pending if register is None else register.pending:
            pending |= bit
        if interrupt.active if register is None else register.active:
            active |= bit
        bit <<= 1
    return line, enabled, pending, active
