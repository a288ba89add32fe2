"""Time: what a VM's clock says, and who rings when something is due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

from irqchipd.vm.fair import FairQueue

log = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0  # seconds; a thread can't wait as long as an alarm can be away
STRETCH_NS = 2_000_000
LONGEST_REST_NS = 5_000_000


class Alarm:
    """Something to be done at a time, or at none for now. Those of one time ring in the order of their ranks.

    share is whose time the ringing takes, and timeout whether it is one, which comes before timers (see Scheduler).
    """

    __slots__ = ("deadline", "queued", "queued_at", "rank", "ring", "share", "timeout")

    def __init__(self, rank: int, ring: Callable[[], None], share: object = None, timeout: bool = False) -> None:
        self.rank = rank
        self.ring = ring
        self.share = share
        self.timeout = timeout
        self.deadline: int | None = None
        self.queued = False  # Whether it is due, and waits for its share's turn.
        self.queued_at = 0  # Since when.

    def forget(self) -> None:
        """The alarm is not set any more: let go of what it would do, for it may be kept a while."""
        self.ring = _nothing

    def __lt__(self, other: Alarm) -> bool:
        return self.rank < other.rank


def _nothing() -> None:
    pass


class Alarms:
    """Alarms in the order in which they are due."""

    __slots__ = ("_heap", "_running")

    def __init__(self) -> None:
        # An entry whose time is not its alarm's any more stands for nothing. There are no more of those than others.
        self._heap: list[tuple[int, Alarm]] = []
        self._running = 0

    def set(self, alarm: Alarm, deadline: int | None) -> None:
        """Move an alarm to a time, or to none."""
        if deadline == alarm.deadline:
            return
        self._running += (deadline is not None) - (alarm.deadline is not None)
        alarm.deadline = deadline
        if deadline is not None:
            heappush(self._heap, (deadline, alarm))
        if len(self._heap) > 2 * self._running + 16:
            self._heap = [entry for entry in set(self._heap) if entry[0] == entry[1].deadline]
            heapify(self._heap)

    def earliest(self) -> int | None:
        """When the first is due."""
        heap = self._heap
        while heap:
            deadline, alarm = heap[0]
            if alarm.deadline == deadline:
                return deadline
            heappop(heap)
        return None

    def pop_due(self, now: int) -> Alarm | None:
        """The first, if it is due; it is set to no time."""
        deadline = self.earliest()
        if deadline is None or deadline > now:
            return None
        alarm = heappop(self._heap)[1]
        alarm.deadline = None
        self._running -= 1
        return alarm


class Scheduler:
    """Rings alarms by the machine's monotonic clock, nanoseconds, from one thread for all; it waits while none is due.

    Of what is due the VM that has had the least time goes first, so that a VM whose timers need more time than there is
    falls behind alone. Timeouts of Halts and regions have a queue of their own, and wait behind one timer at the most.
    After STRETCH_NS of work without a pause timers rest for as long, so that they leave others half of the time.

    set may be called from any thread, also by an alarm that rings.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._alarms = Alarms()
        self._timers: FairQueue[Alarm] = FairQueue()
        self._timeouts: FairQueue[Alarm] = FairQueue()
        self._timeout_was_last = False
        self._waits_until: int | None = 0  # None: for ever
        self._worked = 0  # nanoseconds, since it waited last
        self._rests_until = 0
        # How long a VM's timer that was due has waited for its turn, at the most, nanoseconds; who asks sets it to 0.
        self.latest = 0
        self._thread: threading.Thread | None = None

    def set(self, alarm: Alarm, deadline: int | None) -> None:
        """Ring at a time, and not at the one given before; or not at all, if it is not about to already."""
        with self._changed:
            self._alarms.set(alarm, deadline)
            if deadline is None:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="irqchipd timers", daemon=True)
                thread.start()  # where there can't be one now, whoever sets the next alarm tries again
                self._thread = thread
            elif self._waits_until is None or deadline < self._waits_until:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                alarm = self._next()
            begun = time.thread_time_ns()
            try:
                alarm.ring()
            except Exception:  # one VM's trouble is not the others'
                log.exception("a timer failed")
            self._charge(alarm, time.thread_time_ns() - begun)

    def _next(self) -> Alarm:
        """The alarm that rings next, when there is one."""
        while True:
            now = time.monotonic_ns()
            while (alarm := self._alarms.pop_due(now)) is not None:
                if not alarm.queued:
                    alarm.queued = True
                    alarm.queued_at = now
                    self._queue_of(alarm).put(alarm.share, alarm)
            timers_go = bool(self._timers) and now >= self._rests_until
            if timers_go or self._timeouts:
                # In turn, where there are both: so many timeouts can't stop the timers either.
                self._timeout_was_last = bool(self._timeouts) and not (timers_go and self._timeout_was_last)
                _, alarm = (self._timeouts if self._timeout_was_last else self._timers).take()
                alarm.queued = False
                self.latest = max(self.latest, now - alarm.queued_at)
                return alarm
            self._worked = 0
            self._waits_until = self._alarms.earliest()
            if self._timers and (self._waits_until is None or self._rests_until < self._waits_until):
                self._waits_until = self._rests_until
            self._changed.wait(self._patience())
            self._waits_until = 0

    def _queue_of(self, alarm: Alarm) -> FairQueue[Alarm]:
        return self._timeouts if alarm.timeout else self._timers

    def _charge(self, alarm: Alarm, nanoseconds: int) -> None:
        self._queue_of(alarm).charge(alarm.share, nanoseconds)
        self._worked += nanoseconds
        if self._worked > STRETCH_NS:
            self._rests_until = time.monotonic_ns() + min(self._worked, LONGEST_REST_NS)
            self._worked = 0

    def _patience(self) -> float | None:
        if self._waits_until is None:
            return None
        return min(max(self._waits_until - time.monotonic_ns(), 0) / 1e9, LONGEST_WAIT)


SCHEDULER = Scheduler()


class Clock(Protocol):
    """A VM's time, nanoseconds from 0."""

    @property
    def virtual(self) -> bool:
        """Whether it moves only when told to."""

    def now(self) -> int:
        """What it says."""

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        """Call, from another thread, when it says this, and not when it says what was given before."""


class RealClock:
    """Goes with the machine's monotonic clock."""

    virtual = False

    def __init__(self, start: int = 0) -> None:
        self._epoch = time.monotonic_ns() - start
        self._alarm: Alarm | None = None

    def now(self) -> int:
        """See Clock."""
        return time.monotonic_ns() - self._epoch

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        """See Clock."""
        if deadline is not None:
            if self._alarm is None:
                self._alarm = Alarm(0, ring, share=self)
            SCHEDULER.set(self._alarm, deadline + self._epoch)
        elif self._alarm is not None:
            SCHEDULER.set(self._alarm, None)
            self._alarm.forget()
            self._alarm = None


class VirtualClock:
    """Stands still until somebody moves it."""

    virtual = True

    def __init__(self, start: int = 0) -> None:
        self.time = start

    def now(self) -> int:
        """See Clock."""
        return self.time

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        """See Clock; there is nobody to call, as who moves the clock does what is due."""
