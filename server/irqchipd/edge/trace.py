"""The trace of a VM: a ring of events for each filter, which every Watch with that filter reads at its own pace."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.trace_codec import probes_message
from irqchipd.edge.trace_filter import Filter
from irqchipd.edge.trace_ring import Ring, TraceReader
from irqchipd.observe.observer import TRACEPOINTS
from irqchipd.observe.recorder import Recorder
from irqchipd.vm.board import Probes
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.probing import Probing

MAX_FILTERS: Final = 16  # different filters at a time: each adds to the cost of an event


class TraceLog(Recorder):
    """The last trace events of a VM: for each filter, as many as the limit.

    An event costs the same however many Watches share a filter. No two events have the same time. Any thread may call
    the methods. wake is called, from any thread, when a reader that found no events can read some.
    """

    def __init__(self, vm: Vm, limit: int, wake: Callable[[], None]) -> None:
        self._vm = vm
        self._limit = limit
        self._wake = wake
        self._lock = threading.Lock()
        self._rings: dict[Filter, Ring] = {}
        self._of: dict[str, tuple[Ring, ...]] = {}  # the rings that want a tracepoint
        self._choosy = False  # whether some filter wants only some GSIs or vCPUs
        self._last_time = 0
        self._asleep = False  # whether a reader found nothing
        # The probes, while some filter wants them; and whether they are read at the end of this turn.
        self._probing: Probing | None = None
        self._probe_rings: tuple[Ring, ...] = ()
        self._will_look = False

    def __bool__(self) -> bool:
        return bool(self._rings)

    def open(self, wanted: Filter) -> TraceReader:
        """A reader of the events from now on. ENOSPC if the VM's Watches have too many different filters, ENOENT."""
        return self._vm.in_turn(partial(self._open, wanted))

    def _open(self, wanted: Filter) -> TraceReader:
        with self._lock:
            ring = self._rings.get(wanted)
            if ring is None:
                if len(self._rings) >= MAX_FILTERS:
                    raise VmError(
                        errno.ENOSPC,
                        f"the VM's Watches have {MAX_FILTERS} different filters, the most allowed:"
                        " share one of these, or filter what you receive",
                    )
                ring = self._rings[wanted] = Ring(wanted, self._limit)
                self._look_at_rings()
            reader = TraceReader(ring)
            if wanted.probes:
                reader.probes = self._all_probes()
            ring.readers.add(reader)
        return reader

    def close(self, reader: TraceReader) -> None:
        """A reader is no longer used."""
        ring = reader.ring
        with self._lock:
            ring.readers.discard(reader)
            if not ring.readers and self._rings.get(ring.wanted) is ring:
                del self._rings[ring.wanted]
                self._look_at_rings()

    def _look_at_rings(self) -> None:
        rings = tuple(self._rings.values())
        self._probe_rings = tuple(ring for ring in rings if ring.wanted.probes)
        if not self._probe_rings:
            self._probing = None
        elif self._probing is None:
            self._probing = Probing(self._vm)
        self._choosy = any(ring.wanted.gsis or ring.wanted.vcpus for ring in rings)
        wanting = {name: tuple(ring for ring in rings if name in ring.wanted.tracepoints) for name in TRACEPOINTS}
        self._of = {name: rings for name, rings in wanting.items() if rings}
        alone = rings[0] if len(rings) == 1 and not self._choosy and not self._probe_rings else None
        self.only = alone if alone is not None and len(self._of) == len(TRACEPOINTS) else None

    # Under the VM's lock.

    def line_raised(self, coalesced: bool, masked: bool) -> None:
        """No tracepoint, and so not recorded."""

    def record(self, name: str, values: tuple[int, ...]) -> None:
        """Add an event. A VM with a Watch spends most of its tracing time here."""
        if self._probe_rings and not self._will_look:
            self._will_look = True
            self._vm.at_the_end(self._look_at_probes)
        rings = self._of.get(name)
        if rings is None:
            return
        if self._choosy:
            routes = self._vm.routes
            rings = tuple(ring for ring in rings if ring.wanted.takes(name, values, routes))
        elif len(rings) == 1:  # the shortest way
            ring = rings[0]
            if ring.written >= ring.room:  # no reader is asleep
                ring.lost += 1
                return
            ring.add(self._now(), name, values)
            if self._asleep:
                self._rouse()
            return
        self._add(rings, name, values)

    def _look_at_probes(self) -> None:
        """The turn is over: log the probes that it has changed."""
        self._will_look = False
        with self._lock:
            if self._probing is None or not self._probing.look():
                return
            if all(ring.is_full for ring in self._probe_rings):  # names would be lost
                for ring in self._probe_rings:
                    ring.lost += 1
            elif changed := self._probing.changes():
                self._add(self._probe_rings, None, changed)

    def _add(self, rings: tuple[Ring, ...], name: str | None, values: tuple[int, ...] | Probes) -> None:
        now = 0
        for ring in rings:
            if ring.is_full:
                ring.lost += 1
                continue
            if not now:
                now = self._now()
            ring.add(now, name, values)
        if self._asleep and rings:
            self._rouse()

    def _rouse(self) -> None:
        """There is something to read."""
        self._asleep = False
        self._wake()

    def _all_probes(self) -> tuple[int, Probes]:
        return self._now(), {} if self._probing is None else self._probing.everything()

    def _now(self) -> int:
        """The time of another event."""
        now = time.monotonic_ns()
        self._last_time = now = now if now > self._last_time else self._last_time + 1
        return now

    # For readers.

    def read(self, reader: TraceReader) -> pb.WatchResponse | None:
        """The next message for a reader, or None."""
        data = self.read_encoded(reader, 1)
        return None if data is None else pb.WatchResponse.FromString(data)

    def read_encoded(self, reader: TraceReader, most: int) -> bytes | None:
        """The next message for a reader, with others in `more` up to `most` events and probes; or None.

        Events that were lost are counted as dropped.
        """
        while True:
            if reader.probes is not None:
                probes, reader.probes = reader.probes, None
                return probes_message(*probes, everything=True)
            if reader.is_overrun():
                with self._lock:  # no probe changes meanwhile
                    dropped = reader.skip()
                    if reader.ring.wanted.probes:
                        reader.probes = self._all_probes()
                if dropped:
                    return pb.WatchResponse(dropped=pb.EventsDropped(count=dropped)).SerializeToString()
            if reader.is_done():
                self._asleep = True
                if reader.is_done():  # later events call wake
                    return None
                continue
            taken = reader.ring.take(reader.position, most)
            if taken is not None:  # otherwise the events were overwritten just now
                data, position = taken
                reader.went_on(position)
                return data


def filter_of(request: pb.WatchRequest) -> Filter:
    """The filter of a request: EINVAL."""
    return Filter(request.tracepoints, request.gsis, request.vcpus, request.probes)
