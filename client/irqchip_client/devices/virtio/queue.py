"""A split virtqueue, seen from the device. Section 2.7.

The driver is hostile: its rings and descriptors may have any content, and change at any time. A breach of the rules
raises BrokenQueueError, and no content makes the device do unbounded work.

A device uses buffers in the order in which they were made available. So the used ring's index is the device's
progress, and another process can continue from there.
"""

from __future__ import annotations

import platform
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from irqchip_client._errors import InvalidArgument
from irqchip_client.devices.ram import Ram

MOST: Final = 256  # of a queue's size; the standard allows 32768
# Descriptors of a chain. The standard allows as many as the queue has; Linux makes longer chains in indirect tables.
LONGEST: Final = 1024
MOST_BYTES: Final = 1 << 32  # of a chain, 2.7.5

DESCRIPTOR: Final = struct.Struct("<QIHH")  # struct virtq_desc: addr, len, flags, next
NEXT, WRITE, INDIRECT = 1, 2, 4  # VIRTQ_DESC_F_*
NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT
NO_NOTIFY = 1  # VIRTQ_USED_F_NO_NOTIFY
ALIGNMENT: Final = (16, 2, 4)  # of the descriptor table, the available ring and the used ring, 2.7
_INDICES: Final = 0x1_0000  # an index wraps there

_LOCK: Final = threading.Lock()
# Processors that show a process's stores to others in their order, and load in order.
_IN_ORDER: Final = platform.machine() in ("x86_64", "AMD64", "i686")


class BrokenQueueError(Exception):
    """The driver broke a rule. The device needs a reset."""


@dataclass(slots=True)
class Chain:
    """A buffer: the guest addresses and lengths of its parts.

    head  the index of its first descriptor
    """

    head: int
    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)

    @property
    def room(self) -> int:
        """The device-writable bytes."""
        return sum(length for _, length in self.writable)

    @property
    def given(self) -> int:
        """The device-readable bytes."""
        return sum(length for _, length in self.readable)


