"""Notifications that a turn left for later turns, because there were many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from irqchipd.vm.pending import Pending

# Listeners, and the arguments that each of them is called with.
Notification = tuple[Sequence[Callable[..., None]], tuple[object, ...]]


class Backlog(Pending):
    """Notifications in their order. The timers' thread sends a few at a time; edges wait for the end.

    Everything but done and when_done runs under the lock of the VM.
    """

    def __init__(self) -> None:
        self._notifications: deque[Notification] = deque()
        self._notified = 0  # listeners of the first notification that have been called

    def __bool__(self) -> bool:
        return bool(self._notifications)

    def add(self, notifications: Iterable[Notification]) -> None:
        """Append notifications."""
        self._notifications.extend(notifications)

    def take(self, most: int) -> list[Notification]:
        """The next notifications, to at most this many listeners."""
        taken: list[Notification] = []
        while self._notifications and most > 0:
            listeners, arguments = self._notifications[0]
            part = listeners[self._notified : self._notified + most]
            taken.append((part, arguments))
            most -= len(part)
            self._notified += len(part)
            if self._notified == len(listeners):
                self._notifications.popleft()
                self._notified = 0
        return taken
