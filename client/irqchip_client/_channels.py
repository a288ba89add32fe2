"""The connections of a Client, without their I/O.

A connection carries a bounded number of calls at a time: irqchipd takes about a hundred, and what is more waits in the
client's gRPC until one of them ends. Calls that last, which are Sessions, Watches and Halts, would so hold up each
other, and all others. They have channels of their own, and as many as it takes.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ._errors import client_closed

C = TypeVar("C")  # A channel, and what calls over it.

MOST_CALLS = 32  # Over a channel at a time.


@dataclass(slots=True)
class Peer:
    """The daemon that a Client is of, as those need it who call that daemon on the Client's behalf."""

    target: str
    timeout: float  # Seconds that a call may take.
    closed: bool = False  # Whether the Client is.


class Lasting(Generic[C]):
    """The channels of calls that last: each is made when it is needed.

    One that no call uses any more is closed if another has room. So the last stays until the Client closes, and to halt
    again and again does not take a new connection each time.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._calls: dict[C, int] = {}  # How many use a channel.
        self._closed = False
        # Reentrant: a call that is collected as garbage, here say, gives its channel back.
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
        """A call over it has ended. Whether the channel is to be closed."""
        with self._lock:
            if channel not in self._calls:  # close() gave it away.
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
