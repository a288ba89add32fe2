"""regs of an arm64 VM: decoded from a snapshot, or raw by attributes of its GIC."""

from __future__ import annotations

from collections.abc import Iterator

import click

import irqchip_client
from irqchip_client import arm64, ops
from irqchip_client.arm64 import Group

from . import gic_names
from .dump_gic import dump_part
from .gic_state import CHIPS, parts_of, wanted
from .output import echo_json, plain

_DEVICES = (irqchip_client.DeviceType.ARM_VGIC_V2, irqchip_client.DeviceType.ARM_VGIC_V3)
_WORDS_PER_LINE = 4
_MOST_READS = 1536  # in one batch, whose packet has at most 64 KiB; a VM of a few vCPUs needs fewer
# Registers of the GIC with bits for each interrupt: the number of interrupts in a register.
_PER_INTERRUPT = {"IGROUPR": 32, "ISENABLER": 32, "ISPENDR": 32, "ISACTIVER": 32, "IPRIORITYR": 4, "ICFGR": 16}
_INTERFACE = ("PMR", "BPR0", "BPR1", "AP0R0", "AP1R0", "CTLR", "SRE", "IGRPEN0", "IGRPEN1")


def show(vm: irqchip_client.Vm, info: irqchip_client.VmInfo, chips: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Prints the registers."""
    assert info.gic is not None
    if other := [chip for chip in chips if chip not in CHIPS]:
        raise click.ClickException(f"an arm64 VM has no {other[0]}: use --chip with one of {', '.join(CHIPS)}")
    if not info.gic.version and set(chips or CHIPS) - {"timer"}:
        raise click.ClickException(
            f"VM {info.name!r} has no GIC: use --chip timer alone, or make a VM that has one with"
            " `irqchipctl create --arch arm64`"
        )
    if info.gic.version == 2 and chips == ("gicr",):
        raise click.ClickException("a GICv2 has no redistributors: use --chip gicd, which has SGIs and PPIs, too")
    if raw:
        _show_raw(vm, info, chips, as_json)
        return
    from irqchip.v1 import irqchip_pb2 as pb

    snapshot = pb.VmSnapshot.FromString(vm.snapshot().to_bytes())
    parts = wanted(parts_of(snapshot), chips)
    if as_json:
        echo_json({name: plain(part) for name, part in parts.items()})
        return
    for name, part in parts.items():
        click.echo(dump_part(name, part, snapshot.now_ns))


def _show_raw(vm: irqchip_client.Vm, info: irqchip_client.VmInfo, chips: tuple[str, ...], as_json: bool) -> None:
    """Prints the values of attributes, which are read in one batch."""
    assert info.gic is not None
    devices = [number for number, kind in enumerate(info.devices) if kind in _DEVICES]
    if not devices:
        raise click.ClickException(
            f"the GIC of VM {info.name!r} has no attributes, because CreateIrqchip made it: leave --raw out"
        )
    if not info.gic.initialised:
        raise click.ClickException(
            f"the GIC of VM {info.name!r} is not initialised, and has no registers to read: leave --raw out, or run"
            f" `irqchipctl attr-set {info.name} gic ctrl init`"
        )
    found: dict[str, dict[str, int]] = {}
    attributes = [one for one in _attributes(info, info.gic) if one[0].rstrip("0123456789") in (chips or CHIPS)]
    calls = [ops.get_device_attr(group, attr, 0, device=devices[0]) for _, _, group, attr in attributes]
    with vm.session("irqchipctl regs") as session:
        at_once = min(_MOST_READS, session.max_operations)
        for start in range(0, len(calls), at_once):
            values = session.run(calls[start : start + at_once])
            for (chip, name, _, _), value in zip(attributes[start:], values, strict=False):
                found.setdefault(chip, {})[name] = int.from_bytes(value, "little")
    if as_json:
        echo_json(found)
        return
    for chip, registers in found.items():
        click.echo(f"{chip}:")
        for line in _lines(registers):
            click.echo(line)


def _attributes(info: irqchip_client.VmInfo, gic: irqchip_client.GicInfo) -> Iterator[tuple[str, str, int, int]]:
    """The chip, the name, the group and the attribute of each register to read."""
    is_v2 = gic.version == 2
    first = info.vcpus[0] if info.vcpus else 0
    shared = arm64.attr_of(gic.version, first, 0)
    for name in ("CTLR", "TYPER", "IIDR"):
        yield "gicd", f"GICD_{name}", Group.DIST_REGS, shared | gic_names.GICD[name].offset
    arrays = _PER_INTERRUPT | ({"ITARGETSR": 4} if is_v2 else {"IROUTER": 1})
    for name, per in arrays.items():
        register = gic_names.GICD[name]
        for n in range(32 // per, gic.interrupts // per):
            yield "gicd", f"GICD_{name}{n}", Group.DIST_REGS, shared | register.offset + n * register.step
    if not is_v2:
        for intid in range(32, gic.interrupts, 32):
            yield "gicd", f"LEVEL_INFO{intid // 32}", Group.LEVEL_INFO, shared | intid
    for vcpu in info.vcpus:
        bank = arm64.attr_of(gic.version, vcpu, 0)
        frame, group, chip = ("GICD", Group.DIST_REGS, "gicd") if is_v2 else ("GICR", Group.REDIST_REGS, "gicr")
        registers = gic_names.GICD if is_v2 else gic_names.GICR
        names = ("SPENDSGIR",) if is_v2 else ("CTLR", "TYPER", "PROPBASER", "PENDBASER")
        counts = {name: registers[name].length for name in names} | {n: 32 // per for n, per in _PER_INTERRUPT.items()}
        for name, count in counts.items():
            for n in range(count):
                index = n if count > 1 or name in _PER_INTERRUPT else ""
                yield f"{chip}{vcpu}", f"{frame}_{name}{index}", group, bank | registers[name].offset + 4 * n
        if is_v2:
            for name, register in gic_names.GICC.items():
                index = "0" if name == "APR" else ""
                yield f"gicc{vcpu}", f"GICC_{name}{index}", Group.CPU_REGS, bank | register.offset
        else:
            yield f"gicr{vcpu}", "LEVEL_INFO0", Group.LEVEL_INFO, bank
            for name in _INTERFACE:
                sysreg = f"ICC_{name}_EL1"
                yield f"gicc{vcpu}", sysreg, Group.CPU_SYSREGS, bank | arm64.SYSREGS[sysreg]


def _lines(registers: dict[str, int]) -> Iterator[str]:
    """The registers of an array, four in a line."""
    line: list[str] = []
    array = ""
    for name, value in registers.items():
        stem = name.rstrip("0123456789")
        if line and stem == array and len(line) <= _WORDS_PER_LINE:
            line.append(f"{value:08x}")
            continue
        if line:
            yield "  " + " ".join(line)
        array, line = stem, [f"{name:18}", f"{value:08x}"]
    if line:
        yield "  " + " ".join(line)
