"""Saving and restoring a PC's state outside of single chips; each chip saves, checks and resumes its own state."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from irqchipd.chips import i8259, ioapic
from irqchipd.chips.lapic_registers import QUIRKS
from irqchipd.chips.lapic_timer import MAX_BUS_NS
from irqchipd.chips.saved import check, in_range
from irqchipd.vm import saving
from irqchipd.vm.routing import PinRoute, check_routes
from irqchipd.vm.saving import MAX_SOURCE
from irqchipd.vm.snapshot import IRQCHIP_FULL, IRQCHIP_NONE, IRQCHIP_SPLIT, ChipsState, VmState
from irqchipd.vm.sources import PIT, RESAMPLERS, SHARED
from irqchipd.vm.x86.board import PcBoard
from irqchipd.vm.x86.capabilities import (
    MAX_VCPU_ID,
    X2APIC_32BIT_IDS,
    X2APIC_API,
    X2APIC_NO_BROADCAST_QUIRK,
)
from irqchipd.vm.x86.routing import INPUTS, PINS

# Saving.


def save_capabilities(board: PcBoard) -> dict[str, Any]:
    """The settings of capabilities: fields of VmState."""
    apics = board.apics
    return {
        "disabled_quirks": QUIRKS & ~board.apics.quirks,
        "boot_vcpu": board.boot_vcpu,
        "max_vcpu_ids": board.max_vcpu_ids,
        "x2apic_api": apics.x2apic_format * X2APIC_32BIT_IDS | apics.no_broadcast_quirk * X2APIC_NO_BROADCAST_QUIRK,
        "apic_bus_ns": board.apic_bus_ns if board.has_irqchip else 0,
    }


def save_chips(board: PcBoard) -> ChipsState | None:
    """The PICs, the IOAPIC, and which line sources drive their inputs."""
    pic, io = board.pic, board.ioapic
    if pic is None or io is None:
        return None
    return ChipsState(
        primary=pic.primary.pack(),
        secondary=pic.secondary.pack(),
        output=pic.output,
        delayed_eoi_ns=board.delayed_eoi.deadline,
        sources=_save_inputs(*board.sources),
        **io.save(),
    )


@lru_cache(64)
def _save_inputs(*inputs: int) -> tuple[bytes, ...]:
    """Which line sources drive each input, which is mostly as it was in the state before."""
    return tuple(sources.to_bytes((sources.bit_length() + 7) // 8, "little") for sources in inputs)


# Restoring, from states that have been checked.


def restore_board(board: PcBoard, state: VmState) -> None:
    """Restore a new board from a checked state."""
    board.apics.quirks &= ~state.disabled_quirks
    board.boot_vcpu = state.boot_vcpu
    board.max_vcpu_ids = state.max_vcpu_ids or (MAX_VCPU_ID + 1 if state.vcpus else 0)
    board.apic_bus_ns = state.apic_bus_ns or 1
    board.apics.x2apic_format = bool(state.x2apic_api & X2APIC_32BIT_IDS)
    board.apics.no_broadcast_quirk = bool(state.x2apic_api & X2APIC_NO_BROADCAST_QUIRK)
    if state.irqchip_mode == IRQCHIP_FULL:
        board.add_irqchip()
    elif state.irqchip_mode == IRQCHIP_SPLIT:
        board.split_irqchip(state.reserved_gsis)
    board.set_routes(state.routing)
    if state.pit is not None:
        board.add_pit(state.pit.speaker)
    for vcpu in state.vcpus:
        board.add_cpu(vcpu.vcpu).resume(vcpu)
    board.apics.mapped = state.mapped_vcpus
    if (chips := state.chips) is not None and board.pic is not None and board.ioapic is not None:
        board.pic.resume(chips.primary, chips.secondary, chips.output)
        board.ioapic.resume(chips)
        board.agenda.set_alarm(board.delayed_eoi, chips.delayed_eoi_ns)
        board.sources = [int.from_bytes(sources, "little") for sources in chips.sources]
    if state.pit is not None and board.pit is not None:
        board.pit.resume(state.pit)


def finish_board(board: PcBoard, state: VmState) -> None:
    """Restore what depends on the line sources, once they exist."""
    board.pins.update()
    for vcpu, cpu in zip(state.vcpus, board.cpus, strict=True):
        cpu.scanned = -1 if vcpu.scan else board.apics.scans


# Checking.


def check_state(state: VmState, max_vcpus: int) -> None:
    """Refuse a state that no x86 VM can have: EINVAL."""
    saving.check_state(state, max_vcpus, state.irqchip_mode == IRQCHIP_FULL, _check_chips)


def _check_chips(state: VmState) -> None:
    full = state.irqchip_mode == IRQCHIP_FULL
    check(state.arm64 is None, "parts of an arm64 VM")
    check(state.irqchip_mode in (IRQCHIP_NONE, IRQCHIP_FULL, IRQCHIP_SPLIT), f"irqchip_mode {state.irqchip_mode}")
    in_range(state.reserved_gsis, 0, 0xFF if state.irqchip_mode == IRQCHIP_SPLIT else 0, "reserved_gsis")
    check_routes(state.routing, PINS)
    check(state.irqchip_mode != IRQCHIP_NONE or not state.routing, "routes without an irqchip")
    check(full or not any(isinstance(route, PinRoute) for route in state.routing), "routes to pins without an IOAPIC")
    check((state.chips is not None) == full, "chips go with a full irqchip")
    check(full or state.pit is None, "a PIT without a PIC")
    saving.unique([vcpu.vcpu for vcpu in state.vcpus], "vCPUs")
    check(not state.disabled_quirks & ~QUIRKS, f"disabled_quirks {state.disabled_quirks:#x}")
    in_range(state.max_vcpu_ids, 0, MAX_VCPU_ID + 1, "max_vcpu_ids")
    in_range(state.boot_vcpu, 0, state.max_vcpu_ids or MAX_VCPU_ID + 1, "boot_vcpu")
    check(not state.x2apic_api & ~X2APIC_API, f"x2apic_api {state.x2apic_api:#x}")
    in_range(state.apic_bus_ns, 0, 0 if state.irqchip_mode == IRQCHIP_NONE else MAX_BUS_NS, "apic_bus_ns")
    ids, split = state.max_vcpu_ids or MAX_VCPU_ID + 1, state.irqchip_mode == IRQCHIP_SPLIT
    for vcpu in state.vcpus:
        vcpu.check(ids=ids, full=full, split=split, bus_ns=state.apic_bus_ns or 1)
    in_range(state.mapped_vcpus, 0, len(state.vcpus), "mapped_vcpus")
    if state.chips is not None:
        _check_pins(state.chips, state)
    if state.pit is not None:
        state.pit.check(state.now_ns)


def _check_pins(chips: ChipsState, state: VmState) -> None:
    check(len(chips.primary) == len(chips.secondary) == i8259.STATE_SIZE, f"a PIC is not {i8259.STATE_SIZE} bytes")
    chips.check(len(state.vcpus))
    in_range(chips.delayed_eoi_ns, 0, state.now_ns + ioapic.DELAYED_EOI, "delayed_eoi_ns")
    check(len(chips.sources) == INPUTS, f"sources are not those of {INPUTS} inputs")
    known = 1 << SHARED | 1 << RESAMPLERS | (1 << PIT if state.pit is not None else 0)
    known |= sum(1 << source.source for source in state.sources)
    for sources in chips.sources:
        check(len(sources) <= MAX_SOURCE // 8 + 1, "too many line sources drive an input")
        check(not int.from_bytes(sources, "little") & ~known, "an unknown line source drives an input")
