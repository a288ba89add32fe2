"""A Session's events: their queue, and the messages and records for the client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from irqchip.records import ACCESS, DOORBELL, EVENT, NUMBERS
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import signal_to
from irqchipd.vm.events import (
    Doorbell,
    Event,
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
from irqchipd.vm.regions import Space
from irqchipd.vm.vcpu_state import Signal

_READS: Final[dict[int, int]] = {Space.PIO: NUMBERS["pio_read"], Space.MMIO: NUMBERS["mmio_read"]}
_WRITES: Final[dict[int, int]] = {Space.PIO: NUMBERS["pio_write"], Space.MMIO: NUMBERS["mmio_write"]}
_ACCESSES: Final = 0  # and resets
_MERGED: Final = 1
_SIGNALS: Final = 2


class _Unread:
    """A doorbell or a reset that has not been sent yet, so that a later event may change it.

    event      None: doorbells without room
    as_record  whether it is sent as a record
    count      the number of doorbells
    """

    __slots__ = ("as_record", "count", "event")

    def __init__(self, event: Doorbell | VmReset | None, as_record: bool, count: int = 1) -> None:
        self.event = event
        self.as_record = as_record
        self.count = count


class EventQueue:
    """A Session's events. Equal unread events are merged into one.

    wake is called, from any thread, when the queue stops being empty. on_dropped is called with the queue's
    lock held, on_lost without.
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
        # Events that are merged, with their counts, by subject, the oldest subject first. The numbers of vCPUs and GSIs
        # bound them: the IoapicEois of a vCPU are one bit per vector.
        self._merged: dict[object, tuple[Event, int]] = {}
        # vCPUs' signals; a count stands for signals without room.
        self._signals: deque[VcpuSignal | int] = deque()
        self._kept_signals = 0
        self._unread_signals: dict[int, VcpuSignal] = {}  # per vCPU its last signal
        # Events of regions, and resets, in order.
        self._accesses: deque[_Unread | bytes] = deque()
        self._limit = limit
        self._doorbells = 0
        self.is_empty = True  # the function that wakes a Session may read this without the lock
        # The kind that is taken first. The kinds take turns, so that a busy kind does not keep the others waiting.
        self._kind = _ACCESSES

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        with self._lock:
            idle, self.is_empty = self.is_empty, False
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
        if self._kept_signals < self._limit:
            self._kept_signals += 1
            self._signals.append(signal)
            self._unread_signals[signal.vcpu] = signal
        else:
            last = self._signals[-1]
            if isinstance(last, int):
                self._signals[-1] = last + 1
            else:
                self._signals.append(1)
            self._on_dropped()

    def _put_reset(self, event: VmReset) -> None:
        """Only the last of several unread resets is kept, at its place among the accesses."""
        unread = next((unread for unread in self._accesses if _is_reset(unread)), None)
        if unread is not None:
            self._accesses.remove(unread)
        self._accesses.append(_Unread(event, as_record=False))

    def put_access(self, event: Event, as_record: bool = False) -> None:
        """Queue an event of a region."""
        with self._lock:
            idle, self.is_empty = self.is_empty, False
            if isinstance(event, Doorbell):
                self._put_doorbell(event, as_record)
            elif as_record and isinstance(event, RegionAccess):
                self._accesses.append(event_record(event))
            else:
                self._accesses.append(event_message(event_to(event)))
        if idle:
            self._wake()
        if isinstance(event, RegionsLost):
            self._on_lost(event)

    def _put_doorbell(self, event: Doorbell, as_record: bool) -> None:
        accesses = self._accesses
        last = accesses[-1] if accesses else b""
        if isinstance(last, _Unread) and last.event == event:
            last.count += 1
        elif self._doorbells < self._limit:
            self._doorbells += 1
            accesses.append(_Unread(event, as_record))
        else:
            # Skip the VmReset, which moves: otherwise there could be ever more counts around it.
            last = next((unread for unread in reversed(accesses) if not _is_reset(unread)), b"")
            if not isinstance(last, _Unread) or last.event is not None:
                last = _Unread(None, as_record, 0)
                accesses.append(last)
            last.count += 1
            self._on_dropped()

    def take(self) -> bytes | None:
        """The next message for the client, or None."""
        message: bytes | None = None
        with self._lock:
            for _ in range(3):
                kind, self._kind = self._kind, (self._kind + 1) % 3
                if kind == _ACCESSES and self._accesses:
                    unread = self._accesses.popleft()
                    message = unread if isinstance(unread, bytes) else self._taken(unread)
                elif kind == _MERGED and self._merged:
                    message = self._take_merged()
                elif kind == _SIGNALS and self._signals:
                    message = self._take_signal()
                if message is not None:
                    break
            self.is_empty = not (self._accesses or self._merged or self._signals)
        return message

    def close(self) -> None:
        """Drop everything: no more is taken."""

    def _taken(self, unread: _Unread) -> bytes:
        event = unread.event
        if event is None:
            return _dropped(unread.count)
        if isinstance(event, Doorbell):
            self._doorbells -= 1
            if unread.as_record:
                return event_record(event, unread.count)
        return event_message(event_to(event, unread.count))

    def _take_signal(self) -> bytes:
        signal = self._signals.popleft()
        if isinstance(signal, int):
            return _dropped(signal)
        self._kept_signals -= 1
        if self._unread_signals.get(signal.vcpu) is signal:
            del self._unread_signals[signal.vcpu]
        return event_message(event_to(signal))

    def _take_merged(self) -> bytes:
        subject = next(iter(self._merged))
        event, number = self._merged.pop(subject)
        if not isinstance(event, IoapicEoi):
            return event_message(event_to(event, number))
        vector = (number & -number).bit_length() - 1
        if number := number & number - 1:
            self._merged[subject] = event, number
        return event_message(event_to(IoapicEoi(event.vcpu, vector)))


