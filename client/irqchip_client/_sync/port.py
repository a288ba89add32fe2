"""The daemon's AF_UNIX port: packets over a socket, on the same host."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from irqchip.port import MESSAGE_BYTES, AdaptivePoll
from irqchip_client._errors import timed_out

from .packets import Channel

_TIMEVAL: Final = struct.Struct("@ll")


def connect_port(path: str | None, timeout: float) -> socket.socket | None:
    """A connection to the port at `path`; None if there is no port, or this user may not connect.

    Raises TimedOut if the port takes no more connections, as the port of a stopped daemon does not.
    """
    if path is None:
        return None
    deadline = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        while True:
            # This limits a connect() of this kind of socket, and is undone when connect() has returned.
            _set_timeout(connection, socket.SO_SNDTIMEO, max(deadline - time.monotonic(), 0))
            connection.connect(os.fsencode(path))
            _set_timeout(connection, socket.SO_SNDTIMEO, None)
            with suppress(OSError):
                # A signal that comes meanwhile ends connect(), and Python then takes it to have succeeded.
                connection.getpeername()
                return connection
    except BlockingIOError:
        connection.close()
        raise timed_out("a connection to the daemon's port", timeout) from None
    except OSError:
        connection.close()
        return None
    except BaseException:  # Ctrl-C
        connection.close()
        raise


def _set_timeout(connection: socket.socket, option: int, timeout: float | None) -> None:
    # The socket's own timeout: Python's would cost a system call each time. 0 is no limit.
    microseconds = 0 if timeout is None else max(round(timeout * 1e6), 1)
    connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


class PortChannel(Channel):
    """A Channel over the port's socket.

    poll_ns  how long to poll before blocking, nanoseconds at the most; 0: not at all
    """

    def __init__(self, connection: socket.socket, poll_ns: int) -> None:
        self._connection = connection
        self._send = connection.send
        self._receive = connection.recv
        self._adaptive_poll = AdaptivePoll(poll_ns)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._timeout: float | None = None

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        if descriptors:
            socket.send_fds(self._connection, [packet], list(descriptors), socket.MSG_DONTWAIT)
        else:
            self._send(packet, socket.MSG_DONTWAIT)

    def receive(self, timeout: float | None = None) -> bytes:
        """The next packet, empty at the end; a packet that is too long has more than MESSAGE_BYTES. TimeoutError."""
        adaptive, poll = self._adaptive_poll, self._poll.poll
        polls = adaptive.begin()
        while polls:
            if poll(0):
                adaptive.polled()
                return self._receive(MESSAGE_BYTES + 1)
            polls = adaptive.again()
        if timeout != self._timeout:
            _set_timeout(self._connection, socket.SO_RCVTIMEO, timeout)
            self._timeout = timeout
        try:
            packet = self._receive(MESSAGE_BYTES + 1)
        except BlockingIOError:
            raise TimeoutError from None
        adaptive.blocked()
        return packet

    def receive_soon(self) -> bytes | None:
        return None

    def receive_now(self) -> bytes:
        return self._receive(MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)

    def wait_for_room(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLOUT)
        ready = poll.poll(None if timeout is None else math.ceil(timeout * 1000))
        return bool(ready) and bool(ready[0][1] & select.POLLIN)

    def finish(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def disconnect(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()
