"""What both ends of the AF_UNIX port share: where it is, how long a packet is, and how one waits for the other."""

from __future__ import annotations

import socket
import struct
from time import perf_counter_ns

SUFFIX = ".port"  # behind the path of the daemon's other socket
MESSAGE_BYTES = 1 << 16  # of a packet; sockets do not take much more as one
POLL_NS = 50_000  # how long to poll at the most, unless told otherwise

_FIRST_POLL_NS = 10_000
_TIMEVAL = struct.Struct("@ll")


class Receiver:
    """Receives packets from a socket. One thread at a time may.

    A thread that blocks costs its waking up again, several times what it takes to send a packet. So it polls first, for
    a time that grows while packets come that soon, and shrinks to nothing when they do not. KVM: kvm_main.c
    grow_halt_poll_ns.
    """

    def __init__(self, connection: socket.socket, poll_ns: int) -> None:
        self._connection = connection
        self._receive = connection.recv
        self._most_ns = poll_ns
        self._timeout: float | None = None
        # For how long it polls now.
        self.poll_ns = 0

    def receive(self, timeout: float | None = None) -> bytes:
        """The next packet, empty at the end; of one that is too long, more than MESSAGE_BYTES. TimeoutError."""
        begun = perf_counter_ns()
        if self.poll_ns:
            end = begun + self.poll_ns
            while True:
                try:
                    return self._receive(MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    if perf_counter_ns() > end:
                        break
        if timeout != self._timeout:
            self._set_timeout(timeout)
        try:
            packet = self._receive(MESSAGE_BYTES + 1)
        except BlockingIOError:
            raise TimeoutError from None
        if self._most_ns:
            self._adapt(perf_counter_ns() - begun)
        return packet

    def _adapt(self, waited: int) -> None:
        if waited > 2 * self._most_ns:  # it is what waking up took, too
            self.poll_ns = 0
        else:
            self.poll_ns = min(max(2 * self.poll_ns, _FIRST_POLL_NS), self._most_ns)

    def _set_timeout(self, timeout: float | None) -> None:
        # The socket's own: Python's would cost another system call every time.
        microseconds = 0 if timeout is None else max(round(timeout * 1e6), 1)
        value = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._timeout = timeout
