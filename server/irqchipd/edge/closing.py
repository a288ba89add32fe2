"""Closing descriptors that clients sent. A close may wait: for a lingering socket, or a client's file system."""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

MAX_THREADS = 8

_NO_LINGER = struct.pack("ii", 0, 0)


class Closer:
    """Closes descriptors in threads of its own, which may wait. Any thread may call it."""

    def __init__(self) -> None:
        self._descriptors: queue.SimpleQueue[tuple[int, Callable[[], None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unclosed = 0  # in the queue, or being closed

    def close(self, descriptor: int, closed: Callable[[], None]) -> None:
        """Close a descriptor soon, and call closed then, from another thread."""
        with self._lock:
            self._unclosed += 1
            self._descriptors.put((descriptor, closed))
            if self._unclosed > self._threads and self._threads < MAX_THREADS:
                thread = threading.Thread(target=self._run, name="irqchipd closer", daemon=True)
                with suppress(RuntimeError):  # No thread can be made: the next call tries again.
                    thread.start()
                    self._threads += 1

    def _run(self) -> None:
        while True:
            descriptor, closed = self._descriptors.get()
            _do_not_linger(descriptor)
            with suppress(OSError):
                os.close(descriptor)
            closed()
            with self._lock:
                self._unclosed -= 1


def _do_not_linger(descriptor: int) -> None:
    """Make a socket's close return at once, unless another process that has the socket changes this just now."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:  # Not a socket.
        return
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    connection.detach()


CLOSER = Closer()
