"""A recording as a VCD file (IEEE 1364, 18.2), through pyvcd, and what GTKWave and Surfer are to show of it.

The scopes are the VM, and in it `lines` and the chips. A line is 1 while a source drives it high; with `_sources`
added, its name is that of its sources' bitmap. Registers with a bit for each pin or vector have a wire for each bit
that was ever set, too: `irr_52`, for example. `in_service` is a local APIC's vector in service with the highest
priority, 0 for none. Where events were lost, every value is unknown until the next ones came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

from irqchip_client._events import EventsDropped, ProbesChanged, TraceEvent
from irqchip_client.waves.recording import Recording, bits_of, is_line

_WIDE = 16  # registers of more bits have a wire for each bit that is used
_WIRES_OF = frozenset({"irr", "isr", "remote_irr", "pending", "active", "line"})
_COUNTS = ("lost", "coalesced")
_COUNT_BITS = 32

# A scope and a name.
Name = tuple[str, str]
_Change = tuple[int, Name, int | None]


class Waves:
    """The variables of a recording and their changes."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._top = re.sub(r"\W", "_", recording.vm) or "vm"
        self.widths: dict[Name, int] = {}
        for item in recording:
            if isinstance(item, ProbesChanged):
                for name, probe in item.probes.items():
                    for variable, width in self._variables(name, probe.width, probe.value):
                        self.widths[variable] = max(width, self.widths.get(variable, 1))
        for count in _COUNTS:
            self.widths[self._top, count] = _COUNT_BITS

    def _variables(self, name: str, width: int, value: int) -> Iterator[tuple[Name, int]]:
        if is_line(name):
            scope, line = f"{self._top}.lines", name.replace(".", "_")
            yield (scope, line), 1
            yield (scope, f"{line}_sources"), width
            return
        chip, _, register = name.rpartition(".")
        scope = f"{self._top}.{chip}"
        yield (scope, register), width
        if register in _WIRES_OF and width > _WIDE:
            for bit in bits_of(value):
                yield (scope, f"{register}_{bit}"), 1
        if register == "isr":
            yield (scope, "in_service"), 8

    def changes(self) -> Iterator[_Change]:
        """The changes in order: nanoseconds since the beginning, the variable, and its value; None: unknown."""
        start = self._recording.first_ns or 0
        counts = dict.fromkeys(_COUNTS, 0)
        time = 0
        for item in self._recording:
            if isinstance(item, EventsDropped):
                counts["lost"] += item.count
                time += 1
                yield from ((time, variable, None) for variable in self.widths if variable[1] not in _COUNTS)
                yield time, (self._top, "lost"), counts["lost"]
                continue
            time = max(item.time_ns - start, time)
            if isinstance(item, TraceEvent):
                if item.fields.get("coalesced"):
                    counts["coalesced"] += 1
                    yield time, (self._top, "coalesced"), counts["coalesced"]
                continue
            values = {name: probe.value for name, probe in item.probes.items()}
            if item.all:  # lines that are low are left out
                for scope, variable in self.widths:
                    if scope == f"{self._top}.lines":
                        yield time, (scope, variable), 0
            for name, value in values.items():
                for changed, to in self._values(name, value):
                    yield time, changed, to

    def _values(self, name: str, value: int) -> Iterator[tuple[Name, int]]:
        if is_line(name):
            scope, line = f"{self._top}.lines", name.replace(".", "_")
            yield (scope, line), int(value != 0)
            yield (scope, f"{line}_sources"), value
            return
        chip, _, register = name.rpartition(".")
        scope = f"{self._top}.{chip}"
        yield (scope, register), value
        if register in _WIRES_OF:
            prefix = f"{register}_"
            for other_scope, variable in self._bits(scope, prefix):
                yield (other_scope, variable), value >> int(variable.removeprefix(prefix)) & 1
        if register == "isr":
            yield (scope, "in_service"), max(value.bit_length() - 1, 0)

    def _bits(self, scope: str, prefix: str) -> list[Name]:
        if not hasattr(self, "_wires"):
            self._wires: dict[Name, list[Name]] = {}
            for known in self.widths:
                if found := re.fullmatch(r"(\w+_)\d+", known[1]):
                    self._wires.setdefault((known[0], found[1]), []).append(known)
        return self._wires.get((scope, prefix), [])


def write_vcd(recording: Recording, file: IO[str]) -> Waves:
    """Write the VCD file."""
    from vcd import VCDWriter

    waves = Waves(recording)
    comment = f"irqchipd: VM {recording.vm}"
    with VCDWriter(file, timescale="1 ns", comment=comment, version="irqchipctl record") as writer:
        variables: dict[Name, Any] = {}
        for (scope, name), width in sorted(waves.widths.items(), key=_by_number):
            init = 0 if name in _COUNTS else "x"
            variables[scope, name] = writer.register_var(scope, name, "wire", size=width, init=init)
        time = 0
        for time, variable, value in waves.changes():
            writer.change(variables[variable], time, "x" if value is None else value)
        writer.close(time + 1)
    return waves


def _by_number(variable: tuple[Name, int]) -> tuple[Any, ...]:
    """The order in which the files have the variables: numbers in names count as numbers."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", ".".join(variable[0])))


def _shown(waves: Waves) -> dict[str, list[tuple[str, int]]]:
    """The scopes with the variables to show, and their widths: those with a bit for each vector only by their wires."""
    shown: dict[str, list[tuple[str, int]]] = {}
    for (scope, name), width in sorted(waves.widths.items(), key=_by_number):
        if width <= _COUNT_BITS or name.endswith("_sources"):
            shown.setdefault(scope, []).append((name, width))
    return shown


def write_gtkw(waves: Waves, vcd_path: str, file: IO[str]) -> None:
    """Write GTKWave's save file: `gtkwave FILE.gtkw` shows the lines and the chips, each in a group."""
    from vcd.gtkw import GTKWSave

    save = GTKWSave(file)
    save.dumpfile(vcd_path)
    for scope, variables in _shown(waves).items():
        with save.group(scope.split(".", 1)[-1], closed=scope.count(".") > 0 and not scope.endswith(".lines")):
            for name, width in variables:
                bits = f"[{width - 1}:0]" if width > 1 else ""
                decimal = name in (*_COUNTS, "in_service")
                save.trace(f"{scope}.{name}{bits}", datafmt="dec" if decimal else "bin" if width <= 8 else "hex")


def write_surfer(waves: Waves, file: IO[str]) -> None:
    """Write Surfer's commands: `surfer -c FILE.sucl FILE.vcd` shows the same."""
    for scope, variables in _shown(waves).items():
        file.write(f"divider_add {scope}\n")
        for name, _ in variables:
            file.write(f"variable_add {scope}.{name}\n")
    file.write("zoom_fit\n")
