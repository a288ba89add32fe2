"""The agenda alone, without chips: the work that a turn leaves, and its order."""

from __future__ import annotations

import pytest

from irqchipd.vm.agenda import Agenda, Touchable
from irqchipd.vm.clock import Alarm, Deadlines, RealClock, VirtualClock
from tests.builds import needs_sources
from tests.vm.pc import refused


class Looked(Touchable):
    """Records when it is looked at, and may then touch others."""

    def __init__(self, agenda: Agenda, index: int, diary: list[object], *others: Looked) -> None:
        super().__init__(agenda, index)
        self.diary, self.others = diary, others

    def touch(self) -> None:
        if not self.touched:
            self.touched = True
            self.agenda.touched.append(self)
            self.agenda.unsettled = True

    def look(self) -> None:
        self.diary.append(self.index)
        for other in self.others:
            other.touch()


@pytest.fixture
def agenda() -> Agenda:
    return Agenda("vm", VirtualClock(), Deadlines())


@needs_sources
def test_deferred_work_is_first_then_looks_in_order_then_notifications_without_the_lock(agenda: Agenda) -> None:
    diary: list[object] = []
    with agenda:
        agenda.notify((lambda event: diary.append((event, agenda.lock.locked())),), "event")
        for index in (2, 0, 1):
            Looked(agenda, index, diary).touch()
        agenda.defer(lambda: diary.append("deferred"))
        assert diary == []
    assert diary == ["deferred", 0, 1, 2, ("event", False)]


@needs_sources
def test_a_vcpu_touched_twice_is_looked_at_once_and_again_if_a_later_look_touches_it(agenda: Agenda) -> None:
    diary: list[object] = []
    first = Looked(agenda, 0, diary)
    second = Looked(agenda, 1, diary, first)
    second.others += (second,)
    with agenda:
        for looked in (first, second, first):
            looked.touch()
    assert diary == [0, 1, 0], "the touch of its own look does not count"


def test_a_failing_listener_does_not_affect_others(agenda: Agenda, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[object] = []

    def fail(_: object) -> None:
        raise RuntimeError("on purpose")

    with agenda:
        agenda.notify((fail, heard.append), "event")
    assert heard == ["event"]
    assert caplog.messages == ["a listener failed"]


def test_a_deleted_vm_refuses_turns_and_rings_no_alarms() -> None:
    deadlines, rung = Deadlines(), []
    agenda = Agenda("vm", RealClock(deadlines), deadlines)
    with agenda:
        agenda.set_alarm(Alarm(0, lambda: rung.append("alarm")), 10)
    with agenda:
        agenda.delete()
    deadlines.move(20)
    assert rung == []
    with refused("ENOENT"), agenda:
        raise AssertionError
    assert not agenda.lock.locked()


def test_an_alarm_rings_by_itself_or_before_the_next_turn_where_the_clock_is_late() -> None:
    deadlines = Deadlines()
    agenda = Agenda("vm", RealClock(deadlines), deadlines)
    rung: list[str] = []
    with agenda:
        agenda.set_alarm(Alarm(1, lambda: rung.append("second")), 10)
        agenda.set_alarm(Alarm(0, lambda: rung.append("first")), 10)
    deadlines.move(10)
    assert rung == ["first", "second"]
    with agenda:
        agenda.set_alarm(Alarm(0, lambda: rung.append("late")), 15)
    deadlines.time = 15  # without a thread that rings alarms
    with agenda:
        assert rung[2:] == ["late"]
