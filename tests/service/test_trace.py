"""One log of a VM's events, from which Watches read at their own pace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.trace import TraceLog, TraceReader

LIMIT = 4
LINE, MSI, ACK = "kvm_set_irq", "kvm_msi_set_irq", "kvm_ack_irq"
FILTERS: list[tuple[str, ...]] = [(), (LINE,), (LINE, ACK), (MSI,)]

Steps = st.lists(
    st.one_of(
        st.sampled_from((LINE, MSI, ACK)),
        st.builds(lambda wanted: ("open", wanted), st.sampled_from(FILTERS)),
        st.builds(lambda reader: ("read", reader), st.integers(0, 5)),
        st.builds(lambda reader: ("close", reader), st.integers(0, 5)),
    ),
    max_size=80,
)


class Log(TraceLog):
    """A log with room for LIMIT events; it counts how often it woke its readers."""

    def __init__(self) -> None:
        super().__init__(LIMIT, self._woken)
        self.wakes = 0

    def _woken(self) -> None:
        self.wakes += 1

    def happen(self, name: str, number: int) -> None:
        """Log an event, identified by a number."""
        getattr(self, name)(number, *([0] if name != LINE else [0, 0]))


class Watch:
    """A reader, with the events since it was opened, and how many of these it has read or been reported as lost."""

    def __init__(self, log: TraceLog, wanted: tuple[str, ...]) -> None:
        self.reader: TraceReader = log.open(wanted)
        self.wanted = wanted
        self.happened: list[int] = []
        self.accounted = 0

    def read(self) -> bool:
        """Check one message against the events; returns whether there was a message."""
        message = self.reader.read()
        if message is None:
            assert self.accounted == len(self.happened)
            return False
        if message.HasField("dropped"):
            assert message.dropped.count > 0
            self.accounted += message.dropped.count
        else:
            assert message.event.fields[0].value == self.happened[self.accounted]
            self.accounted += 1
        return True


@given(Steps)
def test_every_reader_gets_each_event_or_the_exact_number_it_missed(steps: list[str | tuple[str, object]]) -> None:
    log = Log()
    watches: list[Watch] = []
    for number, step in enumerate(steps):
        if isinstance(step, str):
            log.happen(step, number)
            for watch in watches:
                if not watch.wanted or step in watch.wanted:
                    watch.happened.append(number)
            continue
        what, argument = step
        if what == "open" and isinstance(argument, tuple):
            watches.append(Watch(log, argument))
        elif isinstance(argument, int) and argument < len(watches):
            if what == "read":
                watches[argument].read()
            else:
                log.close(watches.pop(argument).reader)
    for watch in watches:
        while watch.read():
            pass
    assert bool(log) == bool(watches)


def test_lost_events_are_reported_before_the_remaining_ones() -> None:
    log = Log()
    watch = log.open(())
    for number in range(LIMIT + 3):
        log.happen(LINE, number)
    first = watch.read()
    assert first == pb.WatchResponse(dropped=pb.EventsDropped(count=3))
    left = [message.event.fields[0].value for message in iter(watch.read, None)]
    assert left == [3, 4, 5, 6]


def test_readers_are_woken_once_for_unread_events() -> None:
    log = Log()
    readers = [log.open(()) for _ in range(100)]
    assert all(reader.read() is None for reader in readers)
    for number in range(3):
        log.happen(LINE, number)
    assert log.wakes == 1
    assert readers[0].read() is not None
    log.happen(LINE, 3)
    assert log.wakes == 1, "no reader has run out of events since"
    while readers[0].read() is not None:
        pass
    log.happen(LINE, 4)
    assert log.wakes == 2


def test_events_without_a_subscriber_take_no_room() -> None:
    log = Log()
    reader = log.open((ACK,))
    log.happen(ACK, 1)
    for number in range(100):
        log.happen(LINE, number)
    message = reader.read()
    assert message is not None
    assert message.event.tracepoint == ACK
    assert reader.read() is None
