"""The state of vgic.py as plain values, for a snapshot: complete to the bit, and checked before it is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from irqchipd.chips.gic.interrupt import NOBODY, PRIVATE, SGIS, Interrupt
from irqchipd.chips.gic.list_register import ACTIVE_PRIORITY_REGISTERS, ListRegister
from irqchipd.chips.gic.vgic import PRIORITY_MASK, GicCpu, Vgic
from irqchipd.chips.saved import check, in_range

MOST_INTERRUPTS: Final = 1020  # INTIDs above are special
ALIKE: Final = (
    "enabled",
    "level",
    "group",
    "priority",
    "line",
    "pending_latch",
    "active",
    "source",
    "active_source",
    "targets",
    "affinity",
    "owner",
    "hardware",
    "physical",
)
ALIKE_IN_LIST_REGISTERS: Final = ("pending", "active", "eoi", "hardware", "physical")
ALIKE_IN_VMCR: Final = ("grpen0", "grpen1", "ackctl", "fiqen", "cbpr", "eoim", "bpr", "abpr", "pmr")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedInterrupt:
    """An interrupt in a snapshot: the fields of Interrupt."""

    enabled: bool
    level: bool
    group: int
    priority: int
    line: bool
    pending_latch: bool
    active: bool
    source: int
    active_source: int
    targets: int
    affinity: int
    target: int | None
    owner: int
    hardware: bool
    physical: int

    def check(self, intid: int, version: int, cpus: int) -> None:
        """Refuse a state that is impossible for this INTID, in a GIC of this version with this many CPUs."""
        name = f"interrupt {intid}"
        in_range(self.group, 0, 1, f"the group of {name}")
        check(not self.priority & ~PRIORITY_MASK, f"the priority of {name} is not a multiple of 8 up to 248")
        in_range(self.target, 0, cpus - 1, f"the target of {name}")
        in_range(self.physical, 0, MOST_INTERRUPTS - 1, f"the host's interrupt of {name}")
        check(self.hardware or not self.physical, f"{name} has a host's interrupt, but is not mapped")
        if intid < PRIVATE:
            check(self.level == (intid >= SGIS), f"{name} has the wrong trigger")
            check(intid >= SGIS or not (self.line or self.owner or self.hardware), f"{name} is an SGI, but has a line")
        else:
            check(not self.hardware, f"{name} is an SPI, but mapped to an interrupt of the host")
        if version == 2 and intid < SGIS:
            in_range(self.source, 0, 0xFF, f"the sources of {name}")
            in_range(self.active_source, 0, 7, f"the active source of {name}")
            check(self.pending_latch == (self.source != 0), f"pending_latch of {name} contradicts its sources")
        else:
            check(not (self.source or self.active_source), f"{name} has sources, but is not an SGI of a GICv2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedListRegister:
    """A list register in use: the fields of ListRegister."""

    intid: int
    priority: int
    group: int
    pending: bool
    active: bool
    eoi: bool
    hardware: bool
    physical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGicCpu:
    """A vCPU's part: the fields of GicCpu, CpuInterfaceState and Vmcr. ap_list has INTIDs."""

    private: tuple[SavedInterrupt, ...]
    ap_list: tuple[int, ...]
    list_registers: tuple[SavedListRegister, ...]
    ap0r: tuple[int, ...]
    ap1r: tuple[int, ...]
    grpen0: int
    grpen1: int
    ackctl: int
    fiqen: int
    cbpr: int
    eoim: int
    bpr: int
    abpr: int
    pmr: int

    def check(self, list_registers: int) -> None:
        """Refuse a state that no CPU with this many list registers can have."""
        for name in ("grpen0", "grpen1", "ackctl", "fiqen", "cbpr", "eoim"):
            in_range(getattr(self, name), 0, 1, name)
        in_range(self.bpr, 0, 7, "bpr")
        in_range(self.abpr, 0, 7, "abpr")
        in_range(self.pmr, 0, 0xFF, "pmr")
        for registers, name in ((self.ap0r, "ap0r"), (self.ap1r, "ap1r")):
            check(len(registers) == ACTIVE_PRIORITY_REGISTERS, f"{name} has {len(registers)} registers")
            for value in registers:
                in_range(value, 0, 0xFFFF_FFFF, f"one of {name}")
        in_range(len(self.list_registers), 0, list_registers, "the number of list registers")
        held = [register.intid for register in self.list_registers]
        check(len(set(held)) == len(held), "two list registers have the same interrupt")
        for register in self.list_registers:
            check(register.intid in self.ap_list, f"interrupt {register.intid} is in a list register, but not queued")
            in_range(register.group, 0, 1, "the group in a list register")
            check(not register.priority & ~PRIORITY_MASK, "a priority in a list register is not a multiple of 8")
            in_range(register.physical, 0, MOST_INTERRUPTS - 1, "the source or host's interrupt in a list register")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGic:
    """A GIC without its registers: the fields of Vgic. CPUs are in the order of their creation."""

    enabled: bool
    cpus: tuple[SavedGicCpu, ...]
    spis: tuple[SavedInterrupt, ...]

    def check_heart(self, version: int, cpus: int, list_registers: int) -> None:
        """Refuse a state that no GIC of this version with this many CPUs and list registers can have."""
        check(len(self.cpus) == cpus, f"the GIC has {len(self.cpus)} CPUs, but the VM {cpus}")
        interrupts = PRIVATE + len(self.spis)
        in_range(interrupts, PRIVATE, 1024, "the number of interrupts")
        check(interrupts % 32 == 0, f"the number of interrupts is {interrupts}; it must be a multiple of 32")
        for intid, interrupt in enumerate(self.spis, PRIVATE):
            interrupt.check(intid, version, cpus)
        queued: set[int] = set()
        for index, cpu in enumerate(self.cpus):
            check(len(cpu.private) == PRIVATE, f"CPU {index} must have {PRIVATE} private interrupts")
            for intid, interrupt in enumerate(cpu.private):
                interrupt.check(intid, version, cpus)
                check(interrupt.target == index, f"interrupt {intid} of CPU {index} has another CPU as its target")
            for intid in cpu.ap_list:
                in_range(intid, 0, interrupts - 1, "an interrupt in an ap_list")
            check(len(set(cpu.ap_list)) == len(cpu.ap_list), "an interrupt is queued twice")
            shared = {intid for intid in cpu.ap_list if intid >= PRIVATE}
            check(not shared & queued, "an interrupt is queued on two CPUs")
            queued |= shared
            cpu.check(list_registers)


