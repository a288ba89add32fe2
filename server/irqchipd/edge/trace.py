"""The trace of a VM: one log, which every Watch reads at its own pace."""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.observe.observer import TRACEPOINTS, Observer
from irqchipd.vm.errors import invalid, quoted

_FIELDS = {name: tuple(inspect.signature(getattr(Observer, name)).parameters)[1:] for name in TRACEPOINTS}


class TraceLog(Observer):
    """The last trace events of a VM, as many as the limit. An event costs the same however many Watches read it.

    Its methods may be called from any thread. wake is called, from any thread, when there is something to read and a
    reader had found nothing.
    """

    def __init__(self, limit: int, wake: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._lock = threading.Lock()
        self._events: list[tuple[int, str, tuple[int, ...]]] = []  # a ring, when there are as many as the limit
        self._number = 0  # of the next event
        self._overwritten: Counter[str] = Counter()  # how many events of each tracepoint were overwritten
        self._asleep = False  # whether a reader found nothing
        self._readers: set[TraceReader] = set()
        self._wanted: frozenset[str] = frozenset()
        for name in TRACEPOINTS:
            setattr(self, name, partial(self._record, name))

    def __bool__(self) -> bool:
        return bool(self._readers)

    def open(self, tracepoints: Iterable[str]) -> TraceReader:
        """A reader of the events from now on, of some tracepoints or all. EINVAL for any other name."""
        wanted = frozenset(tracepoints) or frozenset(TRACEPOINTS)
        for name in wanted:
            if name not in _FIELDS:
                raise invalid(f"{quoted(name)} is not a tracepoint: use one of {', '.join(TRACEPOINTS)}")
        with self._lock:
            counted = self._overwritten + Counter(name for _, name, _ in self._events)
            reader = TraceReader(self, wanted, self._number, counted)
            self._readers.add(reader)
            self._look_at_readers()
        return reader

    def close(self, reader: TraceReader) -> None:
        """A reader is not used any more."""
        with self._lock:
            self._readers.discard(reader)
            self._look_at_readers()

    def _look_at_readers(self) -> None:
        self._wanted = frozenset().union(*(reader.wanted for reader in self._readers))

    def _record(self, name: str, *values: int) -> None:
        if name not in self._wanted:
            return
        event = time.monotonic_ns(), name, values
        with self._lock:
            number = self._number
            self._number = number + 1
            if number < self._limit:
                self._events.append(event)
            else:
                place = number % self._limit
                self._overwritten[self._events[place][1]] += 1
                self._events[place] = event
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._wake()

    def read(self, reader: TraceReader) -> pb.WatchResponse | None:
        """The next message for a reader, or None. Events that were overwritten unread are counted as dropped."""
        with self._lock:
            oldest = max(self._number - self._limit, 0)
            if reader.number < oldest:
                reader.number = oldest
                dropped = sum(self._overwritten[name] - reader.counted[name] for name in reader.wanted)
                reader.counted = self._overwritten.copy()
                if dropped:
                    return pb.WatchResponse(dropped=pb.EventsDropped(count=dropped))
            while reader.number < self._number:
                event = self._events[reader.number % self._limit]
                reader.number += 1
                reader.counted[event[1]] += 1
                if event[1] in reader.wanted:
                    break
            else:
                self._asleep = True
                return None
        time_ns, name, values = event
        fields = [
            pb.TraceField(name=field, value=int(value)) for field, value in zip(_FIELDS[name], values, strict=True)
        ]
        return pb.WatchResponse(event=pb.TraceEvent(time_ns=time_ns, tracepoint=name, fields=fields))


class TraceReader:
    """A Watch's position in the log: the number of the next event, and how many of each tracepoint came before."""

    __slots__ = ("_log", "counted", "number", "wanted")

    def __init__(self, log: TraceLog, wanted: frozenset[str], number: int, counted: Counter[str]) -> None:
        self._log = log
        self.wanted = wanted
        self.number = number
        self.counted = counted

    def read(self) -> pb.WatchResponse | None:
        """The next message for the client, or None."""
        return self._log.read(self)
