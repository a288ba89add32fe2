"""Work that the port does piece by piece, so that other holders have their turn in between."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from irqchipd.vm.pending import Pending

ONCE_A_WRITE: Final = select.EPOLLIN | select.EPOLLET  # of an eventfd: every write is an event


class Work:
    """Work of a holder, a VM's share as a rule: see FairQueue."""

    def __init__(self) -> None:
        self.queued = False  # whether the work is queued for its next piece

    @property
    def holder(self) -> object:
        """The holder that is charged for the next piece."""
        raise NotImplementedError

    def go_on(self) -> Pending | None:
        """Do a piece of the work. Returns what has to end before the next piece."""
        raise NotImplementedError


class Watcher:
    """Waits for descriptors."""

    def watch(self, descriptor: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call a handler, with the events, when a descriptor has some."""
        raise NotImplementedError

    def watch_eventfd(self, descriptor: int, work: Work) -> None:
        """Do some work whenever an eventfd is written."""
        raise NotImplementedError

    def unwatch(self, descriptor: int) -> None:
        """Stop waiting for a descriptor."""
        raise NotImplementedError