class Virtqueue:
    """A queue's registers, and its rings in the guest's memory while it is ready.

    size     descriptors
    ready    the driver has set it up
    areas    the guest addresses of the descriptor table, the available ring and the used ring
    begun    the device has used the rings: another process goes on at the used ring's index
    is_live  buffers can be taken
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        # The used index at the last notification; None if another process sent it.
        self._told: int | None = None
        self.reset()

    def reset(self) -> None:
        """The state after a reset: 2.6.1, 4.2.2.1."""
        self.size = self.most
        self.ready = False
        self.areas = [0, 0, 0]
        self.begun = False
        self.is_live = False

    # The rings.

    def begin(self, ram: Ram, *, event_idx: bool, indirect: bool) -> None:
        """Begins to use the rings, or continues where another process ended. BrokenQueueError."""
        self._map(ram, event_idx, indirect)
        if self.begun:
            self._next = self._done = self._used[1]
            self._told = None
        else:
            self._used[0] = self._used[1] = 0  # which a driver must have done already
            self._next = self._done = 0
            self._told = 0
            self.begun = True
        self.is_live = True

    def _map(self, ram: Ram, event_idx: bool, indirect: bool) -> None:
        if sys.byteorder != "little":
            raise BrokenQueueError("virtio devices run on little-endian hosts only")
        size = self.size
        if not 0 < size <= self.most or size & size - 1:
            raise BrokenQueueError(f"a queue of {size} descriptors: use a power of 2, {self.most} at the most")
        for area, alignment in zip(self.areas, ALIGNMENT, strict=True):
            if area % alignment:
                raise BrokenQueueError(f"a part of a queue is at {area:#x}: use a multiple of {alignment}")
        self._ram = ram
        self._event_idx, self._indirect = event_idx, indirect
        try:
            table, available, used = self.areas
            self._table = ram.view(table, 16 * size)
            # Words of 16 bits, each of which is loaded or stored by one access: flags, index, ring, event.
            self._available = ram.view(available, 6 + 2 * size).cast("H")
            self._used = ram.view(used, 6 + 8 * size).cast("H")
        except InvalidArgument as error:
            raise BrokenQueueError(f"a part of a queue: {error.message}") from None

    @property
    def has_buffers(self) -> bool:
        """Whether the driver has made a buffer available that the device has not taken."""
        return self._available[1] != self._next

    def end(self) -> None:
        """Ends all accesses to the rings."""
        self.is_live = False

    def pop(self) -> Chain | None:
        """Takes the next buffer; None if there is no buffer. BrokenQueueError."""
        index = self._available[1]
        waiting = (index - self._next) % _INDICES
        if not waiting:
            return None
        if waiting > self.size:
            raise BrokenQueueError(f"{waiting} buffers are available in a queue of {self.size}")
        _keep_order()
        head = self._available[2 + self._next % self.size]
        chain = self._chain(head)
        self._next = (self._next + 1) % _INDICES
        return chain

    def _chain(self, head: int) -> Chain:
        chain = Chain(head)
        total = 0
        for address, length, flags in self._descriptors(head):
            total += length
            if total > MOST_BYTES:
                raise BrokenQueueError(f"a buffer has more than {MOST_BYTES:#x} bytes")
            if not length:
                continue
            if flags & WRITE:
                chain.writable.append((address, length))
            elif chain.writable:
                raise BrokenQueueError("a device-readable part of a buffer is behind a device-writable one")
            else:
                chain.readable.append((address, length))
        return chain

    def _descriptors(self, head: int) -> Iterator[tuple[int, int, int]]:
        """The parts of a buffer: address, length and flags."""
        table, entries = self._table, self.size
        at, is_indirect = head, False
        for _ in range(LONGEST + 1):
            if at >= entries:
                raise BrokenQueueError(f"descriptor {at} of {entries}")
            address, length, flags, following = DESCRIPTOR.unpack_from(table, 16 * at)
            if not flags & INDIRECT:
                yield address, length, flags
                if not flags & NEXT:
                    return
                at = following
                continue
            if not self._indirect or is_indirect or flags & NEXT:
                raise BrokenQueueError(f"descriptor {at} has flags {flags:#x}")
            if not length or length % 16 or length > 16 * LONGEST:
                raise BrokenQueueError(f"an indirect table of {length} bytes")
            try:
                table = memoryview(self._ram.read(address, length))
            except InvalidArgument as error:
                raise BrokenQueueError(f"an indirect table: {error.message}") from None
            at, entries, is_indirect = 0, length // 16, True
        raise BrokenQueueError(f"a buffer has more than {LONGEST} descriptors")

    def push(self, chain: Chain, written: int) -> None:
        """Returns a buffer to the driver. Call it in the order of pop()."""
        at = 2 + 4 * (self._done % self.size)
        used = self._used
        used[at], used[at + 1] = chain.head, 0
        used[at + 2], used[at + 3] = written & 0xFFFF, written >> 16
        self._done = (self._done + 1) % _INDICES
        _keep_order()
        used[1] = self._done

    def put_back(self) -> None:
        """Makes pop() return the last buffer again, which was not pushed."""
        self._next = self._done

    # Notifications, 2.7.7 and 2.7.10.

    def wants_notifications(self, wants: bool) -> bool:
        """Asks the driver for notifications of new buffers, or for none. Returns whether there are buffers now."""
        if self._event_idx:
            if wants:
                self._used[2 + 4 * self.size] = self._next
        else:
            self._used[0] = 0 if wants else NO_NOTIFY
        _fence()
        return self.has_buffers

    def is_notification_due(self) -> bool:
        """Whether the driver wants a notification of the buffers that were pushed since the last call."""
        _fence()
        told, self._told = self._told, self._done
        if told == self._done:
            return False
        if not self._event_idx:
            return not self._available[0] & NO_INTERRUPT
        if told is None:
            return True
        event = self._available[2 + self.size]
        return (self._done - event - 1) % _INDICES < (self._done - told) % _INDICES


def _fence() -> None:
    """A full memory barrier between the accesses before it and those after it."""
    # On x86, the acquisition of a lock is a full barrier. Elsewhere a release before an acquisition is one.
    for _ in range(1 if _IN_ORDER else 2):
        if _LOCK.acquire(False):
            _LOCK.release()


def _keep_order() -> None:
    """A weaker barrier than _fence(): a load after it may still overtake a store before it."""
    if not _IN_ORDER:
        _fence()
