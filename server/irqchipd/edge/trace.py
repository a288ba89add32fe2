"""The trace of a VM: a log for each filter, which every Watch with that filter reads at its own pace."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.trace_filter import Filter
from irqchipd.observe.observer import FIELDS, TRACEPOINTS, Observer
from irqchipd.vm.board import Probes
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm

MAX_FILTERS: Final = 16  # different ones at a time: each costs an event of the VM some time
_LONG: Final = 0xFFFF_FFFF_FFFF_FFFF
_NOTHING: Final = Observer()

# A time, and a tracepoint with its values, or probes that have changed.
_Event = tuple[int, str, tuple[int, ...]] | tuple[int, None, Probes]


class TraceLog(Observer):
    """The last trace events of a VM: for each filter, as many as the limit.

    An event costs the same however many Watches share a filter, and nothing where no filter has its tracepoint. No two
    events have the same time. Its methods may be called from any thread. wake is called, from any thread, when there is
    something to read and a reader had found nothing.
    """

    def __init__(self, vm: Vm, limit: int, wake: Callable[[], None]) -> None:
        self._vm = vm
        self._limit = limit
        self._wake = wake
        self._lock = threading.Lock()
        self._logs: dict[Filter, _Log] = {}
        self._of: dict[str, tuple[_Log, ...]] = {}  # the logs that want a tracepoint
        self._choosy = False  # whether some log wants only some GSIs or vCPUs
        self._last_time = 0
        self._asleep = False  # whether a reader found nothing
        # What the probes were last, while some log wants them; and whether the end of this turn looks at them.
        self._probes: Probes = {}
        self._probe_logs: tuple[_Log, ...] = ()
        self._will_look = False

    def __bool__(self) -> bool:
        return bool(self._logs)

    def open(self, wanted: Filter) -> TraceReader:
        """A reader of the events from now on. ENOSPC where the VM's Watches have too many different filters, ENOENT."""
        return self._vm.in_turn(partial(self._open, wanted))

    def _open(self, wanted: Filter) -> TraceReader:
        with self._lock:
            log = self._logs.get(wanted)
            if log is None:
                if len(self._logs) >= MAX_FILTERS:
                    raise VmError(
                        errno.ENOSPC,
                        f"the VM has Watches with {MAX_FILTERS} different filters, the most there may be:"
                        " share one of these, or filter what you receive",
                    )
                if wanted.probes and not self._probe_logs:
                    self._probes = self._vm.probes()
                log = self._logs[wanted] = _Log(wanted)
                self._look_at_logs()
            reader = TraceReader(self, log)
            if wanted.probes:
                reader.probes = self._now(), self._probes
            log.readers.add(reader)
        return reader

    def close(self, reader: TraceReader) -> None:
        """A reader is not used any more."""
        with self._lock:
            reader.log.readers.discard(reader)
            if not reader.log.readers and self._logs.get(reader.log.wanted) is reader.log:
                del self._logs[reader.log.wanted]
                self._look_at_logs()

    def _look_at_logs(self) -> None:
        logs = tuple(self._logs.values())
        self._probe_logs = tuple(log for log in logs if log.wanted.probes)
        self._choosy = any(log.wanted.gsis or log.wanted.vcpus for log in logs)
        self._of = {name: tuple(log for log in logs if name in log.wanted.tracepoints) for name in TRACEPOINTS}
        for name, wanting in self._of.items():
            heard = bool(wanting or self._probe_logs)
            setattr(self, name, partial(self._record, name) if heard else getattr(_NOTHING, name))

    def _record(self, name: str, *values: int) -> None:
        if self._probe_logs and not self._will_look:
            self._will_look = True
            self._vm.at_the_end(self._look_at_probes)
        with self._lock:
            logs = self._of[name]
            if self._choosy:
                routes = self._vm.routes
                logs = tuple(log for log in logs if log.wanted.takes(name, values, routes))
            if not logs:
                return
            awake = self._append(logs, (self._now(), name, values))
        if not awake:
            self._wake()

    def _look_at_probes(self) -> None:
        """The turn is over: log the probes that it has changed."""
        self._will_look = False
        with self._lock:
            if not self._probe_logs:
                return
            before, self._probes = self._probes, self._vm.probes()
            changed = {name: probe for name, probe in self._probes.items() if before.get(name) != probe}
            changed |= {name: (before[name][0], 0) for name in before.keys() - self._probes.keys()}
            awake = not changed or self._append(self._probe_logs, (self._now(), None, changed))
        if not awake:
            self._wake()

    def _now(self) -> int:
        now = time.monotonic_ns()
        self._last_time = now = now if now > self._last_time else self._last_time + 1
        return now

    def _append(self, logs: tuple[_Log, ...], event: _Event) -> bool:
        """Log an event; False where a reader has to be woken."""
        for log in logs:
            if log.number < self._limit:
                log.events.append(event)
            else:
                log.events[log.number % self._limit] = event
            log.number += 1
        asleep, self._asleep = self._asleep, False
        return not asleep

    def read(self, reader: TraceReader) -> pb.WatchResponse | None:
        """The next message for a reader, or None. Events that were overwritten unread are counted as dropped."""
        with self._lock:
            log = reader.log
            oldest = max(log.number - self._limit, 0)
            if reader.number < oldest:
                # Changes say nothing to who has missed one before. The reader goes on with all probes as they are.
                upto = log.number if log.wanted.probes else oldest
                dropped, reader.number = upto - reader.number, upto
                if log.wanted.probes:
                    reader.probes = self._now(), self._probes
                return pb.WatchResponse(dropped=pb.EventsDropped(count=dropped))
            if reader.probes is not None:
                probes, reader.probes = reader.probes, None
                return _probes_message(*probes, everything=True)
            if reader.number == log.number:
                self._asleep = True
                return None
            event = log.events[reader.number % self._limit]
            reader.number += 1
        if event[1] is None:
            return _probes_message(event[0], event[2])
        time_ns, name, values = event
        fields = [
            pb.TraceField(name=field, value=int(value) & _LONG)
            for field, value in zip(FIELDS[name], values, strict=True)
        ]
        return pb.WatchResponse(event=pb.TraceEvent(time_ns=time_ns, tracepoint=name, fields=fields))


def _probes_message(time_ns: int, probes: Probes, everything: bool = False) -> pb.WatchResponse:
    changed = [
        pb.Probe(name=name, width=width, value=value.to_bytes((width + 7) // 8, "little"))
        for name, (width, value) in probes.items()
    ]
    return pb.WatchResponse(probes=pb.ProbesChanged(time_ns=time_ns, probes=changed, all=everything))


class _Log:
    """The last events that a filter chooses: a ring, when there are as many as the limit."""

    __slots__ = ("events", "number", "readers", "wanted")

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.events: list[_Event] = []
        self.number = 0  # of the next event
        self.readers: set[TraceReader] = set()


class TraceReader:
    """A Watch's position in a log: the number of the next event."""

    __slots__ = ("_trace", "log", "number", "probes")

    def __init__(self, trace: TraceLog, log: _Log) -> None:
        self._trace = trace
        self.log = log
        self.number = log.number
        self.probes: tuple[int, Probes] | None = None  # a time, and what they were: to be read next

    def read(self) -> pb.WatchResponse | None:
        """The next message for the client, or None."""
        return self._trace.read(self)


def filter_of(request: pb.WatchRequest) -> Filter:
    """What a request chooses: EINVAL."""
    return Filter(request.tracepoints, request.gsis, request.vcpus, request.probes)
