"""Rings in shared memory, for clients of the port that poll: see irqchip/ring.py.

The daemon makes the memory, and seals its size: a client's own memory could shrink under the daemon, or be on a file
system that never answers. A client's data is copied once, checked, and never read again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from irqchip.ring import (
    MEMORY_BYTES,
    OFFERED,
    PACKET_BYTES,
    SLOT_BYTES,
    SLOTS,
    VERSION,
    WAITS,
    WAITS_FOR_ROOM,
    BadSlotError,
    End,
)
from irqchipd.edge.eventfd_write import writer
from irqchipd.vm.errors import VmError

log = logging.getLogger(__name__)

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LOOKS: Final = 4  # between two looks at the descriptors, if the rings are empty
_EVENTS: Final = 16  # the most that a look returns
_SWEEP: Final = 256  # looks, after which an unused ring is no longer polled


class Ring:
    """The daemon's end of a client's rings."""

    def __init__(self) -> None:
        # The memory; the bell, which the client writes while the daemon waits; and an eventfd that wakes the client.
        self.descriptors: list[int] = []
        try:
            descriptor = os.memfd_create("irqchipd ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self.descriptors.append(descriptor)
            os.ftruncate(descriptor, MEMORY_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            for _ in range(2):
                self.descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            memory = mmap.mmap(descriptor, MEMORY_BYTES)
        except BaseException:
            self._close_descriptors()
            raise
        struct.pack_into("<III", memory, 0, VERSION, SLOTS, SLOT_BYTES)
        self.end = End(memory, is_daemon=True)
        _, self.bell, self._wake = self.descriptors
        self.event = (self.bell, 0)
        # Whether the connection takes packets, and whether some had no room: otherwise the ring needs no service.
        self.listens = True
        self.wants_room = False
        self.is_polled = False
        self.used = True
        self.is_open = True

    def is_ready(self) -> bool:
        """Whether the connection has something to do."""
        return self.end.has_room() if self.wants_room else self.listens and self.end.has_input()

    def take(self) -> bytes | None:
        """The next packet; empty if the socket has it; None if none has come. EBADMSG."""
        self.used = True
        try:
            packet = self.end.take()
        except BadSlotError as error:
            raise VmError(errno.EBADMSG, f"the ring: {error}") from None
        if packet and packet[0]:
            raise VmError(errno.EBADMSG, "the ring carries records, and messages go over the socket")
        return packet

    def send(self, packet: bytes, send_elsewhere: Callable[[bytes], object]) -> None:
        """Send a packet in order, over the socket if it is too long or not records. BlockingIOError: no room."""
        end = self.end
        if packet[0] or len(packet) > PACKET_BYTES:
            if not end.has_room():
                raise BlockingIOError
            send_elsewhere(packet)
            end.put_elsewhere()
        elif not end.put(packet):
            raise BlockingIOError
        self.wake_client()

    def wake_client(self) -> None:
        """Wake the client, if it waits, for a packet or for room."""
        if self.end.other_waits_now():
            writer().add_one(self._wake)

    def offer_room(self) -> None:
        """Wake the client, if it waits for room: a packet was taken, and the answer comes later."""
        if self.end.other_waits_now() == WAITS_FOR_ROOM:
            writer().add_one(self._wake)

    def close_memory(self) -> None:
        """Close the descriptor of the memory: the client has a copy."""
        os.close(self.descriptors.pop(0))

    def close(self) -> None:
        """Close all descriptors and the memory."""
        self.is_open = False
        self.end.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class Rings:
    """The rings of a port. The port's thread polls the recently used rings; clients of the others ring the bell."""

    def __init__(self, most: int) -> None:
        self._most = most if OFFERED else 0
        if self._most:
            writer()  # makes its descriptor now, before clients take them
        self._count = 0
        self.polled: list[Ring] = []
        # Rings to poll again, from any thread.
        self.roused: deque[Ring] = deque()
        self._looks = 0
        self._next = 0  # where the last look ended

    def make(self) -> Ring | None:
        """A new ring. None at the limit, or without memory or descriptors: the client then uses the socket."""
        if self._count >= self._most:
            return None
        try:
            ring = Ring()
        except OSError as error:
            log.warning("the port can't make a ring: %s", error)
            return None
        self._count += 1
        self.poll(ring)
        return ring

    def close(self, ring: Ring) -> None:
        """The ring's connection has ended."""
        self._count -= 1
        if ring.is_polled:
            ring.is_polled = False
            self.polled.remove(ring)
        ring.close()

    def poll(self, ring: Ring) -> None:
        """Poll a ring again."""
        if ring.is_open and not ring.is_polled:
            ring.is_polled = ring.used = True
            ring.end.wait(0)
            self.polled.append(ring)

    def look(self) -> list[tuple[int, int]]:
        """Rings with something to do, as events of their bells; others come first the next time."""
        self._looks += 1
        if self._looks >= _SWEEP:
            self._looks = 0
            self._sweep()
        if len(self.polled) <= _EVENTS:
            return [ring.event for ring in self.polled if ring.is_ready()]
        found: list[tuple[int, int]] = []
        for _ in self.polled:
            self._next = (self._next + 1) % len(self.polled)
            ring = self.polled[self._next]
            if ring.is_ready():
                found.append(ring.event)
                if len(found) == _EVENTS:
                    break
        return found

    def look_often(self) -> list[tuple[int, int]]:
        """As look, but up to a few times, until a ring needs service."""
        if len(self.polled) != 1:
            for _ in range(_LOOKS):
                if found := self.look():
                    return found
            return []
        is_ready = self.polled[0].is_ready
        for _ in range(_LOOKS):
            if is_ready():
                return self.look()
        return []

    def park(self) -> bool:
        """Stop polling: the port's thread is about to block. False if a ring needs service now."""
        for ring in self.polled:
            self._park(ring)
        self.polled = [ring for ring in self.polled if ring.is_polled]
        return not self.polled

    def _sweep(self) -> None:
        for ring in self.polled:
            if not ring.used:
                self._park(ring)
            ring.used = False
        self.polled = [ring for ring in self.polled if ring.is_polled]

    def _park(self, ring: Ring) -> None:
        ring.is_polled = False  # read by a thread that changes what the ring waits for
        ring.end.wait(WAITS_FOR_ROOM if ring.wants_room else WAITS)
        if ring.is_ready():
            ring.is_polled = True
            ring.end.wait(0)
