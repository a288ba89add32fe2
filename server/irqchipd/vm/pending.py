"""Something that ends once, later, and that any thread may wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Final, TypeVar

_T = TypeVar("_T")

# Guards the calls of every Pending, each time for a moment: a thread begins to wait without the VM's lock.
_LOCK: Final = threading.Lock()


class Pending:
    """For example an access that its owner has to answer, or notifications that are left to send."""

    done = False
    _calls: Sequence[Callable[[], None]] = ()

    def when_done(self, call: Callable[[], None]) -> None:
        """Call something at the end: from any thread, and perhaps before this returns."""
        with _LOCK:
            if not self.done:
                self._calls = (*self._calls, call)
                return
        call()

    def end(self) -> Sequence[Callable[[], None]]:
        """Mark the end. Returns the calls to make without the VM's lock."""
        with _LOCK:
            self.done = True
            return self._calls


# Work in slices, with other work between them. It yields the Pending that must end before the next slice, or None.
Slices = Generator[Pending | None, None, _T]
