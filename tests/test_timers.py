"""The thread that rings alarms: on time, and fairly when more alarms are due than it has time for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random

import pytest

from irqchipd.timers import Timers
from irqchipd.vm.clock import Alarm
from tests.waiting import PATIENCE, eventually

MS = 1_000_000
SECOND = 1_000_000_000
SOON, LATER = 5 * MS, 3600 * SECOND


# On time.


@pytest.fixture(scope="module")
def timers() -> Timers:
    return Timers()  # its thread never ends


class Bell:
    """An alarm that notes when it rang."""

    def __init__(self, also: Callable[[], object] = lambda: None) -> None:
        self.alarm = Alarm(0, self._ring)
        self._also = also
        self._times: SimpleQueue[int] = SimpleQueue()

    def _ring(self) -> None:
        self._times.put(time.monotonic_ns())
        self._also()

    def rang(self) -> int:
        """When the alarm rang; waits until it has."""
        return self._times.get(timeout=PATIENCE)

    def is_silent(self, seconds: float = 0.03) -> bool:
        """Whether the alarm does not ring for a while."""
        try:
            self._times.get(timeout=seconds)
        except Empty:
            return True
        return False


def in_a_while(nanoseconds: int = SOON) -> int:
    return time.monotonic_ns() + nanoseconds


def test_a_stopped_clock_rings_nothing_and_has_no_thread() -> None:
    timers, bell, late = Timers(), Bell(), Bell()
    timers.set(bell.alarm, timers.now() + LATER)
    thread = timers._ringer
    assert thread is not None
    assert thread.is_alive()
    timers.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    timers.set(late.alarm, timers.now())
    time.sleep(0.05)
    assert late._times.empty()


def test_it_rings_once_and_not_before_the_time(timers: Timers) -> None:
    bell, due = Bell(), in_a_while()
    timers.set(bell.alarm, due)
    lateness = bell.rang() - due
    assert 0 <= lateness < PATIENCE * SECOND
    assert bell.is_silent()


def test_what_is_due_already_rings_at_once(timers: Timers) -> None:
    bell = Bell()
    timers.set(bell.alarm, 1)
    bell.rang()


def test_an_earlier_one_from_another_ringer_does_not_wait_for_the_later(timers: Timers) -> None:
    late, early = Bell(), Bell()
    timers.set(late.alarm, in_a_while(LATER))
    time.sleep(0.02)  # by now the thread waits for that alarm
    due = in_a_while()
    threading.Thread(target=timers.set, args=(early.alarm, due)).start()
    assert 0 <= early.rang() - due < PATIENCE * SECOND
    assert late.is_silent(0)
    timers.set(late.alarm, None)


def changed(timers: Timers, to: int | None) -> Bell:
    """A bell that was to ring soon, until its alarm was changed."""
    while True:
        bell, due = Bell(), in_a_while(SOON)
        timers.set(bell.alarm, due)
        timers.set(bell.alarm, to)
        if time.monotonic_ns() < due:  # a busy machine may be too late
            return bell
        timers.set(bell.alarm, None)


def test_moved_ones_ring_at_their_last_time_alone(timers: Timers) -> None:
    bell = Bell()
    timers.set(bell.alarm, in_a_while(LATER))
    due = in_a_while(SOON)
    timers.set(bell.alarm, due)
    assert bell.rang() >= due
    bell = changed(timers, in_a_while(LATER))
    assert bell.is_silent()
    timers.set(bell.alarm, None)


def test_a_cancelled_one_does_not_ring(timers: Timers) -> None:
    assert changed(timers, None).is_silent()


def test_an_alarm_may_set_itself_and_others_as_it_rings(timers: Timers) -> None:
    other = Bell()
    bells: list[Bell] = []

    def again() -> None:
        if len(rings) < 3:
            timers.set(bells[0].alarm, in_a_while(MS))
        timers.set(other.alarm, in_a_while(MS))
        rings.append(None)

    rings: list[None] = []
    bells.append(Bell(again))
    timers.set(bells[0].alarm, in_a_while(MS))
    for _ in range(4):
        bells[0].rang()
    other.rang()
    assert bells[0].is_silent()


def test_many_from_many_ringers_all_ring_once_and_in_time(timers: Timers) -> None:
    bells = [Bell() for _ in range(200)]
    rng = Random(5)
    dues = [in_a_while(rng.randrange(50) * MS) for _ in bells]

    def set_some(first: int) -> None:
        for bell, due in zip(bells[first::4], dues[first::4], strict=True):
            timers.set(bell.alarm, in_a_while(LATER))
            timers.set(bell.alarm, due)

    threads = [threading.Thread(target=set_some, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    assert all(bell.rang() >= due for bell, due in zip(bells, dues, strict=True))
    assert all(bell.is_silent(0) for bell in bells)


def test_while_nothing_is_due_it_does_not_run(timers: Timers) -> None:
    bell = Bell()
    timers.set(bell.alarm, 0)
    bell.rang()
    timers.set(bell.alarm, in_a_while(LATER))
    thread = timers._ringer
    assert thread is not None
    status = Path(f"/proc/self/task/{thread.native_id}/status")
    time.sleep(0.05)

    def switches() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt" in line]

    def rests() -> bool:
        before = switches()
        time.sleep(0.25)
        return switches() == before

    eventually(rests)  # on a busy machine the thread may go to sleep late
    timers.set(bell.alarm, None)


def test_an_alarm_that_fails_does_not_silence_the_others() -> None:
    """One thread rings for all VMs."""
    timers, bell = Timers(), Bell()

    def fail() -> None:
        raise RuntimeError("on purpose")

    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        timers.set(Alarm(0, fail), 1)
        time.sleep(0.01)
        timers.set(bell.alarm, 2)
        bell.rang()
    finally:
        threading.excepthook = hook


# Fairly.


class Rung:
    """A thread that is busy until `all` is called, and the names of the alarms that rang afterwards, in order."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.names: list[str] = []
        self._go_on, self._done = threading.Event(), threading.Event()
        inside = threading.Event()

        def block() -> None:
            inside.set()
            self._go_on.wait(PATIENCE)

        self.timers.set(Alarm(0, block, "blocker"), time.monotonic_ns())
        assert inside.wait(PATIENCE)

    def set(self, name: str, share: object, timeout: bool = False, also: Callable[[], None] | None = None) -> Alarm:
        """An alarm that is due."""

        def ring() -> None:
            self.names.append(name)
            if also is not None:
                also()

        alarm = Alarm(0, ring, share, timeout)
        self.timers.set(alarm, time.monotonic_ns())
        return alarm

    def all(self, count: int) -> list[str]:
        """Let the thread go on until `count` alarms have rung."""
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
    """Use the processor for a while."""
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


