"""What the port does piece by piece, so that others have their turn in between."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from irqchipd.vm.pending import Pending

ONCE_A_WRITE: Final = select.EPOLLIN | select.EPOLLET  # of an eventfd: every write is an event


class Work:
    """Work of a holder, a VM's share as a rule: see FairQueue."""

    def __init__(self) -> None:
        self.queued = False  # whether it waits for its next piece

    @property
    def holder(self) -> object:
        """The holder whose time the next piece takes."""
        raise NotImplementedError

    def go_on(self) -> Pending | None:
        """Do a piece of the work. What has to end before the next piece."""
        raise NotImplementedError


class Watcher:
    """Waits for descriptors."""

    def watch(self, descriptor: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call a handler, with the events, when a descriptor has some."""
        raise NotImplementedError

    def watch_eventfd(self, descriptor: int, work: Work) -> None:
        """Have some work done whenever an eventfd is written."""
        raise NotImplementedError

    def unwatch(self, descriptor: int) -> None:
        """Wait for a descriptor no more."""
        raise NotImplementedError
