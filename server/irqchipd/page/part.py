"""A part of a VM's state, and the common parts of several architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from irqchipd.vm.snapshot import SourceState, VmState
from irqchipd.vm.sources import SHARED, numbers_of
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET, MpState

# The part's name; its raw values, to compare; and the function that makes JSON values of them.
Part = tuple[str, Any, Callable[[Any], Any]]

MOST_LINES: Final = 256  # the most that are shown
_SAFE: Final = (1 << 53) - 1  # JavaScript's numbers are exact up to here


def number(value: int) -> int | str:
    """A value as JSON: hexadecimal text if JavaScript's numbers can't hold it."""
    return value if -_SAFE <= value <= _SAFE else hex(value)


def mp_state(value: int) -> str:
    """A run state's name."""
    return MpState(value - MP_STATE_OFFSET).name.lower().replace("_", " ")


def high_lines(state: VmState) -> dict[int, list[int]]:
    """The high lines, each with the line sources that drive it."""
    found = {line: [SHARED] for line in state.asserted_gsis}
    for source in state.sources:
        for line in numbers_of(int.from_bytes(source.asserted, "little")):
            found.setdefault(line, []).append(source.source)
    return found


def line_list(found: dict[int, list[int]], idle: Iterable[int], name: Callable[[int], str]) -> list[Any]:
    """Lines as JSON: all high lines, and others up to MOST_LINES."""
    shown = sorted(found)[:MOST_LINES]
    shown += [line for line in sorted(set(idle)) if line not in found][: MOST_LINES - len(shown)]
    return [{"line": line, "name": name(line), "sources": found.get(line, [])} for line in sorted(shown)]


def source_list(sources: tuple[SourceState, ...]) -> list[Any]:
    """Sessions' line sources as JSON."""
    return [{"source": source.source, "client": source.client} for source in sources[:MOST_LINES]]
