"""The agenda of a VM: its lock, its alarms, and the work that an operation leaves. The agenda knows no chips."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Final

from irqchipd.vm.backlog import Backlog, Notification
from irqchipd.vm.clock import Alarm, Alarms, Clock, Deadlines
from irqchipd.vm.errors import VmError, deleted

log = logging.getLogger(__name__)

# What one turn does at the most, or slightly more: alarms, messages to local APICs and notifications, each of which
# takes some microseconds; and the most listeners that one turn calls. Later turns do the rest.
TURN_WORK: Final = 256
TURN_NOTIFICATIONS: Final = 256


class Touchable:
    """Something that a turn may touch, and whose look() is called once when the turn ends: a vCPU."""

    def __init__(self, agenda: Agenda, index: int) -> None:
        self.agenda = agenda
        self.index = index  # the order of creation, and of the looks at the end of a turn
        self.touched = False  # whether this is in the agenda's list

    def look(self) -> None:
        """Do what the turn made possible."""
        raise NotImplementedError


class Agenda:
    """An operation on a VM is a turn: `with agenda:`. ENOENT once the VM is deleted.

    A turn takes the lock, and first rings the alarms that came due. At its end, it does the deferred work, and calls
    look() of all that was touched; then it releases the lock, and calls the listeners.
    """

    def __init__(self, name: str, clock: Clock, deadlines: Deadlines) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.deleted = False
        self.clock = clock
        self.deadlines = deadlines
        # The holder of the VM's work in every FairQueue. This is not the VM: queues keep their holders.
        self.share: object = clock
        self.alarms = Alarms()
        self._alarms_moved = False
        self._next_wake: int | None = None
        # Whether the turn leaves anything: deferred work, touched vCPUs, notifications, or another time to wake at.
        self.unsettled = False
        self._deferred: list[Callable[[], None]] = []
        self.touched: list[Touchable] = []
        self._outbox: list[Notification] = []
        self._notified = 0  # listeners in the outbox
        self.work = 0  # done since the VM was made: see TURN_WORK
        self.backlog: Backlog | None = None
        self._backlog_alarm = Alarm(0, self._send_backlog, share=self.share)

    # A turn.

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.deleted:
            self.lock.release()
            raise deleted(self.name)
        if self._next_wake is not None and not self.clock.virtual:
            try:
                self._catch_up()
            except BaseException:
                self.lock.release()
                raise

    def __exit__(self, *_: object) -> None:
        if not self.unsettled:
            self.lock.release()
            return
        try:
            if self._deferred or self.touched:
                self.finish()
            self.unsettled = False
            outbox, self._outbox = self._outbox, []
            many, self._notified = self._notified > TURN_NOTIFICATIONS, 0
            if many or (outbox and self.backlog is not None):
                self._leave(outbox)
                outbox = []
            if self._alarms_moved:
                self._set_clock()
        finally:
            self.lock.release()
        if outbox:
            send(outbox)

    def delete(self) -> None:
        """Delete the VM: this turn is the last."""
        self.deleted = True
        self._move_alarms()

    # Work for the end of a turn.

    def set_alarm(self, alarm: Alarm, deadline: int | None) -> None:
        """Ring an alarm at a time of the VM; None stops the alarm."""
        self.alarms.set(alarm, deadline)
        self._move_alarms()

    def defer(self, work: Callable[[], None]) -> None:
        """Do some work when the operation is done with the chips."""
        self._deferred.append(work)
        self.unsettled = True

    def notify(self, listeners: Sequence[Callable[..., None]], *arguments: object) -> None:
        """Call listeners when the lock is free."""
        self._outbox.append((listeners, arguments))
        self._notified += len(listeners)
        self.work += len(listeners)
        self.unsettled = True

    def finish(self) -> None:
        """Do the deferred work, and call look() of all that was touched."""
        while self._deferred or self.touched:
            deferred, self._deferred = self._deferred, []
            for work in deferred:
                work()
            touched, self.touched = self.touched, []
            if len(touched) > 1:
                touched.sort(key=attrgetter("index"))
            for one in touched:
                one.look()
                one.touched = False  # after anything that the look itself touches

    # Alarms.

    def _move_alarms(self) -> None:
        self._alarms_moved = self.unsettled = True

    def ring_first(self, now: int) -> bool:
        """Ring the first alarm that is due. Returns whether any alarm was due."""
        alarm = self.alarms.pop_due(now)
        if alarm is None:
            return False
        self.work += 1
        self._move_alarms()
        alarm.ring()
        self.finish()  # before the next: a halt that this alarm ends takes its vector now
        return True

    def _set_clock(self) -> None:
        """Let the clock wake the VM for its first alarm. Not during a backlog, which would grow."""
        self._alarms_moved = False
        wake = None if self.deleted or self.backlog is not None else self.alarms.earliest()
        if wake != self._next_wake:
            self._next_wake = wake
            self.clock.wake(self._wake, wake)

    def _wake(self) -> None:
        """Have a turn, as alarms are due; called from the clock's thread."""
        with suppress(VmError), self:
            self._next_wake = None  # the clock has to be set again
            self._move_alarms()

    def _catch_up(self) -> None:
        """Ring the alarms that are due: the clock's thread may be late, and an expired timer must have interrupted."""
        now = self.clock.now()
        if self._next_wake is None or now < self._next_wake or self.backlog is not None:
            return
        self._move_alarms()
        most = self.work + TURN_WORK
        while self.work < most and self.ring_first(now):
            pass

    # The backlog.

    def _leave(self, outbox: Sequence[Notification]) -> None:
        """Leave notifications to later turns."""
        if self.backlog is None:
            self.backlog = Backlog()
            self._alarms_moved = True
            self.deadlines.set(self._backlog_alarm, self.deadlines.now())
        self.backlog.add(outbox)

    def _send_backlog(self) -> None:
        """Send some of the backlog; called from the thread of the timers."""
        backlog = self.backlog
        if backlog is None:
            return
        with self.lock:
            notifications = backlog.take(TURN_NOTIFICATIONS)
        send(notifications)
        with self.lock:
            if backlog:
                self.deadlines.set(self._backlog_alarm, self.deadlines.now())
                return
            self.backlog = None
            waiting = backlog.end()
        self._wake()  # for alarms that came due meanwhile
        for go_on in waiting:
            go_on()


def send(notifications: Iterable[Notification]) -> None:
    """Call every listener; the caller does not hold the VM's lock."""
    for listeners, arguments in notifications:
        for listener in listeners:
            try:
                listener(*arguments)
            except Exception:  # the other listeners and the caller go on
                log.exception("a listener failed")