class QueueMeter:
    """The events in all Sessions' queues, the most that one queue has held, and the number of dropped events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.queued = 0
        self.peak = 0
        self.dropped = 0

    def change(self, before: int, now: int) -> None:
        """A queue holds `now` events, and held `before`."""
        with self._lock:
            self.queued += now - before
            self.peak = max(self.peak, now)

    def drop(self) -> None:
        """An event was dropped."""
        with self._lock:
            self.dropped += 1


class MeasuredQueue(EventQueue):
    """A queue that reports to a meter."""

    def __init__(
        self,
        limit: int,
        wake: Callable[[], None],
        on_dropped: Callable[[], None],
        on_lost: Callable[[RegionsLost], None],
        meter: QueueMeter,
    ) -> None:
        super().__init__(limit, wake, on_dropped, on_lost)
        self._meter = meter
        self._measured = 0

    def _measure(self) -> None:
        with self._lock:
            before, self._measured = self._measured, len(self._accesses) + len(self._merged) + len(self._signals)
            now = self._measured
        if now != before:
            self._meter.change(before, now)

    def put(self, event: Event) -> None:
        super().put(event)
        self._measure()

    def put_access(self, event: Event, as_record: bool = False) -> None:
        super().put_access(event, as_record)
        self._measure()

    def take(self) -> bytes | None:
        self._measure()  # put may have woken the Session before it measured
        message = super().take()
        self._measure()
        return message

    def close(self) -> None:
        with self._lock:
            before, self._measured = self._measured, 0
        self._meter.change(before, 0)


_meters: Final[list[QueueMeter]] = []


def measure_queues(meter: QueueMeter) -> None:
    """Let every queue from now on report to a meter, for the rest of the process."""
    _meters[:] = [meter]


def make_queue(
    limit: int, wake: Callable[[], None], on_dropped: Callable[[], None], on_lost: Callable[[RegionsLost], None]
) -> EventQueue:
    """A queue for a Session."""
    if not _meters:
        return EventQueue(limit, wake, on_dropped, on_lost)
    meter = _meters[0]

    def dropped() -> None:
        meter.drop()
        on_dropped()

    return MeasuredQueue(limit, wake, dropped, on_lost, meter)


def _is_reset(unread: _Unread | bytes) -> bool:
    return isinstance(unread, _Unread) and isinstance(unread.event, VmReset)


def _dropped(count: int) -> bytes:
    return event_message(pb.Event(events_dropped=pb.EventsDropped(count=count)))


def _subject(event: Event) -> tuple[object, int]:
    """The subject of an event, and its count, or the bit of its vector. Events of one subject are merged."""
    match event:
        case GsiMasked(gsi):
            return (GsiMasked, gsi), 1
        case GsiResampled(gsi, count):
            return (GsiResampled, gsi), count
        case IoapicEoi(vcpu, vector):
            return (IoapicEoi, vcpu), 1 << vector
        case _:
            return event, 1


# Messages for the client.


def event_to(event: Event, count: int = 1) -> pb.Event:
    """The message of an event; count is the number of merged events."""
    match event:
        case InterruptPending(vcpu):
            return pb.Event(interrupt_pending=pb.InterruptPending(vcpu=vcpu))
        case VcpuSignal(vcpu, delivery_mode, vector, ignored):
            signal = signal_to(Signal(delivery_mode, vector))
            return pb.Event(vcpu_signal=pb.VcpuSignal(vcpu=vcpu, signal=signal, ignored=ignored))
        case GsiAcknowledged(gsi):
            return pb.Event(gsi_acknowledged=pb.GsiAcknowledged(gsi=gsi, count=count))
        case GsiMasked(gsi, masked):
            return pb.Event(gsi_masked=pb.GsiMasked(gsi=gsi, masked=masked))
        case GsiResampled(gsi):
            return pb.Event(gsi_resampled=pb.GsiResampled(gsi=gsi, count=count))
        case IoapicEoi(vcpu, vector):
            return pb.Event(ioapic_eoi=pb.IoapicEoi(vcpu=vcpu, vector=vector))
        case RegionAccess(access, vcpu, space, address, size, write, value):
            return pb.Event(
                region_access=pb.RegionAccess(
                    access=access,
                    vcpu=vcpu,
                    space=pb.AddressSpace.ValueType(space),
                    address=address,
                    size=size,
                    write=write,
                    data=value,
                )
            )
        case Doorbell(space, address, size, value):
            where = pb.AddressSpace.ValueType(space)
            return pb.Event(doorbell=pb.Doorbell(space=where, address=address, size=size, data=value, count=count))
        case RegionsLost(space, address):
            return pb.Event(regions_lost=pb.RegionsLost(space=pb.AddressSpace.ValueType(space), address=address))
        case VmReset(reason):
            return pb.Event(vm_reset=pb.VmReset(reason=pb.ResetReason.ValueType(reason)))


def event_message(event: pb.Event) -> bytes:
    """The packet of a message."""
    return pb.SessionResponse(event=event).SerializeToString()


def event_record(event: RegionAccess | Doorbell, count: int = 1) -> bytes:
    """The packet about a region that was registered by a record."""
    if isinstance(event, Doorbell):
        number = _WRITES[event.space]
        return EVENT.pack(0, DOORBELL, count, number, event.size, 0, event.address, event.value)
    number = (_WRITES if event.write else _READS)[event.space]
    return EVENT.pack(0, ACCESS, event.access, number, event.size, event.vcpu, event.address, event.value)
