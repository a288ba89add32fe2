"""Events for many listeners are sent in pieces and in order, and others wait until all are sent."""

from __future__ import annotations

import pytest

from irqchipd.vm import turns
from irqchipd.vm.agenda import TURN_NOTIFICATIONS, TURN_WORK
from irqchipd.vm.clock import Deadlines, RealClock
from irqchipd.vm.events import Event, InterruptPending
from irqchipd.vm.lines import TURN_CHANGES
from irqchipd.vm.routing import MsiRoute
from irqchipd.vm.vcpu_state import Outcome
from tests.vm.pc import MSI, Pc, refused

VCPUS, LISTENERS = 8, 100
BROADCAST = MSI | 0xFF << 12
VECTOR = 0x51

Told = list[tuple[int, Event]]


def do_one(later: Deadlines) -> None:
    """Ring the next alarm."""
    alarm = later.alarms.pop_due(later.time)
    assert alarm is not None
    alarm.ring()


def do_all(later: Deadlines) -> None:
    while later.alarms.earliest() is not None:
        do_one(later)


@pytest.fixture
def later() -> Deadlines:
    return Deadlines()


def listened_to(pc: Pc) -> Told:
    """Subscribe many listeners to all vCPUs; returns the events they receive from now on."""
    told: Told = []
    for number in range(LISTENERS):
        pc.vm.subscribe(range(VCPUS), lambda event, number=number: told.append((number, event)))  # type: ignore[misc]
    return told


def all_told() -> Told:
    return [(number, InterruptPending(vcpu)) for vcpu in range(VCPUS) for number in range(LISTENERS)]


def test_a_broadcast_is_sent_in_pieces_and_in_order(later: Deadlines) -> None:
    pc = Pc(VCPUS, deadlines=later)
    told = listened_to(pc)
    assert pc.vm.signal_msi(BROADCAST, VECTOR) == VCPUS
    assert (told, pc.vm.agenda.backlog is not None) == ([], True), "its own turn notified no listener"
    while pc.vm.agenda.backlog is not None:
        before = len(told)
        do_one(later)
        assert len(told) - before <= TURN_NOTIFICATIONS
    assert told == all_told()


def test_later_events_are_sent_after_the_backlog(later: Deadlines) -> None:
    pc = Pc(VCPUS, deadlines=later)
    told = listened_to(pc)
    pc.vm.signal_msi(BROADCAST, VECTOR)
    ends: list[int] = []  # how many events had been sent when each halt ended
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        ends.append(len(told))
        outcomes.append(outcome)

    pc.vm.halt(0, done)  # an interrupt is pending
    assert ends == []
    do_all(later)
    assert (told, ends) == (all_told(), [len(told)])
    assert outcomes == [(VECTOR, False)]


def test_work_in_turns_waits_until_the_backlog_is_sent(later: Deadlines) -> None:
    pc = Pc(VCPUS, deadlines=later)
    listened_to(pc)
    pc.vm.signal_msi(BROADCAST, VECTOR)
    gone_on: list[str] = []
    driving = pc.vm.driving([20 << 1 | 1] * 300)
    backlog = next(driving)
    assert backlog is pc.vm.agenda.backlog
    assert backlog is not None
    backlog.when_done(lambda: gone_on.append("before the end"))
    do_one(later)
    assert gone_on == []
    do_all(later)
    assert gone_on == ["before the end"]
    backlog.when_done(lambda: gone_on.append("after it"))
    assert gone_on == ["before the end", "after it"], "a later operation does not wait"
    assert len(turns.finish(driving)) == 300


def test_no_timer_expires_until_the_backlog_is_sent(later: Deadlines) -> None:
    host = Deadlines()
    pc = Pc(VCPUS, clock=RealClock(host), deadlines=later)
    pc.count_apic(0, 0x61, 1_000_000)
    told = listened_to(pc)
    assert host.alarms.earliest() is not None
    pc.vm.signal_msi(BROADCAST, VECTOR)
    assert host.alarms.earliest() is None
    host.time = 2_000_000
    assert pc.vm.ack_interrupt(0) == (VECTOR, False)
    do_all(later)
    assert told == all_told()
    assert host.alarms.earliest() == 1_000_000, "the clock is woken again, for a time in the past"
    assert pc.vm.ack_interrupt(0) == (0x61, False)


def test_deleting_the_vm_loses_no_event_and_ends_all_waiting(later: Deadlines) -> None:
    pc = Pc(VCPUS, deadlines=later)
    outcomes: list[Outcome] = []
    pc.start(1)
    pc.vm.halt(1, outcomes.append, interrupts_masked=True)
    told = listened_to(pc)
    pc.vm.signal_msi(BROADCAST, VECTOR)
    backlog = pc.vm.agenda.backlog
    assert backlog is not None
    gone_on: list[bool] = []
    backlog.when_done(lambda: gone_on.append(True))
    do_one(later)
    pc.vm.delete()
    do_all(later)
    assert (told, gone_on, pc.vm.agenda.backlog) == (all_told(), [True], None)
    assert len(outcomes) == 1
    assert later.alarms.earliest() is None


def test_the_turns_of_an_irq_lines_with_msis_are_bounded_by_work() -> None:
    pc = Pc(VCPUS)
    pc.vm.set_routing([MsiRoute(24, BROADCAST, VECTOR)])
    driving = pc.vm.driving([24 << 1 | 1] * 100)
    next(driving)
    assert pc.vm.agenda.backlog is None, "a turn's work was done, and no event is left"
    done = min(TURN_WORK // VCPUS, TURN_CHANGES)
    assert done < 100
    pieces = 1
    while next(driving, "end") is None:
        pieces += 1
    assert pieces == -(-100 // done) - 1


def test_the_end_of_a_source_ends_its_work_in_turns() -> None:
    pc = Pc()
    source = pc.vm.open_source("leaver")
    driving = pc.vm.driving([20 << 1 | 1] * 300, source)
    next(driving)
    pc.vm.close_source(source)
    with refused("ENOENT"):
        next(driving)
