"""The port with rings in shared memory: packets of records go through the rings, the others over the socket."""

from __future__ import annotations

import errno
import math
import mmap
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final

from irqchip.port import MESSAGE_BYTES
from irqchip.ring import MEMORY_BYTES, PACKET_BYTES, WAITS, WAITS_FOR_ROOM, BadSlotError, End

from .port import PortChannel

_LOOKS: Final = 4  # at the ring, between two system calls, in which other threads get the interpreter
_LOOKS_AT_ONCE: Final = 100  # some microseconds, in which most answers come
_DESCRIPTORS: Final = 3  # that come with rings: the memory, the daemon's bell, and the descriptor that wakes this side


class RingChannel(PortChannel):
    """A packets.Channel over the port's socket, and over rings once the daemon has sent some.

    The first packet to receive is the answer to the message that asks for rings.
    """

    def __init__(self, connection: socket.socket, poll_ns: int) -> None:
        super().__init__(connection, poll_ns)
        self._is_first = True
        self._end: End | None = None
        self._bell = -1
        self._woken = -1
        self._has_place = False  # Whether the next packet for the socket has its place in the ring.

    def _receive_first(self, flags: int) -> bytes:
        """Receives the first packet, and maps the rings that come with it."""
        packet, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES + 1, _DESCRIPTORS, flags)
        self._is_first = False
        if len(descriptors) != _DESCRIPTORS:  # The daemon has no rings for this Session.
            for descriptor in descriptors:
                os.close(descriptor)
            return packet
        memory, self._bell, self._woken = descriptors
        try:
            self._end = End(mmap.mmap(memory, MEMORY_BYTES), is_daemon=False)
        finally:
            os.close(memory)
        self._poll.register(self._connection, select.POLLRDHUP)
        self._poll.register(self._woken, select.POLLIN)
        return packet

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        end = self._end
        if end is None:
            super().send(packet, descriptors)
            return
        if packet[0] or descriptors or len(packet) > PACKET_BYTES:
            if not self._has_place:
                if not end.has_room():
                    raise BlockingIOError
                end.put_elsewhere()
                self._has_place = True
            super().send(packet, descriptors)
            self._has_place = False
        elif not end.put(packet):
            raise BlockingIOError
        if end.other_waits_now():
            os.eventfd_write(self._bell, 1)

    def receive(self, timeout: float | None = None) -> bytes:
        end = self._end
        if end is None:
            if not self._is_first:
                return super().receive(timeout)
            if not self._poll.poll(None if timeout is None else math.ceil(timeout * 1000)):
                raise TimeoutError
            return self._receive_first(0)
        adaptive = self._adaptive_poll
        try:
            polls = adaptive.begin()
            while polls:
                for _ in range(_LOOKS):
                    packet = end.take()
                    if packet is not None:
                        adaptive.polled()
                        return packet or self._from_socket()
                if self._poll.poll(0):
                    break
                polls = adaptive.again()
            packet = self._wait(end, timeout)
        except (BadSlotError, ValueError) as error:  # ValueError: another thread has closed the channel.
            raise OSError(errno.EPROTO, str(error)) from None
        adaptive.blocked()
        return packet

    def _wait(self, end: End, timeout: float | None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        end.wait(WAITS)
        try:
            while True:
                packet = end.take()
                if packet is not None:
                    return packet or self._from_socket()
                self._offer_room(end)
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                ready = self._poll.poll(None if left is None else math.ceil(left * 1000))
                if not ready:
                    raise TimeoutError
                if self._hear(ready) and not end.has_input():
                    return self._receive(MESSAGE_BYTES + 1)
        finally:
            end.wait(0)

    def receive_soon(self) -> bytes | None:
        end = self._end
        if end is None or not self._adaptive_poll.poll_ns:  # Polling has not paid.
            return None
        try:
            for _ in range(_LOOKS_AT_ONCE):
                packet = end.take()
                if packet:
                    return packet
                if packet is not None:
                    return self._from_socket()
        except (BadSlotError, OSError):  # receive() finds out what is wrong.
            pass
        return None

    def receive_now(self) -> bytes:
        end = self._end
        if end is None:
            return self._receive_first(socket.MSG_DONTWAIT) if self._is_first else super().receive_now()
        packet = end.take()
        if packet is not None:
            return packet or self._from_socket()
        if self._hear(self._poll.poll(0)) and not end.has_input():
            return self._receive(MESSAGE_BYTES + 1)
        end.fence()
        self._offer_room(end)
        raise BlockingIOError

    def _offer_room(self, end: End) -> None:
        """Wakes the daemon, if it waits for room: all packets were taken."""
        if end.other_waits() == WAITS_FOR_ROOM:
            os.eventfd_write(self._bell, 1)

    def _from_socket(self) -> bytes:
        """The packet whose place in the ring has come."""
        return self._receive(MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)

    def _hear(self, ready: Iterable[tuple[int, int]]) -> bool:
        """Takes in the events that woke this side, and returns whether the daemon sends no more."""
        is_over = False
        for descriptor, _ in ready:
            if descriptor == self._woken:
                os.eventfd_read(descriptor)
            else:
                is_over = True
        return is_over

    def wait_for_room(self, timeout: float | None) -> bool:
        end = self._end
        if end is None:
            return super().wait_for_room(timeout)
        end.wait(WAITS_FOR_ROOM)
        try:
            if end.has_input():
                return True
            self._offer_room(end)
            poll = select.poll()
            # If the ring has room, the socket has none: wait for the socket, too.
            poll.register(self._connection, select.POLLRDHUP | (select.POLLOUT if end.has_room() else 0))
            poll.register(self._woken, select.POLLIN)
            ready = poll.poll(None if timeout is None else math.ceil(timeout * 1000))
            return self._hear(event for event in ready if event[1] != select.POLLOUT) or end.has_input()
        finally:
            end.wait(0)

    def close(self) -> None:
        super().close()
        end, self._end = self._end, None
        if end is not None:
            end.close()
            os.close(self._bell)
            os.close(self._woken)
