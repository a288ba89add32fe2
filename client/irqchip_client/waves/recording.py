"""A recording: the items of a Watch with probes, in a temporary file, and the levels of the lines that follow."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from irqchip_client._events import EventsDropped, Probe, ProbesChanged, TraceEvent
from irqchip_client._model import Architecture

Item = TraceEvent | EventsDropped | ProbesChanged

LINE_BITS = 64


class Recording:
    """The recorded items, in order. Reading begins anew each time; the end of the `with` deletes the temporary file."""

    def __init__(self, vm: str, architecture: Architecture) -> None:
        self.vm = vm
        self.architecture = architecture
        self.events = 0
        self.lost = 0
        self.first_ns: int | None = None
        self.last_ns = 0
        self._file = tempfile.TemporaryFile(prefix="irqchipctl-")  # noqa: SIM115 - __exit__ closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def add(self, item: Item) -> None:
        """Record an item of a Watch."""
        if isinstance(item, EventsDropped):
            self.lost += item.count
        else:
            self.events += isinstance(item, TraceEvent)
            self.last_ns = item.time_ns
            self.first_ns = item.time_ns if self.first_ns is None else self.first_ns
        pickle.dump(item, self._file, pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[Item]:
        """The recorded items. A line's edges within an operation, which no probe shows, are ProbesChanged here, too."""
        lines: dict[str, int] = {}
        self._file.seek(0)
        while True:
            try:
                item = pickle.load(self._file)
            except EOFError:
                return
            yield item
            if isinstance(item, ProbesChanged):
                if item.all:
                    lines.clear()
                lines.update({name: probe.value for name, probe in item.probes.items() if is_line(name)})
            elif isinstance(item, TraceEvent) and (edge := self._edge(item, lines)) is not None:
                yield edge

    def _edge(self, event: TraceEvent, lines: dict[str, int]) -> ProbesChanged | None:
        """The change of a line's sources that an event of an x86 VM is."""
        if event.tracepoint != "kvm_set_irq" or self.architecture != Architecture.X86:
            return None
        name, source = f"gsi{event.fields['gsi']}", 1 << event.fields["source"]
        before = lines.get(name, 0)
        now = before | source if event.fields["level"] else before & ~source
        if now == before:
            return None
        lines[name] = now
        return ProbesChanged(event.time_ns, {name: Probe(max(LINE_BITS, now.bit_length()), now)})


def is_line(name: str) -> bool:
    """Whether a probe is a line: its value has a bit for each line source."""
    return name.startswith(("gsi", "spi", "vcpu"))


def bits_of(value: int) -> Iterator[int]:
    """The numbers of the bits in a value, ascending."""
    while value:
        bit = value & -value
        yield bit.bit_length() - 1
        value ^= bit
