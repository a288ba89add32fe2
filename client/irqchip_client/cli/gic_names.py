"""Names of arm64's attributes and registers on a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple

import click

from irqchip_client.arm64 import SYSREGS, Address, Control, Group, VcpuGroup


class Register(NamedTuple):
    """A register, or an array of them."""

    offset: int
    length: int = 1
    step: int = 4


# Arm IHI 0048B, 4.1.2; Arm IHI 0069, 12.8. Without write-only registers, and without those that KVM lacks.
GICD: Final = {
    "CTLR": Register(0),
    "TYPER": Register(4),
    "IIDR": Register(8),
    "IGROUPR": Register(0x80, 32),
    "ISENABLER": Register(0x100, 32),
    "ICENABLER": Register(0x180, 32),
    "ISPENDR": Register(0x200, 32),
    "ICPENDR": Register(0x280, 32),
    "ISACTIVER": Register(0x300, 32),
    "ICACTIVER": Register(0x380, 32),
    "IPRIORITYR": Register(0x400, 255),
    "ITARGETSR": Register(0x800, 255),
    "ICFGR": Register(0xC00, 64),
    "CPENDSGIR": Register(0xF10, 4),
    "SPENDSGIR": Register(0xF20, 4),
    "IROUTER": Register(0x6000, 1020, 8),
    "PIDR": Register(0xFFE0, 4),
}
GICC: Final = {
    "CTLR": Register(0),
    "PMR": Register(4),
    "BPR": Register(8),
    "ABPR": Register(0x1C),
    "APR": Register(0xD0, 4),
    "IIDR": Register(0xFC),
}
GICR: Final = {
    "CTLR": Register(0),
    "IIDR": Register(4),
    "TYPER": Register(8, 2),
    "WAKER": Register(0x14),
    "PROPBASER": Register(0x70, 2),
    "PENDBASER": Register(0x78, 2),
    "PIDR": Register(0xFFE0, 4),
    "IGROUPR": Register(0x10080),
    "ISENABLER": Register(0x10100),
    "ICENABLER": Register(0x10180),
    "ISPENDR": Register(0x10200),
    "ICPENDR": Register(0x10280),
    "ISACTIVER": Register(0x10300),
    "ICACTIVER": Register(0x10380),
    "IPRIORITYR": Register(0x10400, 8),
    "ICFGR": Register(0x10C00, 2),
}
_FRAMES: Final[Mapping[Group, tuple[str, Mapping[str, Register]]]] = {
    Group.DIST_REGS: ("GICD", GICD),
    Group.CPU_REGS: ("GICC", GICC),
    Group.REDIST_REGS: ("GICR", GICR),
}
# The groups whose attributes name a vCPU.
BANKED: Final = frozenset({Group.DIST_REGS, Group.CPU_REGS, Group.REDIST_REGS, Group.CPU_SYSREGS, Group.LEVEL_INFO})
# KVM_ARM_VCPU_PMU_V3_*, KVM_ARM_VCPU_TIMER_IRQ_*, KVM_ARM_VCPU_PVTIME_IPA.
_OF_VCPUS: Final[Mapping[VcpuGroup, tuple[str, ...]]] = {
    VcpuGroup.PMU: ("irq", "init"),
    VcpuGroup.TIMER: ("vtimer", "ptimer", "hvtimer", "hptimer"),
    VcpuGroup.PVTIME: ("ipa",),
}


def named(member: IntEnum) -> str:
    """A member's name on a command line: "dist-regs"."""
    return member.name.lower().replace("_", "-")


def group_number(text: str, *, of_vcpu: bool) -> int:
    """A group of attributes, by its name or number."""
    groups: dict[str, int] = {named(group): int(group) for group in (VcpuGroup if of_vcpu else Group)}
    return _one_of(text, groups, "GROUP", ", ".join(groups))


def attr_number(text: str, group: int, *, of_vcpu: bool) -> int:
    """An attribute of a group, by its name or number, without the bits that name a vCPU."""
    if of_vcpu:
        names: dict[str, int] = {}
        if group in list(VcpuGroup):
            names = {name: number for number, name in enumerate(_OF_VCPUS[VcpuGroup(group)])}
        return _one_of(text, names, "ATTR", ", ".join(names))
    if group in _FRAMES:
        frame, registers = _FRAMES[Group(group)]
        return _register(text, frame, registers)
    if group == Group.CPU_SYSREGS:
        return sysreg_number(text, "ATTR")
    kinds: dict[int, type[IntEnum]] = {Group.ADDR: Address, Group.CTRL: Control}
    known = {named(member): int(member) for member in kinds.get(group, ())}
    return _one_of(text, known, "ATTR", ", ".join(known))


def _register(text: str, frame: str, registers: Mapping[str, Register]) -> int:
    """A register's offset: GICD_ISENABLER1 is the second of its array."""
    found = re.fullmatch(r"(?:(GIC[DCR])_)?([A-Z]+)(\d*)", text.upper())
    if found is None or found[2] not in registers or found[1] not in (None, frame):
        known = {f"{frame}_{name}": register.offset for name, register in registers.items()}
        return _one_of(text, known, "ATTR", ", ".join(known))
    register, index = registers[found[2]], int(found[3] or 0)
    if index >= register.length:
        raise click.BadParameter(f"{text:.100} is not there: use 0 to {register.length - 1}", param_hint="ATTR")
    return register.offset + index * register.step


_GENERIC: Final = re.compile(r"S([0-3])_([0-7])_C(\d+)_C(\d+)_([0-7])")


def sysreg_number(text: str, hint: str = "SYSREG") -> int:
    """A system register, by its name, as S3_0_C12_C12_0, or by its number."""
    if found := _GENERIC.fullmatch(text.upper()):
        op0, op1, crn, crm, op2 = map(int, found.groups())
        if crn < 16 and crm < 16:
            return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    return _one_of(text, SYSREGS, hint, "S3_0_C12_C12_0, ICC_PMR_EL1, CNTV_CTL_EL0")


def _one_of(text: str, names: Mapping[str, int], hint: str, shown: str) -> int:
    """The number of a name, or a number itself."""
    from difflib import get_close_matches

    known = {name.lower().replace("_", "-"): name for name in names}
    key = text.lower().replace("_", "-")
    if key in known:
        return names[known[key]]
    try:
        number = int(text, 0)
    except ValueError:
        close = get_close_matches(key, known, 1)
        meant = f"did you mean {known[close[0]]}? Else " if close else ""
        some = f", or a name as {shown}" if shown else ""
        raise click.BadParameter(f"{text!r:.100} is not known: {meant}write a number{some}", param_hint=hint) from None
    if not 0 <= number < 1 << 64:
        raise click.BadParameter(f"{text:.100} is out of range: use 0 to 0xffffffffffffffff", param_hint=hint)
    return number
