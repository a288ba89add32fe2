"""The limits of Sessions and Watches, and of connections that are not Sessions yet."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from irqchipd.vm.errors import VmError

MAX_UNOPENED = 256  # of an edge: connections that are not Sessions yet; one more ends the oldest
OPENING_TIMEOUT: Final = 30.0  # seconds


class SessionQuota:
    """Counts Sessions and Watches, of all edges together; from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._used = 0
        self.peak = 0  # the most at a time so far

    def acquire(self) -> None:
        """Count another Session or Watch. ENOSPC at the limit."""
        with self._lock:
            self._check()
            self._used += 1
            self.peak = max(self.peak, self._used)

    @property
    def used(self) -> int:
        """The number now."""
        return self._used

    def check(self) -> None:
        """Raise the error that acquire would."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._used >= self._most:
            raise VmError(errno.ENOSPC, f"there are {self._most} Sessions, the most that this daemon allows")

    def release(self) -> None:
        """Undo an acquire."""
        with self._lock:
            self._used -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Acquire, and release at the end."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class Peer(NamedTuple):
    """The process at the other end, if the socket knows it."""

    transport: str
    address: str | None = None
    pid: int | None = None
    uid: int | None = None


UNKNOWN: Final = Peer("unknown")


def not_opened() -> VmError:
    """The error of a connection that is not a Session after OPENING_TIMEOUT."""
    return VmError(errno.ETIMEDOUT, f"the Session was not opened within {OPENING_TIMEOUT:g} s")


def too_many_unopened(most: int) -> VmError:
    """The error of the oldest connection that is not a Session, when there are too many of them."""
    return VmError(errno.ENOSPC, f"{most} newer connections wait to be opened, the most that this daemon allows")
