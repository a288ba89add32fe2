"""Queues between what happens in a VM and a client that is told: bounded, and counting what they drop."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import event_to
from irqchipd.edge.records import event_record
from irqchipd.observe.observer import TRACEPOINTS, Observer
from irqchipd.vm.errors import invalid, quoted
from irqchipd.vm.events import Doorbell, Event, GsiMasked, GsiResampled, RegionAccess, RegionsLost, VcpuSignal

_T = TypeVar("_T")


class _Bounded(Generic[_T]):
    """A queue of so many; where more would be, there is a count of what was dropped, in its place."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[_T | int] = deque()
        self._kept = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T) -> bool:
        """Whether there was room."""
        if self._kept < self._limit:
            self._kept += 1
            self._items.append(item)
            return True
        last = self._items[-1]
        if isinstance(last, int):
            self._items[-1] = last + 1
        else:
            self._items.append(1)
        return False

    def take(self) -> _T | int:
        """The first, or how many were dropped here."""
        item = self._items.popleft()
        if not isinstance(item, int):
            self._kept -= 1
        return item


class EventQueue:
    """A Session's events. wake is called, from any thread, when there is something to take."""

    def __init__(self, limit: int, wake: Callable[[], None], on_dropped: Callable[[], None]) -> None:
        self._wake = wake
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        # Events of which one stands for several, with their counts, by what they are about; the oldest is the first.
        # They need no bound but the numbers of vCPUs, vectors and GSIs.
        self._merged: dict[object, tuple[Event, int]] = {}
        self._signals: _Bounded[VcpuSignal] = _Bounded(limit)
        # What happens to regions, in order: with how often, of doorbells, and whether it is told in the short form.
        self._accesses: deque[_Told] = deque()
        self._limit = limit
        self._doorbells = 0
        self._turn = 0

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        with self._lock:
            if isinstance(event, VcpuSignal):
                if not self._signals.put(event):
                    self._on_dropped()
            else:
                subject = _subject(event)
                _, count = self._merged.get(subject, (event, 0))
                self._merged[subject] = event, count + (event.count if isinstance(event, GsiResampled) else 1)
        self._wake()

    def put_access(self, event: Event, short: bool = False) -> None:
        """Queue what happened to a region; short is whether it is told as a record."""
        with self._lock:
            accesses = self._accesses
            if isinstance(event, Doorbell):
                if accesses and accesses[-1].event == event:
                    accesses[-1].count += 1
                elif self._doorbells < self._limit:
                    self._doorbells += 1
                    accesses.append(_Told(event, short))
                else:
                    if not accesses or accesses[-1].event is not None:
                        accesses.append(_Told(None, short, 0))
                    accesses[-1].count += 1
                    self._on_dropped()
            elif isinstance(event, RegionAccess | RegionsLost):
                accesses.append(_Told(event, short))
        self._wake()

    def __bool__(self) -> bool:
        return bool(self._accesses or self._merged or self._signals)

    def take(self) -> pb.Event | bytes | None:
        """The next message for the client, or None."""
        with self._lock:
            # The three kinds take turns: none waits for ever while others keep coming.
            for kind in (self._turn, self._turn + 1, self._turn + 2):
                taken = _KINDS[kind % 3](self)
                if taken is not None:
                    self._turn = (kind + 1) % 3
                    return taken
        return None

    def _take_access(self) -> pb.Event | bytes | None:
        if not self._accesses:
            return None
        told = self._accesses.popleft()
        event = told.event
        if event is None:
            return pb.Event(events_dropped=pb.EventsDropped(count=told.count))
        if isinstance(event, Doorbell):
            self._doorbells -= 1
        if told.short and isinstance(event, Doorbell | RegionAccess):
            return event_record(event, told.count)
        return event_to(event, told.count)

    def _take_signal(self) -> pb.Event | None:
        if not self._signals:
            return None
        signal = self._signals.take()
        return pb.Event(events_dropped=pb.EventsDropped(count=signal)) if isinstance(signal, int) else event_to(signal)

    def _take_merged(self) -> pb.Event | None:
        return event_to(*self._merged.pop(next(iter(self._merged)))) if self._merged else None


@dataclass(slots=True)
class _Told:
    event: Event | None  # None: doorbells that found no room
    short: bool
    count: int = 1


_KINDS = (EventQueue._take_access, EventQueue._take_merged, EventQueue._take_signal)


def _subject(event: Event) -> object:
    """What an event is about: a later one about the same is merged into it."""
    return (type(event), event.gsi) if isinstance(event, GsiMasked | GsiResampled) else event


_FIELDS = {name: tuple(inspect.signature(getattr(Observer, name)).parameters)[1:] for name in TRACEPOINTS}


class TraceQueue(Observer):
    """A Watch's trace events."""

    def __init__(self, tracepoints: Iterable[str], limit: int, wake: Callable[[], None]) -> None:
        wanted = list(tracepoints) or TRACEPOINTS
        for name in wanted:
            if name not in _FIELDS:
                raise invalid(f"{quoted(name)} is no tracepoint; there are {', '.join(TRACEPOINTS)}")
            setattr(self, name, partial(self._record, name))
        self._wake = wake
        self._lock = threading.Lock()
        self._events: _Bounded[tuple[int, str, tuple[int, ...]]] = _Bounded(limit)

    def _record(self, name: str, *values: int) -> None:
        with self._lock:
            idle = not self._events
            self._events.put((time.monotonic_ns(), name, values))
        if idle:  # else the taker is awake, and takes until there is nothing left
            self._wake()

    def take(self) -> pb.WatchResponse | None:
        """The next message for the client, or None."""
        with self._lock:
            if not self._events:
                return None
            event = self._events.take()
        if isinstance(event, int):
            return pb.WatchResponse(dropped=pb.EventsDropped(count=event))
        time_ns, name, values = event
        fields = [
            pb.TraceField(name=field, value=int(value)) for field, value in zip(_FIELDS[name], values, strict=True)
        ]
        return pb.WatchResponse(event=pb.TraceEvent(time_ns=time_ns, tracepoint=name, fields=fields))
