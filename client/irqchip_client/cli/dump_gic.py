"""An arm64 VM's GIC and timers as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from .durations import show_duration
from .gic_state import FIRST_SPI, IDLE, SGIS, CpuInterface, Distributor, GicInterrupt, Part, PrivateInterrupts, Timers


def dump_part(name: str, part: Part, now_ns: int) -> str:
    """The lines of a part."""
    match part:
        case Distributor():
            lines = _distributor(name, part)
        case PrivateInterrupts():
            lines = _private(name, part)
        case CpuInterface():
            lines = _interface(name, part)
        case Timers():
            lines = _timers(name, part, now_ns)
    return "\n".join(lines)


def _distributor(name: str, gic: Distributor) -> Iterator[str]:
    state = "enabled" if gic.enabled else "disabled"
    intids = f"{gic.intids} INTIDs" if gic.initialised else "not initialised"
    where = "" if gic.address is None else f" at {gic.address:#x}"
    yield f"{name}: GICv{gic.version}{where}, {state}, {intids}"
    yield from _rows(gic.interrupts)


def _private(name: str, part: PrivateInterrupts) -> Iterator[str]:
    where = "" if part.affinity is None else f", affinity {part.affinity}"
    where += "" if part.address is None else f", at {part.address:#x}"
    yield f"{name}: SGIs and PPIs of vCPU {part.vcpu}{where}"
    yield from _rows(part.interrupts)


def _rows(interrupts: Iterable[GicInterrupt]) -> Iterator[str]:
    """A line for an interrupt, or for several in a row that differ only in their number."""
    for (kind, words), group in groupby(interrupts, lambda one: (_kind(one.intid), _words(one))):
        intids = [one.intid for one in group]
        names = _range([intid - FIRST_SPI for intid in intids]) if kind == "SPI" else ""
        yield f"  {_range(intids):>8} {f'{kind} {names}':12} {words}".rstrip()


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _kind(intid: int) -> str:
    return "SGI" if intid < SGIS else "PPI" if intid < FIRST_SPI else "SPI"


def _words(one: GicInterrupt) -> str:
    state = "enabled " if one.enabled else "disabled"
    happening = [
        (one.pending, f"pending{_from(one.sources)}"),
        (one.active, f"active{_from(() if one.active_source is None else (one.active_source,))}"),
        (one.line, "line high"),
    ]
    words = f"{state} group {one.group} priority 0x{one.priority:02x} {one.trigger:5}{_target(one)}"
    return ", ".join([words.rstrip(), *(word for is_on, word in happening if is_on)])


def _from(sources: tuple[int, ...]) -> str:
    return f" from vCPU {' '.join(map(str, sources))}" if sources else ""


def _target(one: GicInterrupt) -> str:
    if one.intid < FIRST_SPI:
        return ""
    register = f"affinity {one.affinity}" if one.targets is None else f"targets 0x{one.targets:02x}"
    return f" {register} ({'no vCPU' if one.vcpu is None else f'vCPU {one.vcpu}'})"


def _interface(name: str, cpu: CpuInterface) -> Iterator[str]:
    groups = " and ".join(str(n) for n, is_on in enumerate((cpu.group0, cpu.group1)) if is_on)
    yield f"{name}: CPU interface of vCPU {cpu.vcpu}, {cpu.mp_state.name.lower()}; groups enabled: {groups or 'none'}"
    running = "idle" if cpu.rpr == IDLE else "in service"
    modes = [
        (cpu.cbpr, "CBPR"),
        (cpu.eoi_mode, "EOImode 1: DIR deactivates"),
        (cpu.ack_ctl, "AckCtl"),
        (cpu.fiq_enable, "FIQEn"),
    ]
    words = "".join(f", {word}" for is_on, word in modes if is_on)
    yield f"  PMR 0x{cpu.pmr:02x} RPR 0x{cpu.rpr:02x} ({running}) BPR {cpu.bpr0} {cpu.bpr1}{words}"
    yield f"  active priorities: group 0 {_hex(cpu.active_priorities0)}, group 1 {_hex(cpu.active_priorities1)}"
    yield f"  queued: {' '.join(map(str, cpu.queue)) or '(none)'}"


def _hex(priorities: Iterable[int]) -> str:
    return " ".join(f"0x{priority:02x}" for priority in priorities) or "(none)"


def _timers(name: str, part: Timers, now_ns: int) -> Iterator[str]:
    yield f"{name}: generic timers of vCPU {part.vcpu}"
    for timer in part.timers:
        if not timer.enabled:
            state = "disabled"
        elif timer.expires_ns is None:
            state = "expired"
        else:
            state = f"expires in {show_duration(timer.expires_ns - now_ns)}"
        masked = ", masked" if timer.masked else ""
        yield f"  {timer.name} PPI {timer.ppi}: {state}{masked}, CVAL {timer.compare:#x}"
