"""A Session's unread events: some merge, and signals beyond the limit are counted."""

from __future__ import annotations

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.message import DeliveryMode
from irqchipd.edge.events import EventQueue
from irqchipd.vm.events import (
    Doorbell,
    Event,
    GsiAcknowledged,
    GsiMasked,
    GsiResampled,
    InterruptPending,
    IoapicEoi,
    RegionAccess,
    VcpuSignal,
    VmReset,
)


class Queue:
    """A queue with room for two signals; it counts the events it dropped."""

    def __init__(self, *events: Event) -> None:
        self.queue = EventQueue(2, self._woken, self._dropped)
        self.put, self.put_access = self.queue.put, self.queue.put_access
        self.wakes = self.drops = 0
        for event in events:
            self.put(event)

    def _woken(self) -> None:
        self.wakes += 1

    def _dropped(self) -> None:
        self.drops += 1

    def next(self) -> pb.Event | None:
        """The next event."""
        message = self.queue.take()
        return None if message is None else pb.SessionResponse.FromString(message).event

    def all(self) -> list[pb.Event]:
        """All remaining events."""
        return list(iter(self.next, None))


def signal(vector: int) -> VcpuSignal:
    """A start-up signal for vCPU 1."""
    return VcpuSignal(1, DeliveryMode.STARTUP, vector, True)


def sipi(vector: int) -> pb.Event:
    """The message for that signal."""
    sipi = pb.Signal(kind=pb.SIGNAL_KIND_SIPI, vector=vector)
    return pb.Event(vcpu_signal=pb.VcpuSignal(vcpu=1, signal=sipi, ignored=True))


def dropped(count: int) -> pb.Event:
    """The message for a number of dropped events."""
    return pb.Event(events_dropped=pb.EventsDropped(count=count))


@pytest.mark.parametrize(
    ("events", "messages"),
    [
        (
            [InterruptPending(3), InterruptPending(4), InterruptPending(3)],
            [pb.Event(interrupt_pending=pb.InterruptPending(vcpu=vcpu)) for vcpu in (3, 4)],
        ),
        (
            [GsiAcknowledged(4), GsiAcknowledged(5), GsiAcknowledged(4)],
            [pb.Event(gsi_acknowledged=pb.GsiAcknowledged(gsi=gsi, count=count)) for gsi, count in ((4, 2), (5, 1))],
        ),
        (
            [GsiResampled(4, 1), GsiResampled(5, 7), GsiResampled(4, 3)],
            [pb.Event(gsi_resampled=pb.GsiResampled(gsi=gsi, count=count)) for gsi, count in ((4, 4), (5, 7))],
        ),
        (
            [GsiMasked(4, True), GsiMasked(5, True), GsiMasked(4, False)],
            [pb.Event(gsi_masked=pb.GsiMasked(gsi=gsi, masked=masked)) for gsi, masked in ((4, False), (5, True))],
        ),
        (
            [IoapicEoi(0, 0x31), IoapicEoi(0, 0x32), IoapicEoi(1, 0x31), IoapicEoi(0, 0x31)],
            [
                pb.Event(ioapic_eoi=pb.IoapicEoi(vcpu=vcpu, vector=vector))
                for vcpu, vector in ((0, 0x31), (1, 0x31), (0, 0x32))
            ],
        ),
        ([signal(vector) for vector in (1, 1, 2, 2)], [sipi(1), sipi(2)]),
    ],
)
def test_unread_events_are_merged_as_their_kind_allows(events: list[Event], messages: list[pb.Event]) -> None:
    queue = Queue(*events)
    assert queue.wakes == 1, "there was nothing to take before the first"
    assert queue.all() == messages
    for event in events:
        queue.put(event)
    assert queue.all() == messages, "the counts begin anew"


def test_events_of_different_kinds_about_one_gsi_are_not_merged() -> None:
    queue = Queue(GsiAcknowledged(4), GsiResampled(4, 1), GsiMasked(4, True))
    assert [event.WhichOneof("event") for event in queue.all()] == [
        "gsi_acknowledged",
        "gsi_resampled",
        "gsi_masked",
    ]


def test_signals_beyond_the_limit_are_counted_and_other_events_have_room() -> None:
    queue = Queue(*(signal(vector) for vector in range(5)), *(GsiAcknowledged(gsi) for gsi in range(4096)))
    assert queue.drops == 3
    taken = queue.all()
    assert len(taken) == 4096 + 3
    assert [event for event in taken if not event.HasField("gsi_acknowledged")] == [sipi(0), sipi(1), dropped(3)]


def test_doorbells_beyond_the_limit_are_counted_in_their_place() -> None:
    def doorbell(value: int) -> Doorbell:
        return Doorbell(1, 0x300, 1, value)

    queue = Queue()
    for value in (1, 2, 3, 3, 4):
        queue.put_access(doorbell(value))
    assert queue.drops == 3
    first = queue.next()
    for value in (5, 6):
        queue.put_access(doorbell(value))
    taken = [first, *queue.all()]
    rung = [
        pb.Event(doorbell=pb.Doorbell(space=pb.ADDRESS_SPACE_PIO, address=0x300, size=1, data=value, count=1))
        for value in (1, 2, 5)
    ]
    assert taken == [rung[0], rung[1], dropped(3), rung[2], dropped(1)]


def test_neither_kind_of_event_starves_the_other() -> None:
    queue = Queue()
    taken = []
    for _ in range(6):
        queue.put(signal(3))
        queue.put(GsiAcknowledged(4))
        message = queue.next()
        assert message is not None
        taken.append(message.HasField("vcpu_signal"))
    assert sorted(taken) == [False] * 3 + [True] * 3


def kinds(events: list[pb.Event]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def test_only_the_last_unread_reset_is_kept_in_its_place_among_the_accesses() -> None:
    queue = Queue(VmReset(1))
    queue.put_access(RegionAccess(1, 0, 1, 0x300, 1, False, 0))
    queue.put(VmReset(2))
    queue.put_access(RegionAccess(2, 0, 1, 0x300, 1, False, 0))
    taken = queue.all()
    assert kinds(taken) == ["region_access", "vm_reset", "region_access"]
    assert taken[1] == pb.Event(vm_reset=pb.VmReset(reason=pb.RESET_REASON_GUEST))


def test_resets_between_dropped_doorbells_do_not_pile_up() -> None:
    queue = Queue()
    for value in range(100):
        queue.put_access(Doorbell(1, 0x300, 1, value))
        queue.put(VmReset(1))
    taken = queue.all()
    assert kinds(taken) == ["doorbell", "doorbell", "events_dropped", "vm_reset"]
    assert taken[2] == dropped(98)
