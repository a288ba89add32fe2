"""A pair of rings in shared memory, for packets of records; docs/port.md describes the memory.

A slot belongs to one side at a time, by its first word: 0 while the sender may fill the slot, the packet's length while
the receiver may read the slot. The sender stores the packet and then the length; the receiver copies the packet and
then stores the 0. So the sides share no index. This needs a processor whose stores other processors see in order.

A side that is about to block stores that in a word, and then checks the slots again; the other side stores a slot, and
then reads the word. One of them must see the other's store, so each calls fence() between its own store and its read.
"""

from __future__ import annotations

import platform
import sys
import threading
from mmap import mmap
from typing import Final

# Whether the processor's stores appear in their order, 8 bytes at once.
OFFERED: Final = platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 1 << 32

VERSION: Final = 1
SLOTS: Final = 64  # of either ring
SLOT_BYTES: Final = 128
PACKET_BYTES: Final = SLOT_BYTES - 8  # of a slot's longest packet
ELSEWHERE: Final = 1 << 32  # as a slot's first word: the next packet is on the socket
WAITS: Final = 1  # the side is blocked, or about to be
WAITS_FOR_ROOM: Final = 2  # the same, and the side has packets without a slot

# The words of the head: VERSION, SLOTS and SLOT_BYTES are the first three of 4 bytes each.
_DAEMON_WAITS: Final = 8
_CLIENT_WAITS: Final = 16
_HEAD_BYTES: Final = 4096
_RING_BYTES: Final = SLOTS * SLOT_BYTES
MEMORY_BYTES: Final = _HEAD_BYTES + 2 * _RING_BYTES
_SLOT_WORDS: Final = SLOT_BYTES // 8


class BadSlotError(Exception):
    """A slot's first word is not a length."""


class End:
    """One side of a pair of rings. One thread at a time may send, and one receive."""

    def __init__(self, memory: mmap, *, is_daemon: bool) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        to_daemon, to_client = _HEAD_BYTES // 8, (_HEAD_BYTES + _RING_BYTES) // 8
        incoming, outgoing = (to_daemon, to_client) if is_daemon else (to_client, to_daemon)
        self._own, self._other = (_DAEMON_WAITS, _CLIENT_WAITS) if is_daemon else (_CLIENT_WAITS, _DAEMON_WAITS)
        self._in = self._in_begin = incoming
        self._in_end = incoming + SLOTS * _SLOT_WORDS
        self._out = self._out_begin = outgoing
        self._out_end = outgoing + SLOTS * _SLOT_WORDS
        # Acquiring a lock that is free is a locked instruction.
        self._fence = threading.Lock()

    def has_input(self) -> bool:
        """Whether a packet can be taken."""
        return self._words[self._in] != 0

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return not self._words[self._out]

    def put(self, packet: bytes) -> bool:
        """Send a packet of at most PACKET_BYTES. False without room."""
        words, at = self._words, self._out
        if words[at]:
            return False
        start = 8 * at + 8
        self._memory[start : start + len(packet)] = packet
        words[at] = len(packet)
        at += _SLOT_WORDS
        self._out = at if at != self._out_end else self._out_begin
        return True

    def put_elsewhere(self) -> None:
        """Mark the place of a packet that was sent over the socket; has_room is true."""
        at = self._out
        self._words[at] = ELSEWHERE
        at += _SLOT_WORDS
        self._out = at if at != self._out_end else self._out_begin

    def take(self) -> bytes | None:
        """The next packet; empty if the socket has it; None if none has come. BadSlotError.

        The other side may change the slot meanwhile, so each part is read once.
        """
        words, at = self._words, self._in
        length = words[at]
        if not length:
            return None
        if length <= PACKET_BYTES:
            start = 8 * at + 8
            packet = self._memory[start : start + length]
        elif length == ELSEWHERE:
            packet = b""
        else:
            raise BadSlotError(f"a slot's first word is {length:#x}, but a packet has at most {PACKET_BYTES} bytes")
        words[at] = 0
        at += _SLOT_WORDS
        self._in = at if at != self._in_end else self._in_begin
        return packet

    def wait(self, how: int) -> None:
        """Store how this side is about to block; 0: not. Earlier stores of the other side are visible after this."""
        self._words[self._own] = how
        self.fence()

    def other_waits(self) -> int:
        """How the other side waits, or 0. Call fence() or wait() before this."""
        return self._words[self._other]

    def other_waits_now(self) -> int:
        """As other_waits(), after packets were put."""
        self.fence()
        return self._words[self._other]

    def fence(self) -> None:
        """Make the stores before this visible before any later load."""
        if self._fence.acquire(False):
            self._fence.release()

    def close(self) -> None:
        """Unmap the memory."""
        self._words.release()
        self._memory.close()
