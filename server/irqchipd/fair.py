"""Fair queues, which choose the next piece of work. The timers, the port and the gRPC edge each have one.

Work belongs to a holder, a VM's share as a rule. The holder that has used the least time goes first, so that a VM that
uses little waits for one piece of work at the most, however many others are busy. A holder's work is done in the order
in which it came. (This is start-time fair queuing: Goyal, Vin and Cheng, 1996.)
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush, nlargest
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

LEAST_NS: Final = 20_000  # the cost of a piece of work besides the charged time
_KEPT: Final = 64  # holders without work that are remembered: those that have used the most


class FairQueue(Generic[_T]):
    """Pieces of work by holder. One thread at a time may call its methods.

    The queue keeps holders a while after their last work, so they should be small.
    """

    __slots__ = ("_floor", "_heap", "_number", "_used", "waiting")

    def __init__(self) -> None:
        # The pieces that wait, by holder. For others to read: it is empty where the queue is.
        self.waiting: dict[object, deque[_T]] = {}
        # Nanoseconds that each holder has used, and the holders with work by that; an entry may be out of date.
        self._used: dict[object, int] = {}
        self._heap: list[tuple[int, int, object]] = []
        self._number = 0
        # The time used by the last holder. An idle holder is raised to this time, so that idleness earns no credit.
        self._floor = 0

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def leads(self, holder: object) -> bool:
        """Whether work of this holder would be the next, and need not be put here."""
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
        """Charge a holder for its work: a piece that was taken from here, or one that did not have to wait."""
        used = max(self._used.get(holder, 0), self._floor)
        if not self.waiting:
            # A holder does not pay later for time that no other holder wanted.
            self._floor = used
        self._used[holder] = used + nanoseconds
        self._forget()

    def _forget(self) -> None:
        """Forget all but a few holders without work: holders come and go."""
        if len(self._used) > 2 * (len(self.waiting) + _KEPT):
            idle = (holder for holder, used in self._used.items() if used > self._floor and holder not in self.waiting)
            kept = nlargest(_KEPT, idle, self._used.__getitem__)
            self._used = {holder: self._used[holder] for holder in (*self.waiting, *kept)}

    def _push(self, holder: object, used: int) -> None:
        self._number += 1
        heappush(self._heap, (used, self._number, holder))
