"""The trace of a VM: a log for each filter, which every Watch with that filter reads at its own pace."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.trace_codec import Event, TraceEncoder, probes_message
from irqchipd.edge.trace_filter import Filter
from irqchipd.observe.observer import TRACEPOINTS, Observer
from irqchipd.vm.board import Probes
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm

MAX_FILTERS: Final = 16  # different ones at a time: each costs an event of the VM some time
BATCH: Final = 256  # events and probes in a batch: encoding them takes less than a piece of other work
_NOTHING: Final = Observer()


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
        self.last_time = 0
        self.asleep = False  # whether a reader found nothing
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
                log = self._logs[wanted] = _Log(wanted, self._limit)
                self._look_at_logs()
            reader = TraceReader(self, log)
            if wanted.probes:
                reader.probes = self.now(), self._probes
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
            setattr(self, name, self._recorder(name, wanting) if heard else getattr(_NOTHING, name))

    def _recorder(self, name: str, logs: tuple[_Log, ...]) -> Callable[..., None]:
        """What a tracepoint calls until the logs are others: a VM with a Watch spends most of its tracing here."""
        if self._probe_logs or self._choosy:
            return partial(self._record, name)
        if len(logs) == 1:
            return logs[0].recorder(name, self)
        return partial(self._append_all, logs, name)

    def _record(self, name: str, *values: int) -> None:
        if self._probe_logs and not self._will_look:
            self._will_look = True
            self._vm.at_the_end(self._look_at_probes)
        logs = self._of[name]
        if self._choosy:
            routes = self._vm.routes
            logs = tuple(log for log in logs if log.wanted.takes(name, values, routes))
        if logs:
            self._append(logs, name, values)

    def _look_at_probes(self) -> None:
        """The turn is over: log the probes that it has changed."""
        self._will_look = False
        with self._lock:
            if not self._probe_logs:
                return
            before, self._probes = self._probes, self._vm.probes()
            changed = {name: probe for name, probe in self._probes.items() if before.get(name) != probe}
            changed |= {name: (before[name][0], 0) for name in before.keys() - self._probes.keys()}
            if changed:
                self._append(self._probe_logs, None, changed)

    def now(self) -> int:
        """The time of another event."""
        now = time.monotonic_ns()
        self.last_time = now = now if now > self.last_time else self.last_time + 1
        return now

    def wake(self) -> None:
        """There is something to read, and a reader had found nothing."""
        self.asleep = False
        self._wake()

    def _append_all(self, logs: tuple[_Log, ...], name: str, *values: int) -> None:
        self._append(logs, name, values)

    def _append(self, logs: tuple[_Log, ...], name: str | None, values: tuple[int, ...] | Probes) -> None:
        now = self.now()
        for log in logs:
            log.append(now, name, values)
        if self.asleep:
            self.wake()

    def read(self, reader: TraceReader) -> pb.WatchResponse | None:
        """The next message for a reader, or None."""
        data = self.read_encoded(reader, 1)
        return None if data is None else pb.WatchResponse.FromString(data)

    def read_encoded(self, reader: TraceReader, most: int) -> bytes | None:
        """The next message for a reader, with others in `more` up to so many events and probes; or None.

        Events that were overwritten unread are counted as dropped.
        """
        with self._lock:
            log = reader.log
            while True:
                if (dropped := self._drop(reader)) > 0:
                    return pb.WatchResponse(dropped=pb.EventsDropped(count=dropped)).SerializeToString()
                if reader.probes is not None:
                    probes, reader.probes = reader.probes, None
                    return probes_message(*probes, everything=True)
                if reader.number == log.number:
                    self.asleep = True
                    if reader.number == log.number:  # what comes from here on wakes
                        return None
                if events := log.take(reader.number, most):
                    break  # else these were overwritten just now
            reader.number += len(events)
        return reader.encoder.batch(events)

    def _drop(self, reader: TraceReader) -> int:
        """Go on behind events that were overwritten, and return how many."""
        log, number = reader.log, reader.number
        if number >= log.number - self._limit:
            return 0
        # Changes say nothing to who has missed one before. The reader goes on with all probes as they are.
        reader.number = log.number - (0 if log.wanted.probes else self._limit)
        if log.wanted.probes:
            reader.probes = self.now(), self._probes
        return reader.number - number


class _Log:
    """The last events that a filter chooses: a ring, when there are as many as the limit.

    Events are added under the VM's lock and read without it: an event has its number, which shows whether another was
    written over it.
    """

    __slots__ = ("events", "limit", "number", "readers", "wanted")

    def __init__(self, wanted: Filter, limit: int) -> None:
        self.wanted = wanted
        self.limit = limit
        self.events: list[Event] = []
        self.number = 0  # of the next event
        self.readers: set[TraceReader] = set()

    def append(self, time_ns: int, name: str | None, values: tuple[int, ...] | Probes) -> None:
        """Add an event."""
        number = self.number
        if number < self.limit:
            self.events.append((number, time_ns, name, values))
        else:
            self.events[number % self.limit] = number, time_ns, name, values
        self.number = number + 1

    def recorder(self, name: str, trace: TraceLog) -> Callable[..., None]:
        """What adds an event of a tracepoint, as quickly as can be: here goes most of the time that one Watch takes."""
        events, limit, clock = self.events, self.limit, time.monotonic_ns

        def record(*values: int) -> None:
            now = clock()
            trace.last_time = now = now if now > trace.last_time else trace.last_time + 1
            number = self.number
            if number < limit:
                events.append((number, now, name, values))
            else:
                events[number % limit] = number, now, name, values
            self.number = number + 1
            if trace.asleep:
                trace.wake()

        return record

    def take(self, first: int, most: int) -> list[Event]:
        """The events from a number on, with at most so many probes, or the first; none if it was overwritten."""
        at = first % self.limit
        ring = self.events[at : at + min(most, self.number - first)]  # up to where the ring begins again
        if ring[0][0] != first:
            return []
        events: list[Event] = []
        for event in ring:
            most -= len(event[3]) if event[2] is None else 1
            if events and most < 0:
                break
            events.append(event)
        return events


class TraceReader:
    """A Watch's position in a log: the number of the next event."""

    __slots__ = ("_trace", "encoder", "log", "number", "probes")

    def __init__(self, trace: TraceLog, log: _Log) -> None:
        self._trace = trace
        self.encoder = TraceEncoder()
        self.log = log
        self.number = log.number
        self.probes: tuple[int, Probes] | None = None  # a time, and what they were: to be read next

    def read(self) -> pb.WatchResponse | None:
        """The next message for the client, or None."""
        return self._trace.read(self)

    def read_encoded(self, most: int) -> bytes | None:
        """See TraceLog.read_encoded."""
        return self._trace.read_encoded(self, most)


def filter_of(request: pb.WatchRequest) -> Filter:
    """What a request chooses: EINVAL."""
    return Filter(request.tracepoints, request.gsis, request.vcpus, request.probes)
