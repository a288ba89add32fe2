"""Saving and restoring what crosses chips; each chip saves, checks and resumes its own state.

A snapshot may come from anywhere. check_state refuses every value that no VM can have had, so that nothing fails later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from irqchipd.chips import i8259, ioapic
from irqchipd.chips.lapic_registers import QUIRKS
from irqchipd.chips.lapic_timer import MAX_BUS_NS
from irqchipd.chips.saved import StateError, check, in_range
from irqchipd.vm.board import Board
from irqchipd.vm.capabilities import (
    MAX_VCPU_ID,
    X2APIC_32BIT_IDS,
    X2APIC_API,
    X2APIC_NO_BROADCAST_QUIRK,
)
from irqchipd.vm.errors import invalid
from irqchipd.vm.notices import MAX_UNREPORTED
from irqchipd.vm.routing import INPUTS, MAX_GSIS, PinRoute, check_routes
from irqchipd.vm.snapshot import (
    CLOCK_REAL,
    CLOCK_VIRTUAL,
    IRQCHIP_FULL,
    IRQCHIP_NONE,
    IRQCHIP_SPLIT,
    ChipsState,
    SourceState,
    VmState,
)
from irqchipd.vm.sources import (
    MAX_CLIENT_NAME,
    MAX_SOURCES,
    PIT,
    RESAMPLERS,
    SHARED,
    SOURCES_BYTES,
    LineSource,
    bytes_of,
    reach_for,
)
from irqchipd.vm.turns import MAX_TIME

MAX_SOURCE: Final = 1 << 13


# Saving.


def save_capabilities(board: Board) -> dict[str, int]:
    """What capabilities have changed: fields of VmState."""
    apics = board.apics
    return {
        "disabled_quirks": QUIRKS & ~board.apics.quirks,
        "boot_vcpu": board.boot_vcpu,
        "max_vcpu_ids": board.max_vcpu_ids,
        "x2apic_api": apics.x2apic_format * X2APIC_32BIT_IDS | apics.no_broadcast_quirk * X2APIC_NO_BROADCAST_QUIRK,
        "apic_bus_ns": board.apic_bus_ns if board.has_irqchip else 0,
    }


def save_chips(board: Board) -> ChipsState | None:
    """The PICs, the IOAPIC, and which line sources drive their inputs."""
    pic, io = board.pic, board.ioapic
    if pic is None or io is None:
        return None
    return ChipsState(
        primary=pic.primary.pack(),
        secondary=pic.secondary.pack(),
        output=pic.output,
        delayed_eoi_ns=board.delayed_eoi.deadline,
        sources=tuple(sources.to_bytes((sources.bit_length() + 7) // 8, "little") for sources in board.sources),
        **io.save(),
    )


def save_source(source: LineSource) -> SourceState:
    """A line source."""
    return SourceState(
        source=source.number,
        client=source.client,
        resampled_gsis=dict(source.resampled),
        asserted=source.asserted.to_bytes((source.asserted.bit_length() + 7) // 8, "little"),
    )


# Restoring, from states that have been checked.


def restore_source(source: LineSource, state: SourceState) -> None:
    """Make a new source what was saved: its Session is yet to come."""
    source.detached = True
    source.asserted = int.from_bytes(state.asserted, "little")
    source.resampled = dict(state.resampled_gsis)


def restore_board(board: Board, state: VmState, sources: Iterable[LineSource]) -> None:
    """Make a new board what was saved."""
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
    for source in sources:
        for gsi in source.resampled:
            board.notices.resample(gsi, source)
    board.notices.update()
    for vcpu, cpu in zip(state.vcpus, board.cpus, strict=True):
        cpu.scanned = -1 if vcpu.scan else board.apics.scans


# Checking.


def _unique(values: Collection[int], what: str) -> None:
    check(len(set(values)) == len(values), f"{what} are there twice")


def check_state(state: VmState, max_vcpus: int) -> None:
    """Refuse a state that no VM can have: EINVAL."""
    try:
        _check_state(state, max_vcpus)
    except StateError as contradiction:
        raise invalid(f"no VM has this state: {contradiction}") from None


def _check_state(state: VmState, max_vcpus: int) -> None:
    check(state.clock in (CLOCK_REAL, CLOCK_VIRTUAL), f"clock {state.clock}")
    in_range(state.now_ns, 0, MAX_TIME, "now_ns")
    full = state.irqchip_mode == IRQCHIP_FULL
    check(state.irqchip_mode in (IRQCHIP_NONE, IRQCHIP_FULL, IRQCHIP_SPLIT), f"irqchip_mode {state.irqchip_mode}")
    in_range(state.reserved_gsis, 0, 0xFF if state.irqchip_mode == IRQCHIP_SPLIT else 0, "reserved_gsis")
    check_routes(state.routing)
    check(state.irqchip_mode != IRQCHIP_NONE or not state.routing, "routes without an irqchip")
    check(full or not any(isinstance(route, PinRoute) for route in state.routing), "routes to pins that are not here")
    check((state.chips is not None) == full, "chips go with a full irqchip")
    check(full or state.pit is None, "a PIT without a PIC")
    check(len(state.vcpus) <= max_vcpus, f"{len(state.vcpus)} vCPUs; at most {max_vcpus} are allowed")
    _unique([vcpu.vcpu for vcpu in state.vcpus], "vCPUs")
    check(not state.disabled_quirks & ~QUIRKS, f"disabled_quirks {state.disabled_quirks:#x}")
    in_range(state.max_vcpu_ids, 0, MAX_VCPU_ID + 1, "max_vcpu_ids")
    in_range(state.boot_vcpu, 0, state.max_vcpu_ids or MAX_VCPU_ID + 1, "boot_vcpu")
    check(not state.x2apic_api & ~X2APIC_API, f"x2apic_api {state.x2apic_api:#x}")
    in_range(state.apic_bus_ns, 0, 0 if state.irqchip_mode == IRQCHIP_NONE else MAX_BUS_NS, "apic_bus_ns")
    ids, split = state.max_vcpu_ids or MAX_VCPU_ID + 1, state.irqchip_mode == IRQCHIP_SPLIT
    for vcpu in state.vcpus:
        vcpu.check(ids=ids, full=full, split=split, bus_ns=state.apic_bus_ns or 1)
    in_range(state.mapped_vcpus, 0, len(state.vcpus), "mapped_vcpus")
    check(len(state.sources) <= MAX_SOURCES, f"{len(state.sources)} sources; a VM has at most {MAX_SOURCES}")
    _unique([source.source for source in state.sources], "sources")
    size = sum(_check_source(source, full) for source in state.sources)
    check(size <= SOURCES_BYTES, f"its sources hold {size} bytes of names and GSIs, and not {SOURCES_BYTES} or less")
    _check_gsis(state.asserted_gsis)
    if state.chips is not None:
        _check_chips(state.chips, state)
    if state.pit is not None:
        state.pit.check(state.now_ns)


def _check_gsis(gsis: Collection[int]) -> None:
    check(len(gsis) <= MAX_GSIS, f"{len(gsis)} GSIs; there are {MAX_GSIS}")
    for gsi in (min(gsis), max(gsis)) if gsis else ():
        in_range(gsi, 0, MAX_GSIS - 1, "a GSI")


def _check_source(source: SourceState, full: bool) -> int:
    """What it is charged of SOURCES_BYTES."""
    in_range(source.source, SHARED + 1, MAX_SOURCE, "a source")
    check(source.source not in (PIT, RESAMPLERS), f"source {source.source} is no Session's")
    name = source.client
    check(len(name) <= MAX_CLIENT_NAME and name.isprintable(), f"client {name[:MAX_CLIENT_NAME]!r}")
    check(len(source.asserted) <= MAX_GSIS // 8, f"asserted has more than {MAX_GSIS} bits")
    _check_gsis(source.resampled_gsis)
    for count in source.resampled_gsis.values():
        in_range(count, 0, MAX_UNREPORTED, "unreported acknowledgements")
    check(full or not source.resampled_gsis, "GSIs are resampled without a PIC and IOAPIC")
    highest = int.from_bytes(source.asserted, "little").bit_length() - 1
    return bytes_of(name, reach_for(highest), len(source.resampled_gsis))


def _check_chips(chips: ChipsState, state: VmState) -> None:
    check(len(chips.primary) == len(chips.secondary) == i8259.STATE_SIZE, f"a PIC is not {i8259.STATE_SIZE} bytes")
    chips.check(len(state.vcpus))
    in_range(chips.delayed_eoi_ns, 0, state.now_ns + ioapic.DELAYED_EOI, "delayed_eoi_ns")
    check(len(chips.sources) == INPUTS, f"sources are not those of {INPUTS} inputs")
    known = 1 << SHARED | 1 << RESAMPLERS | (1 << PIT if state.pit is not None else 0)
    known |= sum(1 << source.source for source in state.sources)
    for sources in chips.sources:
        check(len(sources) <= MAX_SOURCE // 8 + 1, "too many line sources drive an input")
        check(not int.from_bytes(sources, "little") & ~known, "an unknown line source drives an input")
