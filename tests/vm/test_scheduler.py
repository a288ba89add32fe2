"""Whose alarm rings when more is due than there is time for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from irqchipd.vm.clock import Alarm, Scheduler

MS = 1_000_000
PATIENCE = 20.0


class Rung:
    """A scheduler that is busy until told to go on, and the names of the alarms that have rung since, in order."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.names: list[str] = []
        self._go_on, self._done = threading.Event(), threading.Event()
        inside = threading.Event()

        def block() -> None:
            inside.set()
            self._go_on.wait(PATIENCE)

        self.scheduler.set(Alarm(0, block, "blocker"), time.monotonic_ns())
        assert inside.wait(PATIENCE)

    def set(self, name: str, share: object, timeout: bool = False, also: Callable[[], None] | None = None) -> Alarm:
        """An alarm that is due."""

        def ring() -> None:
            self.names.append(name)
            if also is not None:
                also()

        alarm = Alarm(0, ring, share, timeout)
        self.scheduler.set(alarm, time.monotonic_ns())
        return alarm

    def all(self, count: int) -> list[str]:
        """Go on until so many have rung."""
        self._go_on.set()
        deadline = time.monotonic() + PATIENCE
        while len(self.names) < count:
            assert time.monotonic() < deadline, self.names
            time.sleep(0.001)
        return self.names


@pytest.fixture
def rung() -> Iterator[Rung]:
    rung = Rung()
    yield rung
    rung._go_on.set()


def burn(nanoseconds: int) -> None:
    """Use the processor for so long."""
    end = time.thread_time_ns() + nanoseconds
    while time.thread_time_ns() < end:
        pass


def test_timeouts_ring_before_timers_and_neither_stops_the_other(rung: Rung) -> None:
    for _ in range(3):
        rung.set("timer", "vm")
    for _ in range(3):
        rung.set("timeout", "vm", timeout=True)
    assert rung.all(6) == ["timeout", "timer"] * 3


def test_a_timeout_does_not_wait_behind_the_timeouts_of_another_vm(rung: Rung) -> None:
    for _ in range(100):
        rung.set("noisy", "noisy", timeout=True)
    rung.set("quiet", "quiet", timeout=True)
    assert "quiet" in rung.all(101)[:2]


def test_a_vm_that_is_behind_falls_behind_alone(rung: Rung) -> None:
    """Its alarm is always due, and each ringing takes a millisecond; a quiet VM's rings after one of these at most."""
    behind = Alarm(0, lambda: None, "noisy")
    waited: list[int] = []
    noisy = 0

    def ring() -> None:
        nonlocal noisy
        noisy += 1
        burn(MS)
        if noisy % 5 == 0:
            begun = noisy
            rung.set("quiet", "quiet", also=lambda: waited.append(noisy - begun))
        if noisy < 60:
            rung.scheduler.set(behind, time.monotonic_ns())

    behind.ring = ring
    rung.scheduler.set(behind, time.monotonic_ns())
    rung.all(12)
    assert max(waited) <= 1


def test_timers_leave_others_half_of_the_time(rung: Rung) -> None:
    alarm = Alarm(0, lambda: None, "noisy")
    used = 0

    def ring() -> None:
        nonlocal used
        begun = time.thread_time_ns()
        burn(MS)
        used += time.thread_time_ns() - begun
        rung.scheduler.set(alarm, time.monotonic_ns() if used < 100 * MS else None)
        if used >= 100 * MS:
            rung.names.append("end")

    alarm.ring = ring
    begun = time.monotonic_ns()
    rung.scheduler.set(alarm, begun)
    rung.all(1)
    assert used <= (time.monotonic_ns() - begun) * 2 / 3


def test_timeouts_ring_while_timers_rest(rung: Rung) -> None:
    def work() -> None:
        burn(10 * MS)
        rung.set("timer", "noisy")
        rung.set("timeout", "quiet", timeout=True)

    rung.set("work", "noisy", also=work)
    assert rung.all(3) == ["work", "timeout", "timer"]


def test_where_no_thread_can_be_made_the_next_alarm_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, rung = Scheduler(), [threading.Event(), threading.Event()]

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            scheduler.set(Alarm(0, rung[0].set), time.monotonic_ns())
    scheduler.set(Alarm(0, rung[1].set), time.monotonic_ns())
    assert all(event.wait(PATIENCE) for event in rung)
