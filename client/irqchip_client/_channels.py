"""A Client's gRPC channels, without their I/O.

A channel carries a bounded number of calls at a time: irqchipd takes about a hundred, and a further call waits in the
client's gRPC until another ends. Sessions, Watches and halts last, and would hold up all other calls. So calls that
last have channels of their own, as many as they need.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ._errors import client_closed

C = TypeVar("C")  # A channel, with its stub.

MOST_CALLS = 32  # Over a channel at a time.


@dataclass(slots=True)
class Peer:
    """A Client's daemon, as its Sessions and Watches need to know it."""

    target: str
    timeout: float  # Seconds that a call may take.
    closed: bool = False  # Whether the Client is closed.


class Lasting(Generic[C]):
    """The channels for calls that last: each is made when a call needs it.

    A channel without calls is closed if another has room. So the last channel stays until the Client closes, and
    repeated halts do not need a new connection each time.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._calls: dict[C, int] = {}  # The number of calls that use each channel.
        self._closed = False
        # Reentrant: a call that is garbage-collected, even in here, gives its channel back.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._calls)

    def take(self) -> C:
        """The channel for a call that begins. Unavailable after close()."""
        with self._lock:
            if self._closed:
                raise client_closed()
            channel = next((channel for channel, calls in list(self._calls.items()) if calls < MOST_CALLS), None)
            if channel is None:
                channel = self._make()
            self._calls[channel] = self._calls.get(channel, 0) + 1
            return channel

    def give_back(self, channel: C) -> bool:
        """A call over the channel has ended. Returns whether the caller is to close the channel."""
        with self._lock:
            if channel not in self._calls:  # close() handed it over.
                return False
            self._calls[channel] -= 1
            if self._calls[channel]:
                return False
            if not any(calls < MOST_CALLS for other, calls in list(self._calls.items()) if other != channel):
                return False
            del self._calls[channel]
            return True

    def close(self) -> list[C]:
        """No more calls. Returns the channels to close."""
        with self._lock:
            self._closed = True
            channels = list(self._calls)
            self._calls.clear()
            return channels
