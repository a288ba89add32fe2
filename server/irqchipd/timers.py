"""The host's time: one thread rings the alarms of all VMs."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from irqchipd.fair import FairQueue
from irqchipd.observe.histogram import Histogram
from irqchipd.vm.clock import Alarm, Deadlines

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 3600.0  # seconds; a thread can't wait as long as an alarm can be away
STRETCH_NS: Final = 2_000_000
LONGEST_REST_NS: Final = 5_000_000


class Timers(Deadlines):
    """The machine's monotonic clock, nanoseconds, and a thread that rings alarms by it.

    Among due alarms, the VM that has used the least time goes first: a VM whose timers need more time than the host has
    falls behind alone. Timeouts of Halts and regions have a queue of their own, and wait for one timer at the most.
    After STRETCH_NS of work without a pause, the timers rest for as long, and leave other threads half of the time.

    Any thread may call set, also from an alarm that rings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition(threading.Lock())
        self._timers: FairQueue[Alarm] = FairQueue()
        self._timeouts: FairQueue[Alarm] = FairQueue()
        self._timeout_was_last = False
        self._waits_until: int | None = 0  # None: for ever
        self._worked = 0  # nanoseconds since the last wait
        self._rests_until = 0
        # The longest time that a due alarm waited for its call, nanoseconds; a reader sets this to 0.
        self.latest = 0
        self.lateness: Histogram | None = None  # of all alarms, if metrics are kept
        self._ringer: threading.Thread | None = None
        self._stopped = False

    def now(self) -> int:
        return time.monotonic_ns()

    def set(self, alarm: Alarm, deadline: int | None) -> None:
        """Ring an alarm at a time, instead of the time given before; None stops an alarm that does not ring yet."""
        with self._changed:
            self.alarms.set(alarm, deadline)
            if deadline is None or self._stopped:
                return
            if self._ringer is None:
                ringer = threading.Thread(target=self._run, name="irqchipd timers", daemon=True)
                ringer.start()  # where no thread can be made now, the next alarm tries again
                self._ringer = ringer
            elif self._waits_until is None or deadline < self._waits_until:
                self._changed.notify()

    def stop(self) -> None:
        """Ring no more alarms, and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                alarm = self._next()
            if alarm is None:
                return
            begun = time.thread_time_ns()
            try:
                alarm.ring()
            except Exception:  # a VM's failure must not stop the timers of the others
                log.exception("a timer failed")
            self._charge(alarm, time.thread_time_ns() - begun)

    def _next(self) -> Alarm | None:
        """Wait for the alarm that rings next; None after stop()."""
        while not self._stopped:
            now = self.now()
            while (alarm := self.alarms.pop_due(now)) is not None:
                if not alarm.queued:
                    alarm.queued = True
                    alarm.queued_at = now
                    self._queue_of(alarm).put(alarm.share, alarm)
            timers_go = bool(self._timers) and now >= self._rests_until
            if timers_go or self._timeouts:
                # Alternate where both are due: timeouts, however many, must not stop the timers.
                self._timeout_was_last = bool(self._timeouts) and not (timers_go and self._timeout_was_last)
                _, alarm = (self._timeouts if self._timeout_was_last else self._timers).take()
                alarm.queued = False
                self.latest = max(self.latest, now - alarm.queued_at)
                if self.lateness is not None:
                    self.lateness.add(now - alarm.due)
                return alarm
            self._worked = 0
            self._waits_until = self.alarms.earliest()
            if self._timers and (self._waits_until is None or self._rests_until < self._waits_until):
                self._waits_until = self._rests_until
            self._changed.wait(self._seconds_to_wait())
            self._waits_until = 0
        return None

    def _queue_of(self, alarm: Alarm) -> FairQueue[Alarm]:
        return self._timeouts if alarm.timeout else self._timers

    def _charge(self, alarm: Alarm, nanoseconds: int) -> None:
        self._queue_of(alarm).charge(alarm.share, nanoseconds)
        self._worked += nanoseconds
        if self._worked > STRETCH_NS:
            self._rests_until = self.now() + min(self._worked, LONGEST_REST_NS)
            self._worked = 0

    def _seconds_to_wait(self) -> float | None:
        if self._waits_until is None:
            return None
        return min(max(self._waits_until - self.now(), 0) / 1e9, LONGEST_WAIT)
