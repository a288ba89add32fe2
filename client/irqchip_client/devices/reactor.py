"""The timers and descriptors of devices: one thread serves them."""

from __future__ import annotations

import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from .device import Device, Timer
from .failures import blame


class Reactor:
    """Calls devices back, each time within `turn`. A device's exception ends the reactor, and goes to `failed`."""

    def __init__(
        self, turn: Callable[[], AbstractContextManager[None]], failed: Callable[[BaseException], None]
    ) -> None:
        self._turn = turn
        self._failed = failed
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # stop() does not close it: a device may arm a timer after that, too.
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._timers: set[Timer] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._sleeps_until = float("inf")
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="irqchip devices", daemon=True)

    def start(self) -> None:
        """Begins to call back."""
        self._thread.start()

    def stop(self) -> None:
        """Stops calling back. From any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Calls a function in a later turn. From any thread; the thread does not wait."""
        self._calls.append(call)
        os.eventfd_write(self._wake, 1)

    # Within a turn.

    def arm(self, timer: Timer) -> None:
        """A timer is due at another time, or no longer due."""
        if timer.due is None:
            self._timers.discard(timer)
            return
        self._timers.add(timer)
        if timer.due < self._sleeps_until:
            os.eventfd_write(self._wake, 1)

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        """Calls `ready` whenever a descriptor can be read; with None, ends that."""
        with suppress(KeyError):
            self._selector.unregister(descriptor)
        if ready is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, ready)
        os.eventfd_write(self._wake, 1)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                with self._turn():
                    while self._calls:
                        self._calls.popleft()()
                    self._expire()
                    due = min((timer.due for timer in self._timers if timer.due is not None), default=None)
                    self._sleeps_until = float("inf") if due is None else due
                for key, _ in self._selector.select(None if due is None else max(due - time.monotonic(), 0)):
                    if key.data is None:
                        with suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                    elif not self._stopping:
                        with self._turn():
                            if self._selector.get_map().get(key.fd, None) == key:  # still watched
                                self._ready(key.fd, key.data)
        except BaseException as error:
            self._failed(error)

    @staticmethod
    def _ready(descriptor: int, ready: Callable[[], None]) -> None:
        try:
            ready()
        except Exception as error:
            device = getattr(ready, "__self__", None)
            if isinstance(device, Device):
                blame(error, device, f"its callback for descriptor {descriptor}")
            raise

    def _expire(self) -> None:
        now = time.monotonic()
        late = [timer for timer in self._timers if timer.due is not None and timer.due <= now]
        for timer in sorted(late, key=lambda timer: timer.due or 0):
            if timer.due is not None and timer.due <= now:  # an earlier timer may have stopped it
                self._timers.discard(timer)
                timer.due = None
                try:
                    timer.expired()
                except Exception as error:
                    blame(error, timer.device, "a timer")
                    raise
