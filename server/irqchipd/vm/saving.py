"""Saving, restoring and checking the state that is common to all architectures.

A snapshot may come from anywhere. Every value that no VM can have had is refused, so that nothing fails later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from irqchipd.chips.saved import StateError, check, in_range
from irqchipd.vm.clock import Clock, Deadlines, RealClock, VirtualClock
from irqchipd.vm.errors import invalid
from irqchipd.vm.notices import MAX_UNREPORTED
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.snapshot import CLOCK_REAL, CLOCK_VIRTUAL, SourceState, VmState
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


def save_source(source: LineSource) -> SourceState:
    """A line source."""
    return SourceState(
        source=source.number,
        client=source.client,
        resampled_gsis=dict(source.resampled),
        asserted=source.asserted.to_bytes((source.asserted.bit_length() + 7) // 8, "little"),
    )


def clock_of(state: VmState, deadlines: Deadlines) -> Clock:
    """The clock of a saved VM, which continues from the saved time."""
    return VirtualClock(state.now_ns) if state.clock == CLOCK_VIRTUAL else RealClock(deadlines, state.now_ns)


def restore_source(source: LineSource, state: SourceState) -> None:
    """Restore a new source from saved state; it waits for its Session."""
    source.detached = True
    source.asserted = int.from_bytes(state.asserted, "little")
    source.resampled = dict(state.resampled_gsis)


def unique(values: Collection[int], what: str) -> None:
    """Refuse duplicate numbers."""
    check(len(set(values)) == len(values), f"{what} are there twice")


def check_state(
    state: VmState, max_vcpus: int, resamples: bool, check_chips: Callable[[VmState], None], lines: int = MAX_GSIS
) -> None:
    """Refuse a state that no VM can have: EINVAL. check_chips is an architecture's; lines, how many lines it has."""
    try:
        check(state.clock in (CLOCK_REAL, CLOCK_VIRTUAL), f"clock {state.clock}")
        in_range(state.now_ns, 0, MAX_TIME, "now_ns")
        check(len(state.vcpus) <= max_vcpus, f"{len(state.vcpus)} vCPUs; at most {max_vcpus} are allowed")
        check(len(state.sources) <= MAX_SOURCES, f"{len(state.sources)} sources; a VM has at most {MAX_SOURCES}")
        unique([source.source for source in state.sources], "sources")
        size = sum(_check_source(source, resamples, lines) for source in state.sources)
        check(
            size <= SOURCES_BYTES, f"sources hold {size} bytes of names and GSIs; at most {SOURCES_BYTES} are allowed"
        )
        _check_numbers(state.asserted_gsis, lines)
        check_chips(state)
    except StateError as contradiction:
        raise invalid(f"no VM has this state: {contradiction}") from None


def _check_numbers(gsis: Collection[int], most: int) -> None:
    check(len(gsis) <= most, f"{len(gsis)} GSIs; there are {most}")
    for gsi in (min(gsis), max(gsis)) if gsis else ():
        in_range(gsi, 0, most - 1, "a GSI")


def _check_source(source: SourceState, resamples: bool, lines: int) -> int:
    """Check a source; return its charge of SOURCES_BYTES."""
    in_range(source.source, SHARED + 1, MAX_SOURCE, "a source")
    check(source.source not in (PIT, RESAMPLERS), f"source {source.source} is not a Session's")
    name = source.client
    check(len(name) <= MAX_CLIENT_NAME and name.isprintable(), f"client {name[:MAX_CLIENT_NAME]!r}")
    check(len(source.asserted) <= lines // 8, f"asserted has more than {lines} bits")
    _check_numbers(source.resampled_gsis, MAX_GSIS)
    for count in source.resampled_gsis.values():
        in_range(count, 0, MAX_UNREPORTED, "unreported acknowledgements")
    check(resamples or not source.resampled_gsis, "GSIs are resampled, but no chip reports the end of an interrupt")
    highest = int.from_bytes(source.asserted, "little").bit_length() - 1
    return bytes_of(name, reach_for(highest, lines), len(source.resampled_gsis))
