"""What the port does piece by piece, so that others have their turn in between."""

from __future__ import annotations

from typing import Protocol

from irqchipd.vm.pending import Pending


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


class Watcher(Protocol):
    """Waits for descriptors."""

    def watch_eventfd(self, descriptor: int, work: Work) -> None:
        """Have some work done whenever an eventfd is written."""

    def unwatch(self, descriptor: int) -> None:
        """Wait for a descriptor no more."""
