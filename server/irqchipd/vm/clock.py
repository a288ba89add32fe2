"""Time: a VM's clock, the host's time, and the alarms that either rings."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import ClassVar


class Alarm:
    """A call to make at a time. Alarms of one time ring in the order of their ranks.

    Only alarms of the host's time use two fields (see timers.py): share is the holder that is charged for the call, and
    a timeout comes before timers.
    """

    __slots__ = ("deadline", "due", "queued", "queued_at", "rank", "ring", "share", "timeout")

    def __init__(self, rank: int, ring: Callable[[], None], share: object = None, timeout: bool = False) -> None:
        self.rank = rank
        self.ring = ring
        self.share = share
        self.timeout = timeout
        self.deadline: int | None = None
        self.due = 0  # the deadline that passed last
        self.queued = False  # whether the alarm is due and waits in its share's queue
        self.queued_at = 0

    def forget(self) -> None:
        """Drop the call of an alarm that is no longer set: the alarm itself may be kept a while."""
        self.ring = _nothing

    def __lt__(self, other: Alarm) -> bool:
        return self.rank < other.rank

    def __hash__(self) -> int:
        return id(self)  # a compiled class with an order has no hash unless it defines one


def _nothing() -> None:
    pass


class Alarms:
    """Alarms in the order in which they are due."""

    __slots__ = ("_heap", "_running")

    def __init__(self) -> None:
        # An entry is stale when its time differs from its alarm's. At most half of the entries, and 16 more, are stale.
        self._heap: list[tuple[int, Alarm]] = []
        self._running = 0

    def set(self, alarm: Alarm, deadline: int | None) -> None:
        """Move an alarm to a time; None stops the alarm."""
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
        """When the first alarm is due; None if no alarm is set."""
        heap = self._heap
        while heap:
            deadline, alarm = heap[0]
            if alarm.deadline == deadline:
                return deadline
            heappop(heap)
        return None

    def pop_due(self, now: int) -> Alarm | None:
        """Take out the first alarm that is due, if one is."""
        deadline = self.earliest()
        if deadline is None or deadline > now:
            return None
        alarm = heappop(self._heap)[1]
        alarm.deadline = None
        alarm.due = deadline
        self._running -= 1
        return alarm


class Deadlines:
    """The host's time, nanoseconds, and the alarms that ring by it. In this class the time stands still until move().

    A daemon has the subclass timers.Timers, which follows the machine's clock.
    """

    def __init__(self) -> None:
        self.time = 0
        self.alarms = Alarms()

    def now(self) -> int:
        """The time."""
        return self.time

    def set(self, alarm: Alarm, deadline: int | None) -> None:
        """Ring an alarm at a time, instead of the time given before; None stops the alarm."""
        self.alarms.set(alarm, deadline)

    def move(self, nanoseconds: int) -> None:
        """Let time pass, and ring each alarm at its time."""
        end = self.time + nanoseconds
        while (due := self.alarms.earliest()) is not None and due <= end:
            self.time = max(self.time, due)
            alarm = self.alarms.pop_due(due)
            assert alarm is not None
            alarm.ring()
        self.time = end


class Clock:
    """A VM's time, nanoseconds from 0."""

    virtual: ClassVar[bool]  # whether the time moves only when an operation moves it

    def now(self) -> int:
        """The time."""
        raise NotImplementedError

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        """Call ring from another thread at a time, instead of the time given before; None: never."""
        raise NotImplementedError


class RealClock(Clock):
    """A clock that follows the host's time."""

    virtual = False

    def __init__(self, deadlines: Deadlines, start: int = 0) -> None:
        self._deadlines = deadlines
        self._epoch = deadlines.now() - start
        self._alarm: Alarm | None = None

    def now(self) -> int:
        return self._deadlines.now() - self._epoch

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        if deadline is not None:
            if self._alarm is None:
                self._alarm = Alarm(0, ring, share=self)
            self._deadlines.set(self._alarm, deadline + self._epoch)
        elif self._alarm is not None:
            self._deadlines.set(self._alarm, None)
            self._alarm.forget()
            self._alarm = None


class VirtualClock(Clock):
    """A clock that stands still until an operation moves it."""

    virtual = True

    def __init__(self, start: int = 0) -> None:
        self.time = start

    def now(self) -> int:
        return self.time

    def wake(self, ring: Callable[[], None], deadline: int | None) -> None:
        """Do nothing: nothing comes due between two operations."""
