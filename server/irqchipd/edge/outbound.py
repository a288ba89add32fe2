"""Queues between what happens in a VM and a Session that is told: bounded, and counting what they drop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import event_to
from irqchipd.edge.records import event_record
from irqchipd.vm.events import (
    Doorbell,
    Event,
    GsiMasked,
    GsiResampled,
    IoapicEoi,
    RegionAccess,
    RegionsLost,
    VcpuSignal,
    VmReset,
)

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
    """A Session's events. wake is called, from any thread, when there is something to take where there was nothing.

    on_dropped is called with the queue's lock, on_lost without.

    Events that say the same are one event while they are unread.
    """

    def __init__(
        self,
        limit: int,
        wake: Callable[[], None],
        on_dropped: Callable[[], None],
        on_lost: Callable[[RegionsLost], None] = lambda _: None,
    ) -> None:
        self._wake = wake
        self._on_dropped = on_dropped
        self._on_lost = on_lost
        self._lock = threading.Lock()
        # Events of which one stands for several, with their counts, by what they are about; the oldest is the first.
        # They need no bound but the numbers of vCPUs and GSIs: a vCPU's IoapicEois are one bit for each vector.
        self._merged: dict[object, tuple[Event, int]] = {}
        self._signals: _Bounded[VcpuSignal] = _Bounded(limit)
        self._unread_signals: dict[int, VcpuSignal] = {}  # each vCPU's last
        # What happens to regions, in order: with how often, of doorbells, and whether it is told in the short form.
        self._accesses: deque[_Told] = deque()
        self._limit = limit
        self._doorbells = 0
        self._turn = 0

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        with self._lock:
            idle = not (self._accesses or self._merged or self._unread_signals)
            if isinstance(event, VcpuSignal):
                self._put_signal(event)
            elif isinstance(event, VmReset):
                self._put_reset(event)
            else:
                subject, number = _subject(event)
                unread = self._merged.get(subject)
                if unread is not None:
                    number = unread[1] | number if isinstance(event, IoapicEoi) else unread[1] + number
                self._merged[subject] = event, number
        if idle:
            self._wake()

    def _put_signal(self, signal: VcpuSignal) -> None:
        if self._unread_signals.get(signal.vcpu) == signal:
            return
        if self._signals.put(signal):
            self._unread_signals[signal.vcpu] = signal
        else:
            self._on_dropped()

    def _put_reset(self, event: VmReset) -> None:
        """Of unread ones the last counts, and has its place among the accesses."""
        unread = next((told for told in self._accesses if isinstance(told.event, VmReset)), None)
        if unread is not None:
            self._accesses.remove(unread)
        self._accesses.append(_Told(event, short=False))

    def put_access(self, event: Event, short: bool = False) -> None:
        """Queue what happened to a region; short is whether it is told as a record."""
        with self._lock:
            idle = not (self._accesses or self._merged or self._unread_signals)
            accesses = self._accesses
            if isinstance(event, Doorbell):
                if accesses and accesses[-1].event == event:
                    accesses[-1].count += 1
                elif self._doorbells < self._limit:
                    self._doorbells += 1
                    accesses.append(_Told(event, short))
                else:
                    self._drop_doorbell(short)
                    self._on_dropped()
            elif isinstance(event, RegionAccess | RegionsLost):
                accesses.append(_Told(event, short))
        if idle:
            self._wake()
        if isinstance(event, RegionsLost):
            self._on_lost(event)

    def _drop_doorbell(self, short: bool) -> None:
        # Not by the VmReset, which moves: counts on either side of it would pile up.
        last = next((told for told in reversed(self._accesses) if not isinstance(told.event, VmReset)), None)
        if last is None or last.event is not None:
            last = _Told(None, short, 0)
            self._accesses.append(last)
        last.count += 1

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
        if isinstance(signal, int):
            return pb.Event(events_dropped=pb.EventsDropped(count=signal))
        if self._unread_signals.get(signal.vcpu) is signal:
            del self._unread_signals[signal.vcpu]
        return event_to(signal)

    def _take_merged(self) -> pb.Event | None:
        if not self._merged:
            return None
        subject = next(iter(self._merged))
        event, number = self._merged.pop(subject)
        if not isinstance(event, IoapicEoi):
            return event_to(event, number)
        vector = (number & -number).bit_length() - 1
        if number := number & number - 1:
            self._merged[subject] = event, number
        return event_to(IoapicEoi(event.vcpu, vector))


@dataclass(slots=True, eq=False)
class _Told:
    event: Event | None  # None: doorbells that found no room
    short: bool
    count: int = 1


_KINDS = (EventQueue._take_access, EventQueue._take_merged, EventQueue._take_signal)


def _subject(event: Event) -> tuple[object, int]:
    """What an event is about, and how often it happened, or its vector's bit. A later one of the subject is merged."""
    match event:
        case GsiMasked(gsi):
            return (GsiMasked, gsi), 1
        case GsiResampled(gsi, count):
            return (GsiResampled, gsi), count
        case IoapicEoi(vcpu, vector):
            return (IoapicEoi, vcpu), 1 << vector
        case _:
            return event, 1
