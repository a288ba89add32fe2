"""Fairness: whose work is done next. The timers, the port and the gRPC edge each have such a queue.

Work belongs to a holder, a VM's share as a rule. The holder that has had the least time goes first, so that a VM that
uses little waits for one piece of work at the most, however many others are busy. Within a holder the work is done in
turn. (This is start-time fair queuing: Goyal, Vin and Cheng, 1996.)
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush, nlargest
from typing import Generic, TypeVar

_T = TypeVar("_T")

LEAST_NS = 20_000  # what a piece of work costs its holder beside the time that is charged
_KEPT = 64  # holders without work whose time is remembered: those that have had the most


class FairQueue(Generic[_T]):
    """Pieces of work by holder. One thread at a time may call its methods.

    Holders are kept a while when they have no work any more, so they should be small.
    """

    __slots__ = ("_floor", "_heap", "_number", "_used", "waiting")

    def __init__(self) -> None:
        # The pieces that wait, by holder. For others to read: it is empty where the queue is.
        self.waiting: dict[object, deque[_T]] = {}
        # Nanoseconds that each holder has had, and the holders with work by that; an entry may be out of date.
        self._used: dict[object, int] = {}
        self._heap: list[tuple[int, int, object]] = []
        self._number = 0
        # What the holder that went last had had. A holder that was idle has had no less: idleness earns nothing.
        self._floor = 0

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def leads(self, holder: object) -> bool:
        """Whether a piece of work of this holder would be the next, so that it need not be put here."""
        if not self.waiting:
            return True
        return holder not in self.waiting and max(self._used.get(holder, 0), self._floor) <= self._heap[0][0]

    def put(self, holder: object, work: _T) -> None:
        """Add a piece of work behind the holder's others."""
        waiting = self.waiting.get(holder)
        if waiting is not None:
            waiting.append(work)
            return
        self.waiting[holder] = deque((work,))
        used = self._used[holder] = max(self._used.get(holder, 0), self._floor)
        self._push(holder, used)
        self._forget()

    def take(self) -> tuple[object, _T]:
        """The next piece of work and its holder. Charge the holder when the work is done."""
        while True:
            entry, _, holder = heappop(self._heap)
            used = self._used[holder]
            if entry == used:
                break
            self._push(holder, used)
        self._floor = used
        used = self._used[holder] = used + LEAST_NS
        waiting = self.waiting[holder]
        work = waiting.popleft()
        if waiting:
            self._push(holder, used)
        else:
            del self.waiting[holder]
        return holder, work

    def charge(self, holder: object, nanoseconds: int) -> None:
        """A holder has had so much time: of a piece that it took, or of one for which nobody had to wait."""
        used = max(self._used.get(holder, 0), self._floor)
        if not self.waiting:
            # What nobody else wanted is not held against it later.
            self._floor = used
        self._used[holder] = used + nanoseconds
        self._forget()

    def _forget(self) -> None:
        """Holders come and go: keep few of those that have no work."""
        if len(self._used) > 2 * (len(self.waiting) + _KEPT):
            idle = (holder for holder, used in self._used.items() if used > self._floor and holder not in self.waiting)
            kept = nlargest(_KEPT, idle, self._used.__getitem__)
            self._used = {holder: self._used[holder] for holder in (*self.waiting, *kept)}

    def _push(self, holder: object, used: int) -> None:
        self._number += 1
        heappush(self._heap, (used, self._number, holder))
