"""Queues between what happens in a VM and a client that is told: bounded, and counting what they drop."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import event_to
from irqchipd.observe.observer import TRACEPOINTS, Observer
from irqchipd.vm.errors import invalid
from irqchipd.vm.machine import Event, InterruptPending


class EventQueue:
    """A Session's events. wake is called, from any thread, when there is something to take."""

    def __init__(self, limit: int, wake: Callable[[], None], on_dropped: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        # A vCPU's pending interrupt stands for any number, so these need no bound but the number of vCPUs.
        self._interrupts: dict[int, InterruptPending] = {}
        self._others: deque[Event] = deque()
        self._dropped = 0

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        with self._lock:
            if isinstance(event, InterruptPending):
                self._interrupts[event.vcpu] = event
            elif len(self._others) < self._limit:
                self._others.append(event)
            else:
                self._dropped += 1
                self._on_dropped()
        self._wake()

    def take(self) -> pb.Event | None:
        """The next message for the client, or None."""
        with self._lock:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                return pb.Event(events_dropped=pb.EventsDropped(count=dropped))
            if self._others:
                return event_to(self._others.popleft())
            if self._interrupts:
                return event_to(self._interrupts.pop(next(iter(self._interrupts))))
            return None


_FIELDS = {name: tuple(inspect.signature(getattr(Observer, name)).parameters)[1:] for name in TRACEPOINTS}


class TraceQueue(Observer):
    """A Watch's trace events."""

    def __init__(self, tracepoints: Iterable[str], limit: int, wake: Callable[[], None]) -> None:
        wanted = list(tracepoints) or TRACEPOINTS
        for name in wanted:
            if name not in _FIELDS:
                raise invalid(f"{name!r} is no tracepoint; there are {', '.join(TRACEPOINTS)}")
            setattr(self, name, partial(self._record, name))
        self._limit = limit
        self._wake = wake
        self._lock = threading.Lock()
        self._events: deque[tuple[int, str, tuple[int, ...]]] = deque()
        self._dropped = 0

    def _record(self, name: str, *values: int) -> None:
        with self._lock:
            idle = not self._events
            if len(self._events) < self._limit:
                self._events.append((time.monotonic_ns(), name, values))
            else:
                self._dropped += 1
        if idle:  # else the taker is awake, and takes until there is nothing left
            self._wake()

    def take(self) -> pb.WatchResponse | None:
        """The next message for the client, or None. Drops are told where they happened: after what was kept."""
        with self._lock:
            if self._events:
                time_ns, name, values = self._events.popleft()
            elif self._dropped:
                dropped, self._dropped = self._dropped, 0
                return pb.WatchResponse(dropped=pb.EventsDropped(count=dropped))
            else:
                return None
        fields = [
            pb.TraceField(name=field, value=int(value)) for field, value in zip(_FIELDS[name], values, strict=True)
        ]
        return pb.WatchResponse(event=pb.TraceEvent(time_ns=time_ns, tracepoint=name, fields=fields))
