"""irqfds without a port: a thread waits for them."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from typing import Final

from irqchipd.edge.work import Watcher, Work

_WRITTEN: Final = select.EPOLLIN | select.EPOLLET  # each write is reported

log = logging.getLogger(__name__)


class EventfdWatcher(Watcher):
    """Waits for irqfds, in a thread that starts with the first irqfd."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while an irqfd interrupts, so that none is closed meanwhile
        self._epoll: select.epoll | None = None
        self._woken = -1
        self._work: dict[int, Work] = {}
        self._unwatched: set[int] = set()  # since the last look: their numbers may be in use again
        self._again: deque[int] = deque()
        self._stopping = False

    def watch_eventfd(self, descriptor: int, work: Work) -> None:
        with self._lock:
            if self._epoll is None:
                self._begin()
            assert self._epoll is not None
            self._epoll.register(descriptor, _WRITTEN)
            self._work[descriptor] = work

    def unwatch(self, descriptor: int) -> None:
        with self._lock:
            if self._work.pop(descriptor, None) is not None and self._epoll is not None:
                self._epoll.unregister(descriptor)
                self._unwatched.add(descriptor)

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            if self._epoll is not None and not self._stopping:
                self._stopping = True
                os.eventfd_write(self._woken, 1)

    def _begin(self) -> None:
        self._epoll = select.epoll()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._woken, _WRITTEN)
        threading.Thread(target=self._run, args=(self._epoll,), name="irqchipd irqfds", daemon=True).start()

    def _run(self, epoll: select.epoll) -> None:
        while not self._stopping:
            ready = [descriptor for descriptor, _ in epoll.poll()]
            with self._lock:
                ready += [self._again.popleft() for _ in range(len(self._again))]
                for descriptor in ready:
                    if descriptor in self._work:
                        self._look_at(descriptor, epoll)
                self._unwatched.clear()
        epoll.close()
        os.close(self._woken)

    def _look_at(self, descriptor: int, epoll: select.epoll) -> None:
        if descriptor in self._unwatched:
            epoll.modify(descriptor, _WRITTEN)  # reports the descriptor anew if it has been written
            return
        try:
            pending = self._work[descriptor].go_on()
        except Exception:  # the other irqfds go on
            log.exception("an irqfd failed")
            return
        if pending is not None:
            pending.when_done(lambda: self._look_again(descriptor))

    def _look_again(self, descriptor: int) -> None:
        self._again.append(descriptor)
        if not self._stopping:
            os.eventfd_write(self._woken, 1)
