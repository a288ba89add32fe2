"""The parts of an arm64 VM: the distributor's interrupts, and each vCPU's GIC state and timers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from irqchipd.chips.gic.interrupt import PRIVATE, SGIS
from irqchipd.chips.gic.saving import ALIKE_IN_VMCR, SavedGicCpu, SavedInterrupt
from irqchipd.page.part import Part, high_lines, line_list, mp_state, number, source_list
from irqchipd.vm.arm64.line_numbers import VCPU_LINES, owner_of
from irqchipd.vm.arm64.states import Arm64State, Arm64VcpuState
from irqchipd.vm.arm64.timer import SavedTimer
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.sources import RESAMPLERS

_OWNERS: Final = ("", "virtual timer", "physical timer", "PMU")
_VCPU_INPUTS: Final = ("IRQ", "FIQ")


def parts(state: VmState) -> Iterator[Part]:
    """Lines, the distributor, and vCPUs with their redistributors, CPU interfaces and timers."""
    arm = state.arm64
    assert arm is not None
    gic = arm.gicv2 or arm.gicv3
    spis = gic.spis if gic is not None else ()
    raw = state.asserted_gsis, state.sources, arm.resampled_lines, len(spis)
    yield "lines", raw, lambda _: _lines(state, arm, len(spis))
    yield "vcpus", tuple(vcpu.vcpu for vcpu in arm.vcpus), list
    redistributors = arm.gicv3.redistributors if arm.gicv3 is not None else ()
    if gic is not None:
        version = 2 if arm.gicv2 is not None else 3
        places = arm.dist_address, arm.cpu_address, tuple((region.base, region.count) for region in arm.regions)
        yield "gic", (version, gic.enabled, arm.interrupts, arm.ready, arm.list_registers, places), _gic
        ids = tuple(vcpu.vcpu for vcpu in arm.vcpus)
        yield "spis", (spis, ids), _spis
    for index, vcpu in enumerate(arm.vcpus):
        cpu = gic.cpus[index] if gic is not None and index < len(gic.cpus) else None
        affinity = redistributors[index].affinity if index < len(redistributors) else None
        yield f"cpu{vcpu.vcpu}", (vcpu, cpu, affinity), _cpu


def line_name(line: int) -> str:
    """A line's name, as in irqchipctl; for an SPI with the INTID."""
    if line < VCPU_LINES:
        return f"spi:{line - PRIVATE} (INTID {line})"
    vcpu, there = owner_of(line)
    return f"ppi:{vcpu}:{there}" if there >= SGIS else f"{_VCPU_INPUTS[there & 1].lower()}:{vcpu}"


def _lines(state: VmState, arm: Arm64State, spis: int) -> Any:
    found = high_lines(state)
    for line in arm.resampled_lines:
        found.setdefault(line, []).append(RESAMPLERS)
    idle = range(PRIVATE, PRIVATE + min(spis, 32))
    return {"lines": line_list(found, idle, line_name), "sources": source_list(state.sources)}


def _gic(raw: Any) -> Any:
    version, enabled, interrupts, ready, list_registers, (dist, cpu, regions) = raw
    return {
        "version": version,
        "enabled": enabled,
        "interrupts": interrupts,
        "ready": ready,
        "listRegisters": list_registers,
        "distributor": None if dist is None else hex(dist),
        "cpuInterfaces": None if cpu is None else hex(cpu),
        "redistributors": [{"base": hex(base), "count": count} for base, count in regions],
    }


def _spis(raw: Any) -> Any:
    spis, ids = raw
    return _interrupts(spis, PRIVATE, ids)


def _interrupts(interrupts: Iterable[SavedInterrupt], first: int, ids: tuple[int, ...]) -> Any:
    """The interrupts that a guest has set up, or that are active or pending."""
    return [
        {
            "intid": intid,
            "enabled": one.enabled,
            "level": one.level,
            "group": one.group,
            "priority": one.priority,
            "line": one.line,
            "pending": one.pending_latch or (one.level and one.line),
            "active": one.active,
            "sources": one.source,
            "vcpu": None if one.target is None else ids[one.target],
            "route": f"targets {one.targets:#x}" if one.targets else f"affinity {_affinity(one.affinity)}",
            "owner": _OWNERS[one.owner] if one.owner < len(_OWNERS) else "",
        }
        for intid, one in enumerate(interrupts, first)
        if one.pending_latch or one.line or one.active or (one.enabled and intid >= SGIS)
    ]


def _affinity(value: int) -> str:
    return ".".join(str(value >> shift & 0xFF) for shift in (32, 16, 8, 0))


def _cpu(raw: tuple[Arm64VcpuState, SavedGicCpu | None, int | None]) -> Any:
    vcpu, cpu, affinity = raw
    shown = {
        "mpState": mp_state(vcpu.mp_state),
        "inputs": [name for bit, name in enumerate(_VCPU_INPUTS) if vcpu.lines >> bit & 1],
        "affinity": None if affinity is None else _affinity(affinity),
        "redistributor": None if vcpu.place is None else hex(vcpu.place.base),
        "timers": {
            "virtual": _timer(vcpu.virtual_timer),
            "physical": _timer(vcpu.physical_timer),
        },
    }
    if cpu is None:
        return shown
    return {
        **shown,
        "private": _interrupts(cpu.private, 0, (vcpu.vcpu,) * (max(i.target or 0 for i in cpu.private) + 1)),
        "queue": list(cpu.ap_list),
        "interface": {name: getattr(cpu, name) for name in ALIKE_IN_VMCR},
        "activePriorities": [[f"{value:08x}" for value in values] for values in (cpu.ap0r, cpu.ap1r)],
    }


def _timer(timer: SavedTimer | None) -> Any:
    if timer is None:
        return None
    return {
        "enabled": bool(timer.control & 1),
        "masked": bool(timer.control & 2),
        "compare": number(timer.compare),
        "level": timer.level,
    }
