"""A recording as a timeline: Chrome's JSON trace format, which https://ui.perfetto.dev opens.

Processes are the lines, the chips, and each vCPU; their threads are a line, a pin or a vector. A slice is a line that
is asserted, an interrupt that is pending, and one in service. Arrows lead from a line to what became pending with it,
to its service, and to its end. Counters show lost and coalesced interrupts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import count
from typing import IO, Any

from irqchip_client._events import EventsDropped, ProbesChanged, TraceEvent
from irqchip_client.waves.recording import Recording, bits_of, is_line

_LINES, _COUNTERS, _FIRST_CHIP = 1, 2, 10  # processes
_PENDING, _IN_SERVICE, _END = "pending", "in service", "EOI"
_STAGES = {"irr": _PENDING, "isr": _IN_SERVICE, "pending": _PENDING, "active": _IN_SERVICE, "remote_irr": "remote IRR"}
_SLICE, _FLOW, _COUNTER = range(1, 4)  # the order of events of the same time


@dataclass(slots=True)
class _Slice:
    """A slice that has begun; flows are the arrows that go through it."""

    begin: int
    pid: int
    tid: int
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    flow: int | None = None


# A chip and the bit of one of its registers.
_Place = tuple[str, str, int]


class _Timeline:
    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._start = recording.first_ns or 0
        self._events: list[tuple[int, int, int, dict[str, Any]]] = []
        self._order = count()
        self._open: dict[str | _Place, _Slice] = {}
        self._pids: dict[str, int] = {}
        self._tids: dict[tuple[int, str], int] = {}
        self._metadata: list[dict[str, Any]] = []
        self._values: dict[str, int] = {}
        self._flows = count(1)
        self._counts = {"lost events": 0, "coalesced interrupts": 0}
        # The line that an operation drives now, and the interrupts that it makes pending.
        self._line: str | None = None
        self._accepting = False
        self._causes: dict[_Place, str] = {}

    def build(self) -> list[dict[str, Any]]:
        self._process("lines", _LINES)
        self._process("interrupts not delivered", _COUNTERS)
        for name in self._counts:
            self._count(0, name, 0)
        last = 0
        for item in self._recording:
            if isinstance(item, EventsDropped):
                self._count(last, "lost events", item.count)
                self._end_all(last)
                continue
            last = max(item.time_ns - self._start, last)
            if isinstance(item, TraceEvent):
                self._event(last, item)
            else:
                self._changed(last, item)
        self._end_all(self._recording.last_ns - self._start)
        self._events.sort(key=lambda event: event[:3])
        return [*self._metadata, *(event for *_, event in self._events)]

    # The recorded events and changes.

    def _event(self, time: int, event: TraceEvent) -> None:
        fields = event.fields
        match event.tracepoint:
            case "kvm_set_irq":
                self._line, self._accepting = f"gsi{fields['gsi']}", bool(fields["level"])
            case "kvm_irq_line" | "kvm_pio" | "kvm_mmio" | "kvm_msr" | "kvm_apic_ipi" | "kvm_eoi":
                self._line, self._accepting = None, False
            case "vgic_update_irq_pending" if fields["level"]:
                spi = fields["intid"] - 32
                if spi >= 0:
                    self._causes["gic.spi", _PENDING, spi] = f"spi{spi}"
                else:
                    chip, intid = f"gic.cpu{fields['vcpu']}", fields["intid"]
                    self._causes[chip, _PENDING, intid] = f"vcpu{fields['vcpu']}.ppi{intid}"
            case "kvm_apic_accept_irq":
                place = f"lapic{fields['vcpu']}", _PENDING, fields["vector"]
                self._causes.pop(place, None)
                if self._line is not None and self._accepting:
                    self._causes[place] = self._line
            case "kvm_ioapic_set_irq":
                if self._line is not None:
                    self._causes["ioapic0", "remote IRR", fields["pin"]] = self._line
                self._accepting = False
            case "kvm_pic_set_irq" if self._line is not None:
                self._causes[f"pic{fields['chip']}", _PENDING, fields["pin"]] = self._line
        if fields.get("coalesced"):
            self._count(time, "coalesced interrupts", 1)

    def _changed(self, time: int, changed: ProbesChanged) -> None:
        values = {name: probe.value for name, probe in changed.probes.items()}
        if changed.all:
            values = dict.fromkeys(self._values, 0) | values
        before = {name: self._values.get(name, 0) for name in values}
        self._values.update(values)
        for name, value in values.items():
            if is_line(name) and value != before[name]:
                self._drive(time, name, value)
        # Ends come first, so that a vector is in service after it was pending.
        chips = [(name, *name.rpartition(".")[::2]) for name in values if not is_line(name)]
        ended: dict[_Place, _Slice] = {}
        for name, chip, register in chips:
            for bit in bits_of(before[name] & ~values[name]) if register in _STAGES else ():
                place = chip, _STAGES[register], bit
                if place in self._open:
                    ended[place] = self._end(time, place)
        for name, chip, register in chips:
            for bit in bits_of(values[name] & ~before[name]) if register in _STAGES else ():
                self._begin(time, (chip, _STAGES[register], bit), ended)
        for (chip, stage, bit), ended_slice in ended.items():
            if stage == _IN_SERVICE and ended_slice.flow is not None:
                self._instant(time, chip, bit, ended_slice.flow)

    def _drive(self, time: int, line: str, sources: int) -> None:
        asserted = self._open.get(line)
        if asserted is not None and not sources:
            self._end(time, line)
        elif asserted is not None:
            asserted.arguments["sources"] = sorted({*asserted.arguments["sources"], *bits_of(sources)})
        elif sources:
            tid = self._thread(_LINES, line)
            self._open[line] = _Slice(time, _LINES, tid, line, {"sources": list(bits_of(sources))})

    def _begin(self, time: int, place: _Place, ended: dict[_Place, _Slice]) -> None:
        chip, stage, bit = place
        pid = self._process(chip)
        name = self._bit_name(chip, bit)
        begun = _Slice(time, pid, self._thread(pid, f"{name} {stage}"), f"{name} {stage}", {"number": bit})
        self._open[place] = begun
        cause = self._causes.pop(place, None)
        pending = ended.get((chip, _PENDING, bit))
        if stage == _PENDING and cause is not None and cause in self._open:
            line = self._open[cause]
            begun.flow = next(self._flows)
            begun.arguments["line"] = cause
            self._flow("s", line.begin, line.pid, line.tid, begun.flow)
            self._flow("t", time, pid, begun.tid, begun.flow)
        elif stage == _IN_SERVICE and pending is not None:
            begun.flow = pending.flow
            if begun.flow is None:
                begun.flow = next(self._flows)
                self._flow("s", pending.begin, pending.pid, pending.tid, begun.flow)
            self._flow("t", time, pid, begun.tid, begun.flow)

    def _instant(self, time: int, chip: str, bit: int, flow: int) -> None:
        pid, name = self._process(chip), f"{self._bit_name(chip, bit)} {_END}"
        tid = self._thread(pid, _END)
        self._add(time, _SLICE, {"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": 0.001})
        self._flow("f", time, pid, tid, flow)

    def _end(self, time: int, which: str | _Place) -> _Slice:
        ended = self._open.pop(which)
        slice_ = {"ph": "X", "name": ended.name, "pid": ended.pid, "tid": ended.tid, "args": ended.arguments}
        self._add(ended.begin, _SLICE, slice_ | {"dur": max(time - ended.begin, 1) / 1000})
        return ended

    def _end_all(self, time: int) -> None:
        for which in list(self._open):
            self._end(time, which)
        self._values.clear()
        self._causes.clear()

    # The format's records.

    def _count(self, time: int, name: str, more: int) -> None:
        self._counts[name] += more
        self._add(time, _COUNTER, {"ph": "C", "name": name, "pid": _COUNTERS, "args": {"count": self._counts[name]}})

    def _flow(self, kind: str, time: int, pid: int, tid: int, number: int) -> None:
        flow = {"ph": kind, "name": "interrupt", "cat": "interrupt", "id": number, "pid": pid, "tid": tid}
        self._add(time, _FLOW, flow | ({"bp": "e"} if kind == "f" else {}))

    def _add(self, time: int, order: int, event: dict[str, Any]) -> None:
        self._events.append((time, order, next(self._order), event | {"ts": time / 1000}))

    def _process(self, chip: str, pid: int | None = None) -> int:
        if chip not in self._pids:
            pid = _FIRST_CHIP + len(self._pids) if pid is None else pid
            self._pids[chip] = pid
            name = re.sub(r"^(lapic|gic\.cpu)(\d+)$", r"vCPU \2 (\1\2)", chip)
            self._metadata.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        return self._pids[chip]

    def _thread(self, pid: int, name: str) -> int:
        if (pid, name) not in self._tids:
            tid = self._tids[pid, name] = len(self._tids) + 1
            self._metadata.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        return self._tids[pid, name]

    def _bit_name(self, chip: str, bit: int) -> str:
        if chip.startswith("lapic"):
            return f"vector {bit:#04x}"
        if chip.startswith("gic"):
            return f"SPI {bit}" if chip == "gic.spi" else f"INTID {bit}"
        return f"pin {bit}" if chip.startswith("ioapic") else f"IR{bit}"


def write_perfetto(recording: Recording, file: IO[str]) -> None:
    """Write the timeline."""
    events = _Timeline(recording).build()
    json.dump({"displayTimeUnit": "ns", "otherData": {"vm": recording.vm}, "traceEvents": events}, file)