def test_a_late_vm_does_not_delay_other_vms(rung: Rung) -> None:
    """The late VM's alarm is always due, and rings for 1 ms; a quiet VM's alarm waits for one ringing at most."""
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
            rung.timers.set(behind, time.monotonic_ns())

    behind.ring = ring
    rung.timers.set(behind, time.monotonic_ns())
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
        rung.timers.set(alarm, time.monotonic_ns() if used < 100 * MS else None)
        if used >= 100 * MS:
            rung.names.append("end")

    alarm.ring = ring
    begun = time.monotonic_ns()
    rung.timers.set(alarm, begun)
    rung.all(1)
    assert used <= (time.monotonic_ns() - begun) * 2 / 3


def test_timeouts_ring_while_timers_are_held_back(rung: Rung) -> None:
    def work() -> None:
        burn(10 * MS)
        rung.set("timer", "noisy")
        rung.set("timeout", "quiet", timeout=True)

    rung.set("work", "noisy", also=work)
    assert rung.all(3) == ["work", "timeout", "timer"]


def test_where_no_thread_can_be_made_the_next_alarm_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, rung = Timers(), [threading.Event(), threading.Event()]

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            timers.set(Alarm(0, rung[0].set), time.monotonic_ns())
    timers.set(Alarm(0, rung[1].set), time.monotonic_ns())
    assert all(event.wait(PATIENCE) for event in rung)
