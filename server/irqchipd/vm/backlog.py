"""What a turn was to tell and left for later turns, because it was much."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from irqchipd.vm.pending import Pending

log = logging.getLogger(__name__)

TOLD_A_TURN = 256  # listeners; telling takes some microseconds each

# Listeners, and what each of them is called with.
Telling = tuple[Sequence[Callable[[Any], None]], object]


def tell(tellings: Iterable[Telling]) -> None:
    """Call every listener; nobody holds the VM's lock."""
    for listeners, event in tellings:
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # one listener's trouble is not the others', nor the caller's
                log.exception("a listener failed")


class Backlog(Pending):
    """Tellings in their order. The scheduler's thread does them, a piece at a time, and edges wait until that is done.

    Everything but done and when_done runs under the lock of the VM.
    """

    __slots__ = ("_tellings", "_told")

    def __init__(self) -> None:
        super().__init__()
        self._tellings: deque[Telling] = deque()
        self._told = 0  # listeners of the first that have been told

    def __bool__(self) -> bool:
        return bool(self._tellings)

    def add(self, tellings: Iterable[Telling]) -> None:
        """Put some behind the others."""
        self._tellings.extend(tellings)

    def take(self, most: int) -> list[Telling]:
        """The next tellings, to so many listeners at the most."""
        taken: list[Telling] = []
        while self._tellings and most > 0:
            listeners, event = self._tellings[0]
            part = listeners[self._told : self._told + most]
            taken.append((part, event))
            most -= len(part)
            self._told += len(part)
            if self._told == len(listeners):
                self._tellings.popleft()
                self._told = 0
        return taken
