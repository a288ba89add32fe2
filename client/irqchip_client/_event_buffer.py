"""The events of a Session that wait to be read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from ._events import (
    Doorbell,
    Event,
    EventsDropped,
    GsiAcknowledged,
    GsiMasked,
    GsiResampled,
    InterruptPending,
    IoapicEoi,
    RegionAccess,
    RegionsLost,
    VcpuSignal,
    VmReset,
)


class EventBuffer:
    """Events that were received and not yet read, a bounded number of them.

    VcpuSignals and Doorbells: at most `size`. Further ones are dropped, and an EventsDropped stands in their place.
    RegionAccesses: at most one for each vCPU, which waits. All others: at most one for each subject, such as a vCPU or
    a GSI. An InterruptPending or IoapicEoi stands for any number; the counts of GsiAcknowledged and GsiResampled add
    up; the newest GsiMasked replaces the older, and so does the newest VmReset, behind all events before it.
    """

    def __init__(self, size: int) -> None:
        self.dropped = 0  # All dropped events, here and in the daemon.
        self._size = size
        self._events: OrderedDict[Hashable, Event] = OrderedDict()  # By subject, those that have one.
        self._signals = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        match event:
            case InterruptPending() | IoapicEoi():
                self._events[event] = event
            case GsiMasked(gsi):
                self._events[GsiMasked, gsi] = event
            case GsiAcknowledged(gsi, count) | GsiResampled(gsi, count):
                unread: Any = self._events.get((type(event), gsi))
                self._events[type(event), gsi] = type(event)(gsi, count + (unread.count if unread else 0))
            case EventsDropped(count):
                self._drop(count)
            case VmReset():
                self._events.pop(VmReset, None)
                self._events[VmReset] = event
            case RegionAccess() | RegionsLost():
                self._events[object()] = event
            case VcpuSignal() | Doorbell() if self._signals < self._size:
                self._signals += 1
                self._events[object()] = event
            case VcpuSignal() | Doorbell():
                self._drop(1)

    def take(self) -> Event:
        _, event = self._events.popitem(last=False)
        if isinstance(event, VcpuSignal | Doorbell):
            self._signals -= 1
        return event

    def _drop(self, count: int) -> None:
        self.dropped += count
        # Not by the VmReset, which moves: counts on either side of it would pile up.
        last = next((subject for subject in reversed(self._events) if subject is not VmReset), None)
        unread = self._events[last] if last is not None else None
        if isinstance(unread, EventsDropped):
            self._events[last] = EventsDropped(unread.count + count)
        else:
            self._events[object()] = EventsDropped(count)