_values: Final = attrgetter("target", *ALIKE)


@lru_cache(MOST_INTERRUPTS)
def _saved(target: int, *alike: Any) -> SavedInterrupt:
    """Interrupts of the same state share an object: most interrupts are alike, and snapshots never change."""
    return SavedInterrupt(target=None if target == NOBODY else target, **dict(zip(ALIKE, alike, strict=True)))


def save_interrupt(interrupt: Interrupt) -> SavedInterrupt:
    """An interrupt's state."""
    return _saved(*_values(interrupt))


def resume_interrupt(interrupt: Interrupt, saved: SavedInterrupt) -> None:
    """Give an interrupt a state; queued_on comes from the ap_lists."""
    for name in ALIKE:
        setattr(interrupt, name, getattr(saved, name))
    interrupt.target = NOBODY if saved.target is None else saved.target
    interrupt.queued_on = NOBODY


def save_cpu(cpu: GicCpu) -> SavedGicCpu:
    """A CPU's state."""
    interface = cpu.interface
    return SavedGicCpu(
        private=tuple(save_interrupt(interrupt) for interrupt in cpu.private),
        ap_list=tuple(interrupt.intid for interrupt in cpu.ap_list),
        list_registers=tuple(
            SavedListRegister(
                intid=register.intid,
                priority=register.priority,
                group=register.group,
                **{name: getattr(register, name) for name in ALIKE_IN_LIST_REGISTERS},
            )
            for register in interface.list_registers
        ),
        ap0r=tuple(interface.ap0r),
        ap1r=tuple(interface.ap1r),
        **{name: getattr(interface.vmcr, name) for name in ALIKE_IN_VMCR},
    )


def resume_cpu(cpu: GicCpu, saved: SavedGicCpu) -> None:
    """Give a CPU a state, without its ap_list."""
    for interrupt, state in zip(cpu.private, saved.private, strict=True):
        resume_interrupt(interrupt, state)
    interface = cpu.interface
    interface.list_registers = []
    for held in saved.list_registers:
        register = ListRegister(held.intid, held.priority, held.group)
        for name in ALIKE_IN_LIST_REGISTERS:
            setattr(register, name, getattr(held, name))
        interface.list_registers.append(register)
    interface.ap0r = list(saved.ap0r)
    interface.ap1r = list(saved.ap1r)
    for name in ALIKE_IN_VMCR:
        setattr(interface.vmcr, name, getattr(saved, name))


def save_gic(vgic: Vgic) -> dict[str, Any]:
    """For a snapshot: the fields of SavedGic."""
    return {
        "enabled": vgic.enabled,
        "cpus": tuple(save_cpu(cpu) for cpu in vgic.cpus),
        "spis": tuple(save_interrupt(interrupt) for interrupt in vgic.spis),
    }


def resume_gic(vgic: Vgic, saved: SavedGic) -> None:
    """Resume from a checked snapshot; the GIC has its CPUs already. Nothing is delivered."""
    vgic.enabled = saved.enabled
    vgic.spis.clear()
    vgic.add_spis(PRIVATE + len(saved.spis))
    for interrupt, state in zip(vgic.spis, saved.spis, strict=True):
        resume_interrupt(interrupt, state)
    for cpu, part in zip(vgic.cpus, saved.cpus, strict=True):
        resume_cpu(cpu, part)
    for cpu, part in zip(vgic.cpus, saved.cpus, strict=True):
        cpu.ap_list = [vgic.interrupt(cpu, intid) for intid in part.ap_list]
        for interrupt in cpu.ap_list:
            interrupt.queued_on = cpu.index
