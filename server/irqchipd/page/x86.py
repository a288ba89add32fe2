"""The parts of an x86 VM: PICs, IOAPIC, local APICs and PIT, decoded by the chips' own structs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from irqchipd.chips.i8254_state import PitState, SavedPit
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.ioapic import DELIVERY_STATUS, MASKED, REMOTE_IRR, IoapicState
from irqchipd.chips.lapic_registers import (
    BASE_BOOT_CPU,
    BASE_ENABLED,
    BASE_X2APIC,
    LVT_MASKED,
    SVR_ENABLED,
    LapicRegisters,
)
from irqchipd.chips.message import Message, from_lvt, from_msi, from_redirection
from irqchipd.page.part import Part, high_lines, line_list, mp_state, number, source_list
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.sources import PIT, RESAMPLERS, numbers_of
from irqchipd.vm.x86.vcpu_state import SavedVcpu

_MODES: Final = ("fixed", "lowest", "SMI", "remote read", "NMI", "INIT", "SIPI", "extINT")
_ACTIVE_LOW: Final = 1 << 13  # of a redirection entry; KVM ignores it
_LVTS: Final = {
    "timer": "lvt_timer",
    "thermal": "lvt_thermal",
    "performance": "lvt_performance",
    "LINT0": "lvt_lint0",
    "LINT1": "lvt_lint1",
    "error": "lvt_error",
}


def parts(state: VmState) -> Iterator[Part]:
    """Lines, chips and vCPUs."""
    chips = state.chips
    inputs = chips.sources if chips is not None else ()
    yield "lines", (state.routing, state.asserted_gsis, state.sources, inputs), lambda _: _lines(state)
    if chips is not None:
        yield "pic0", (chips.primary, chips.output), _primary
        yield "pic1", chips.secondary, _pic
        yield "ioapic", (chips.ioapic, chips.rtc_pending_eoi), _ioapic
    if state.pit is not None:
        yield "pit", state.pit, _pit
    yield "vcpus", tuple(vcpu.vcpu for vcpu in state.vcpus), list
    for vcpu in state.vcpus:
        yield f"lapic{vcpu.vcpu}", vcpu, _vcpu


def _lines(state: VmState) -> Any:
    found = high_lines(state)
    inputs = state.chips.sources if state.chips is not None else ()
    for route in state.routing:  # the PIT and resamplers drive inputs, but have no bitmaps of their own
        if isinstance(route, PinRoute) and inputs:
            driving = int.from_bytes(inputs[8 * route.chip + route.pin], "little")
            for source in (PIT, RESAMPLERS):
                if driving >> source & 1 and source not in found.setdefault(route.gsi, []):
                    found[route.gsi].append(source)
    found = {gsi: sources for gsi, sources in found.items() if sources}
    idle = (route.gsi for route in state.routing)
    return {"lines": line_list(found, idle, lambda gsi: f"GSI {gsi}"), "sources": source_list(state.sources)}


def message(address: int, data: int) -> Any:
    """The content of an MSI."""
    return _message(from_msi(address, data))


def _message(sent: Message) -> Any:
    return {
        "vector": sent.vector,
        "mode": _MODES[sent.delivery_mode],
        "destination": sent.destination,
        "logical": sent.logical,
        "level": sent.level_triggered,
    }


def _primary(raw: tuple[bytes, bool]) -> Any:
    return {**_pic(raw[0]), "intr": raw[1]}


def _pic(raw: bytes) -> Any:
    pic = I8259.unpack(raw)
    return {
        "irr": pic.irr,
        "imr": pic.imr,
        "isr": pic.isr,
        "level": pic.last_irr,
        "elcr": pic.elcr,
        "base": pic.irq_base,
        "first": pic.priority_add,
        "autoEoi": bool(pic.auto_eoi),
        "expects": pic.init_state,
    }


def _ioapic(raw: tuple[bytes, int]) -> Any:
    ioapic = IoapicState.unpack(raw[0])
    return {
        "id": ioapic.id,
        "irr": ioapic.irr,
        "rtcPendingEoi": raw[1],
        "entries": [
            {
                "raw": f"{entry:016x}",
                **_message(from_redirection(entry)),
                "masked": bool(entry & MASKED),
                "remoteIrr": bool(entry & REMOTE_IRR),
                "pending": bool(entry & DELIVERY_STATUS),
                "activeLow": bool(entry & _ACTIVE_LOW),
            }
            for entry in ioapic.redirection
        ],
    }


def _pit(saved: SavedPit) -> Any:
    state = PitState.unpack(saved.state)
    return {
        "channels": [
            {"mode": channel.mode, "count": channel.count, "gate": channel.gate} for channel in state.channels
        ],
        "running": saved.running,
        "periodNs": number(saved.period_ns),
        "pending": number(saved.pending),
        "reinject": saved.reinject,
    }


def _vcpu(vcpu: SavedVcpu) -> Any:
    common = {
        "mpState": mp_state(vcpu.mp_state),
        "takes": [f"vector {vector}" for vector, _ in vcpu.queued]
        + ([f"external vector {vcpu.external_vector}"] if vcpu.external_vector is not None else [])
        + [name for name, waits in (("NMI", vcpu.nmis), ("SMI", vcpu.smi), ("INIT", vcpu.init)) if waits]
        + ([f"SIPI {vcpu.sipi_vector:#x}"] if vcpu.sipi_vector is not None else []),
    }
    if vcpu.lapic is None:
        return common
    page = LapicRegisters.unpack(vcpu.lapic)
    x2apic = bool(vcpu.apic_base & BASE_X2APIC)
    return {
        **common,
        "id": page.id if x2apic else page.id >> 24,
        "apic": ("x2APIC" if x2apic else "xAPIC") if vcpu.apic_base & BASE_ENABLED else "disabled",
        "boot": bool(vcpu.apic_base & BASE_BOOT_CPU),
        "enabled": bool(page.svr & SVR_ENABLED),
        "spurious": page.svr & 0xFF,
        "tpr": page.tpr,
        "ppr": page.ppr,
        "ldr": page.ldr,
        "dfr": page.dfr,
        "esr": page.esr,
        "icr": f"{page.icr2:08x}:{page.icr:08x}",
        "irr": numbers_of(page.irr),
        "isr": numbers_of(page.isr),
        "tmr": numbers_of(page.tmr),
        "timer": {
            "initial": page.timer_initial_count,
            "mode": ("one-shot", "periodic", "TSC deadline", "reserved")[page.lvt_timer >> 17 & 3],
            "running": vcpu.timer_expires_ns is not None,
            "periodNs": number(vcpu.timer_period_ns),
        },
        "lvts": {name: _lvt(getattr(page, register)) for name, register in _LVTS.items()},
    }


def _lvt(entry: int) -> Any:
    sent = from_lvt(entry)
    return {
        "raw": f"{entry:08x}",
        "vector": sent.vector,
        "mode": _MODES[sent.delivery_mode],
        "level": sent.level_triggered,
        "masked": bool(entry & LVT_MASKED),
        "pending": bool(entry & DELIVERY_STATUS),
    }
