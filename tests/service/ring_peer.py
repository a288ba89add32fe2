"""A client of the port with rings, by the layout that docs/port.md describes."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from typing import Any

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._daemon import Daemon
from tests.service.test_port import HEADER, OPERATION, RESULT, Peer
from tests.waiting import PATIENCE, eventually

SLOTS, SLOT_BYTES, MEMORY_BYTES = 64, 128, 20480
DAEMON_WAITS, CLIENT_WAITS, TO_DAEMON, TO_CLIENT = 64, 128, 4096, 12288
ON_THE_SOCKET = 1 << 32


class RingPeer(Peer):
    """It polls for answers, and does not say that it waits."""

    def __init__(self, daemon: Daemon, **opening: Any) -> None:
        super().__init__(daemon)
        self.send(open=pb.SessionOpen(rings=True, **opening))
        packet, self.descriptors, _, _ = socket.recv_fds(self.socket, 1 << 17, 4)
        self.opened = pb.SessionResponse.FromString(packet).opened
        self.has_rings = len(self.descriptors) == 3
        assert self.opened.source
        assert self.opened.rings == self.has_rings
        if self.has_rings:
            self.memory = mmap.mmap(self.descriptors[0], MEMORY_BYTES)
        self._sent = self._taken = 0

    def close(self) -> None:
        super().close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, offset)[0])

    def set_word(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, offset, value)

    @property
    def next_slot(self) -> int:
        """Where the next packet to the daemon goes."""
        return TO_DAEMON + SLOT_BYTES * (self._sent % SLOTS)

    @property
    def next_answer(self) -> int:
        return TO_CLIENT + SLOT_BYTES * (self._taken % SLOTS)

    @property
    def has_room(self) -> bool:
        return not self.word(self.next_slot)

    def fill(self, packet: bytes, length: int | None = None) -> None:
        """Fill the next slot, and say that the packet has this length."""
        slot = self.next_slot
        self.memory[slot + 8 : slot + 8 + len(packet)] = packet
        self.set_word(slot, len(packet) if length is None else length)
        self._sent += 1
        self.ring()

    def ring(self) -> None:
        if self.word(DAEMON_WAITS):
            os.eventfd_write(self.descriptors[1], 1)

    def send_on_socket(self, **message: Any) -> None:
        """A message, and before it its place in the ring."""
        self.fill(b"", ON_THE_SOCKET)
        self.send(**message)

    def put(self, serial: int, *records: tuple[int, int, int, int, int]) -> None:
        self.fill(HEADER.pack(0, serial) + b"".join(OPERATION.pack(*record) for record in records))

    def take(self) -> bytes:
        """The next packet, wherever the daemon sent it."""
        slot = self.next_answer
        until = time.monotonic() + PATIENCE
        while not (length := self.word(slot)):
            assert time.monotonic() < until, "no answer"
        packet = self.memory[slot + 8 : slot + 8 + length] if length != ON_THE_SOCKET else b""
        self.set_word(slot, 0)
        self._taken += 1
        self.ring()
        return packet or self.socket.recv(1 << 17)

    def take_results(self, count: int = 1) -> tuple[int, list[tuple[int, ...]], bytes]:
        """As receive_results, from the ring."""
        data = self.take()
        zero, serial = HEADER.unpack_from(data)
        assert zero == 0
        end = HEADER.size + count * RESULT.size
        return serial, [*RESULT.iter_unpack(data[HEADER.size : end])], data[end:]

    def until_the_daemon_waits(self) -> None:
        eventually(lambda: self.word(DAEMON_WAITS) != 0)

    def wakes(self, timeout: float = PATIENCE) -> bool:
        """Whether the daemon wakes this client."""
        poll = select.poll()
        poll.register(self.descriptors[2], select.POLLIN)
        return bool(poll.poll(timeout * 1000)) and bool(os.eventfd_read(self.descriptors[2]))
