"""The logs of a VM's events, from which Watches read at their own pace."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.trace import MAX_FILTERS, TraceLog
from irqchipd.edge.trace_filter import Filter
from irqchipd.edge.trace_ring import BATCH, RING_NS, TraceReader
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.errors import VmError
from irqchipd.vm.routing import MAX_GSIS, MsiRoute, PinRoute
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from tests.vm.pc import EOI, LEVEL, Pc

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


class Log:
    """A trace with room for LIMIT events; it counts how often it woke its readers."""

    def __init__(self) -> None:
        self.trace = TraceLog(X86Vm("traced"), LIMIT, self._woken)
        self.wakes = 0

    def _woken(self) -> None:
        self.wakes += 1

    def happen(self, name: str, number: int) -> None:
        """Log an event, identified by a number."""
        getattr(self.trace, name)(number, *([0] if name != LINE else [0, 0]))

    def open(self, wanted: Filter) -> Reader:
        return Reader(self.trace, wanted)


class Reader:
    """A reader, with its trace."""

    def __init__(self, trace: TraceLog, wanted: Filter) -> None:
        self.trace = trace
        self.reader: TraceReader = trace.open(wanted)

    def read(self) -> pb.WatchResponse | None:
        return self.trace.read(self.reader)

    def close(self) -> None:
        self.trace.close(self.reader)


class Watch:
    """A reader, with the events since it was opened, and how many of these it has read or been reported as lost."""

    def __init__(self, log: Log, wanted: tuple[str, ...]) -> None:
        self.reader = log.open(Filter(wanted))
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
                watches.pop(argument).reader.close()
    for watch in watches:
        while watch.read():
            pass
    assert bool(log.trace) == bool(watches)


def numbers(reader: Reader) -> list[int | tuple[str, int]]:
    """What can be read: the numbers of events, and how many were lost."""
    return [
        ("lost", message.dropped.count) if message.HasField("dropped") else message.event.fields[0].value
        for message in iter(reader.read, None)
    ]


def test_lost_events_are_reported_where_they_are_missing() -> None:
    log = Log()
    reader = log.open(Filter())
    for number in range(LIMIT + 3):
        log.happen(LINE, number)
    assert reader.reader.is_overrun() is False, "there are others to be read first"
    assert [reader.read() is not None for _ in range(LIMIT)] == [True] * LIMIT
    assert reader.reader.is_overrun()
    log.happen(LINE, LIMIT + 3)
    assert numbers(reader) == [("lost", 4)]
    log.happen(LINE, 100)
    assert numbers(reader) == [100]


def test_a_slower_reader_loses_what_was_overwritten_and_a_faster_one_nothing() -> None:
    log = Log()
    fast, slow = log.open(Filter()), log.open(Filter())
    for number in range(LIMIT + 2):
        log.happen(LINE, number)
        assert numbers(fast) == [number]
    assert slow.reader.is_overrun()
    assert numbers(slow) == [("lost", 2), 2, 3, 4, 5]


def test_a_full_ring_is_emptied_before_there_is_room_again() -> None:
    log = Log()
    reader = log.open(Filter())
    for number in range(LIMIT + 1):
        log.happen(LINE, number)
    for number in range(LIMIT + 1, LIMIT + 3):  # one is read for each that happens: all are lost
        assert reader.read() is not None
        log.happen(LINE, number)
    assert numbers(reader) == [2, 3, ("lost", 3)]


@pytest.mark.parametrize("limit", [4, 1024, 1 << 16])
def test_a_watch_has_a_rate_by_the_size_of_its_ring_and_a_burst_of_half_a_batch(limit: int) -> None:
    _, reader = watched(Pc(1).vm, Filter(), limit)
    reader.reader.went_on(BATCH // 2)
    assert reader.reader.rest() == 0.0
    count = 100_000 * BATCH  # which take seconds
    reader.reader.went_on(reader.reader.position + count)
    assert 0.5 < reader.reader.rest() / (count * RING_NS / max(limit, BATCH) / 1e9) <= 1


def test_equal_watches_share_the_encoded_bytes() -> None:
    pc = Pc(1)
    log, first = watched(pc.vm, Filter())
    second = Reader(log, Filter())
    for _ in range(100):
        pc.line(4, 1, 0)
    read = [log.read_encoded(first.reader, 256), log.read_encoded(first.reader, 256)]
    assert [log.read_encoded(second.reader, 256) is data for data in read] == [True, True]


def test_watches_that_began_apart_have_the_same_batches_soon() -> None:
    pc = Pc(1)
    log, first = watched(pc.vm, Filter())
    pc.line(4, 1, 0)
    second = Reader(log, Filter())
    for _ in range(100):
        pc.line(4, 1, 0)
    assert log.read_encoded(first.reader, 256) != log.read_encoded(second.reader, 256)
    data = log.read_encoded(first.reader, 256)
    assert data is not None
    assert log.read_encoded(second.reader, 256) is data


def test_readers_are_woken_once_for_unread_events() -> None:
    log = Log()
    readers = [log.open(Filter()) for _ in range(100)]
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
    reader = log.open(Filter((ACK,)))
    log.happen(ACK, 1)
    for number in range(100):
        log.happen(LINE, number)
    message = reader.read()
    assert message is not None
    assert message.event.tracepoint == ACK
    assert reader.read() is None


def test_a_batch_has_the_same_messages_as_reading_one_by_one() -> None:
    pc = Pc(1)
    pc.program(4, LEVEL | 0x34)
    log, one = watched(pc.vm, Filter(probes=True))
    batched = Reader(log, Filter(probes=True))
    for number in range(40):
        pc.line(4, number & 1)
        pc.vm.mmio_write(0, 0xFEE0_0080, 4, number)
    log.kvm_msi_set_irq(0xFFFF_FFFF_FFFF_FFFF, -1)
    singly = list(iter(one.read, None))
    read = list(iter(lambda: log.read_encoded(batched.reader, 16), None))
    messages = []
    for data in read:
        first = pb.WatchResponse.FromString(data)
        assert sum(len(part.probes.probes) or 1 for part in first.more) < 16
        messages += [first, *first.more]
        assert all(not part.more for part in first.more)
        first.ClearField("more")
    assert len(read) < len(singly)
    assert messages[1:] == singly[1:], "the first has all probes, at the time of its opening"


# Filters.


def watched(vm: X86Vm, wanted: Filter, limit: int = 1000) -> tuple[TraceLog, Reader]:
    log = TraceLog(vm, limit, lambda: None)
    vm.attach(log)
    return log, Reader(log, wanted)


def events(reader: Reader) -> list[tuple[str, dict[str, int]]]:
    messages = [message.event for message in iter(reader.read, None) if message.HasField("event")]
    return [(event.tracepoint, {field.name: field.value for field in event.fields}) for event in messages]


def test_a_gsi_is_watched_at_the_pins_and_msis_that_it_leads_to_at_the_time() -> None:
    pc = Pc(1)
    pc.vm.set_routing(
        [PinRoute(4, ChipId.PIC_SECONDARY, 2), PinRoute(5, ChipId.IOAPIC, 5), MsiRoute(30, 0xFEE0_0000, 0x31)]
    )
    pc.out(0xA0, 0x11)
    _, reader = watched(pc.vm, Filter(gsis=[4, 30]))
    for gsi in (4, 5, 30):
        pc.line(gsi, 1)
        pc.line(gsi, 0)
    pc.out(0xA0, 0x62)  # the specific EOI of the secondary's line 2, which KVM numbers 10
    pc.out(0xA0, 0x63)
    pc.vm.signal_msi(0xFEE0_0000, 0x31)
    pc.vm.signal_msi(0xFEE0_0000, 0x32)
    seen = [(name, fields.get("gsi", fields.get("pin", fields.get("data")))) for name, fields in events(reader)]
    assert seen == [
        *[("kvm_set_irq", 4), ("kvm_pic_set_irq", 2)] * 2,
        ("kvm_set_irq", 30),
        ("kvm_msi_set_irq", 0x31),
        ("kvm_set_irq", 30),
        ("kvm_ack_irq", 10),
        ("kvm_msi_set_irq", 0x31),
    ]
    pc.vm.set_routing([PinRoute(4, ChipId.IOAPIC, 7)])
    pc.line(4, 1)
    assert [name for name, _ in events(reader)] == ["kvm_set_irq", "kvm_ioapic_set_irq"]


def test_a_vcpu_is_watched_in_what_it_does_and_gets() -> None:
    pc = Pc(2)
    _, reader = watched(pc.vm, Filter(vcpus=[1]))
    pc.ipi(0, 0x4031, 1)
    pc.ipi(0, 0x4032, 0)
    assert pc.take(1) == 0x31
    pc.vm.mmio_write(1, 0xFEE0_00B0, 4, 0)
    pc.vm.mmio_write(1, 0xFEE0_00B0, 4, 0)
    assert [(name, fields.get("vector")) for name, fields in events(reader)] == [
        ("kvm_apic_accept_irq", 0x31),
        ("kvm_inj_virq", 0x31),
        ("kvm_mmio", None),
        ("kvm_eoi", 0x31),
        ("kvm_mmio", None),
        ("kvm_eoi", (1 << 64) - 1),
    ]


def test_a_gsi_of_an_arm64_vm_is_watched_as_its_spi() -> None:
    takes, vm = Filter(gsis=[4]).takes, Arm64Vm("arm")
    routes = vm.routes or [PinRoute(4, 0, 4), PinRoute(5, 0, 5)]
    assert takes("vgic_update_irq_pending", (0, 36, 1), routes)
    assert takes("kvm_irq_line", (1, 0, 36, 1), routes)
    assert takes("kvm_ack_irq", (0, 4), routes)
    assert not takes("kvm_irq_line", (2, 0, 36, 1), routes)
    assert not takes("vgic_update_irq_pending", (0, 37, 1), routes)


def test_a_line_of_an_arm64_vm_is_watched_by_its_number_in_kvm_irq_line() -> None:
    takes = Filter(gsis=[1 << 24 | 36, 2 << 24 | 1 << 16 | 27, 3 << 16 | 1]).takes  # SPI 4, vCPU 1's PPI, vCPU 3's FIQ
    assert takes("kvm_irq_line", (1, 0, 36, 1), ())
    assert takes("vgic_update_irq_pending", (0, 36, 1), ())
    assert takes("kvm_irq_line", (2, 1, 27, 1), ())
    assert takes("vgic_update_irq_pending", (1, 27, 1), ())
    assert takes("kvm_timer_update_irq", (1, 27, 1), ())
    assert takes("kvm_irq_line", (0, 3, 1, 1), ())
    for other in ((0, 37, 1), (0, 27, 1), (1, 26, 1)):
        assert not takes("vgic_update_irq_pending", other, ())
    assert not takes("kvm_irq_line", (0, 3, 0, 1), ())
    assert not takes("kvm_set_irq", (4, 1, 0), ())


def test_filters_are_few_and_watches_with_the_same_one_are_many() -> None:
    log = TraceLog(X86Vm("many"), LIMIT, lambda: None)
    readers = [log.open(Filter(gsis=[gsi])) for gsi in range(MAX_FILTERS)]
    readers += [log.open(Filter(gsis=[0])) for _ in range(100)]
    with pytest.raises(VmError, match="16 different filters") as refused:
        log.open(Filter())
    assert refused.value.number == errno.ENOSPC
    log.close(readers[1])
    log.open(Filter())
    with pytest.raises(VmError, match="at most 4096 of each"):
        Filter(vcpus=range(MAX_GSIS + 1))


def test_what_nobody_wants_is_not_even_recorded() -> None:
    log = TraceLog(X86Vm("quiet"), LIMIT, lambda: None)
    reader = Reader(log, Filter((ACK,)))
    log.kvm_set_irq(4, 1, 0)
    assert reader.reader.ring.written == 0


def test_no_two_events_have_the_same_time() -> None:
    pc = Pc(1)
    _, reader = watched(pc.vm, Filter())
    for _ in range(100):
        pc.line(4, 1)
        pc.line(4, 0)
    times = [message.event.time_ns for message in iter(reader.read, None)]
    assert len(times) == 600
    assert times == sorted(set(times))


# Probes.


def changes(reader: Reader) -> list[dict[str, int]]:
    return [
        {probe.name: int.from_bytes(probe.value, "little") for probe in message.probes.probes}
        for message in iter(reader.read, None)
        if message.HasField("probes")
    ]


def test_probes_show_an_interrupt_from_the_line_to_the_eoi() -> None:
    pc = Pc(1)
    pc.initialise_pics()
    pc.program(4, LEVEL | 0x34)
    source = pc.vm.open_source("device")
    pc.line(100, 1)
    _, reader = watched(pc.vm, Filter(("kvm_eoi",), probes=True))
    first = changes(reader)
    assert len(first) == 1
    assert {"pic0.irr", "ioapic0.masked", "lapic0.ppr", "gsi100"} < first[0].keys()
    pc.line(4, 1, source=source)
    raised = {"gsi4": 1 << source.number, "pic0.irr": 1 << 4, "pic.intr": 1, "ioapic0.irr": 1 << 4}
    assert changes(reader) == [
        raised | {"ioapic0.remote_irr": 1 << 4, "lapic0.irr": 1 << 0x34, "lapic0.tmr": 1 << 0x34}
    ]
    pc.take()
    assert changes(reader) == [{"pic0.irr": 0, "pic0.isr": 1 << 4, "pic.intr": 0}]
    pc.take()
    assert changes(reader) == [{"lapic0.irr": 0, "lapic0.isr": 1 << 0x34, "lapic0.ppr": 0x30}]
    pc.line(4, 0, source=source)
    assert changes(reader) == [{"gsi4": 0, "ioapic0.irr": 0}]
    pc.eoi()
    assert changes(reader) == [{"lapic0.isr": 0, "lapic0.ppr": 0, "ioapic0.remote_irr": 0}]
    pc.out(0x20, EOI)
    assert changes(reader) == [{"pic0.isr": 0}]


def test_who_missed_changes_gets_all_probes() -> None:
    pc = Pc(1)
    _, reader = watched(pc.vm, Filter((ACK,), probes=True), LIMIT)
    changes(reader)
    for _ in range(3):
        pc.line(4, 1)
        pc.line(4, 0)
    pc.line(4, 1)
    messages = list(iter(reader.read, None))
    kept = [{probe.name: probe.value[0] for probe in message.probes.probes} for message in messages[:LIMIT]]
    assert [probes["gsi4"] for probes in kept] == [1, 0, 1, 0]
    missed, everything = messages[LIMIT:]
    assert missed.dropped.count == 3
    assert everything.probes.all
    assert {probe.name: probe.value for probe in everything.probes.probes}["gsi4"] == b"\1" + bytes(7)
    pc.line(4, 0)
    assert [probe["gsi4"] for probe in changes(reader)] == [0]


def test_after_the_last_watch_of_probes_nothing_looks_at_them() -> None:
    pc = Pc(1)
    log, reader = watched(pc.vm, Filter(probes=True))
    plain = Reader(log, Filter((LINE,)))
    reader.close()
    pc.line(4, 1)
    assert log._probing is None
    assert [name for name, _ in events(plain)] == [LINE]
