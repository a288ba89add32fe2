"""The last events of a filter, which every Watch with that filter reads at its own pace."""

from __future__ import annotations

import threading
import time
from typing import Final

from irqchipd.edge.trace_codec import Event, TraceEncoder
from irqchipd.edge.trace_filter import Filter
from irqchipd.observe.recorder import Room
from irqchipd.vm.board import Probes

BATCH: Final = 1024  # events and probes in a batch: encoding them takes less than a piece of other work
# A Watch gets at most a ring of events, or a batch, in this time (in nanoseconds). Otherwise a VM with many events
# would spend its time on the Watch.
RING_NS: Final = 10_000_000
_CHUNKS: Final = 8  # encoded batches that are kept for other readers


class Ring(Room):
    """Events and their encoding. One thread at a time adds, under the VM's lock; others read without the lock.

    An event's position shows a reader whether the event was overwritten. When even the fastest reader is a whole ring
    behind, new events are lost, which costs the VM least, until reopen. Each event has the number of events that were
    lost before it.
    """

    __slots__ = (
        "_chunks",
        "_encoder",
        "_encoding",
        "event_ns",
        "events",
        "limit",
        "readers",
        "wanted",
    )

    def __init__(self, wanted: Filter, limit: int) -> None:
        super().__init__(limit)
        self.wanted = wanted
        self.limit = limit
        self.event_ns = RING_NS // max(limit, BATCH)
        self.events: list[Event] = []
        self.readers: set[TraceReader] = set()
        self._encoder = TraceEncoder()
        self._encoding = threading.Lock()
        # The last encoded batches, with the position after each; by the first position, and the most events.
        self._chunks: dict[tuple[int, int], tuple[bytes, int]] = {}

    def add(self, time_ns: int, name: str | None, values: tuple[int, ...] | Probes) -> None:
        """Add an event; the ring has room."""
        written = self.written
        if written < self.limit:
            self.events.append((written, self.lost, time_ns, name, values))
        else:
            self.events[written % self.limit] = written, self.lost, time_ns, name, values
        self.written = written + 1

    @property
    def is_full(self) -> bool:
        """Whether the next event is lost."""
        return self.written >= self.room

    def reopen(self, position: int) -> None:
        """A reader is at a position: there is room for a whole ring of events after it."""
        self.room = max(self.room, position + self.limit)

    def at(self, position: int) -> Event | None:
        """The event at a position, or None if it was overwritten."""
        event = self.events[position % self.limit]
        return event if event[0] == position else None

    def take(self, first: int, most: int) -> tuple[bytes, int] | None:
        """The events from a position on, as a message with at most `most` events and probes, or one event; and the
        position of the next message. None if the events were overwritten.
        """
        with self._encoding:
            chunk = self._chunks.get((first, most))
            if chunk is None:
                events = self._events(first, most)
                if not events:
                    return None
                chunk = self._encoder.batch(events), events[-1][0] + 1
                while len(self._chunks) >= _CHUNKS:
                    del self._chunks[next(iter(self._chunks))]
                self._chunks[first, most] = chunk
            return chunk

    def _events(self, first: int, most: int) -> list[Event]:
        """Events from a position on, none lost between them; an empty list if the first was overwritten."""
        at = first % self.limit
        # Stop at the end of the list, and where other readers' batches begin.
        ring = self.events[at : at + min(most - first % most, self.written - first)]
        if ring[0][0] != first:
            return []
        lost = ring[0][1]
        events: list[Event] = []
        for event in ring:
            changed = event[4]
            most -= len(changed) if isinstance(changed, dict) else 1
            if events and (most < 0 or event[1] != lost):
                break
            events.append(event)
        return events


class TraceReader:
    """A Watch's place in a ring: the position of the next event, and the number of events lost before it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.position = ring.written
        self.lost = ring.lost
        self.probes: tuple[int, Probes] | None = None  # a time, and the probes at that time: to be read next
        self._paid = 0  # the time up to which this reader has used its share of events
        ring.reopen(self.position)

    def is_overrun(self) -> bool:
        """Whether the next event was lost."""
        ring = self.ring
        if self.position == ring.written:
            return ring.lost != self.lost
        event = ring.at(self.position)
        return event is None or event[1] != self.lost

    def is_done(self) -> bool:
        """Whether no events are left to read."""
        return self.position == self.ring.written and self.lost == self.ring.lost and self.probes is None

    def skip(self) -> int:
        """Skip the lost events here, and return their number."""
        ring = self.ring
        before = self.position + self.lost
        lost, written = ring.lost, ring.written  # in this order: events written later count these lost ones
        position = max(self.position, written - ring.limit)
        event = ring.at(position) if position < written else None
        # A reader that has missed changes of probes can't use later changes. It continues with all current probes.
        if event is None or ring.wanted.probes:
            self.position, self.lost = written, lost
        else:
            self.position, self.lost = position, event[1]
        if self.position == written:
            ring.reopen(written)
        return self.position + self.lost - before

    def went_on(self, position: int) -> None:
        """The reader has read the events before a position."""
        ring = self.ring
        now = time.monotonic_ns()
        self._paid = max(self._paid, now) + (position - self.position) * ring.event_ns
        self.position = position
        # A full ring is read to the end before it gets room again. Otherwise an overrun reader would get single events.
        if not ring.is_full or self.is_done():
            ring.reopen(position)

    def rest(self) -> float:
        """Seconds to wait before the next message."""
        ahead = self._paid - time.monotonic_ns()
        return ahead / 1e9 if ahead > BATCH // 2 * self.ring.event_ns else 0.0
