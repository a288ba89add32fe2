"""The worker that writes to rings: packets that are nearly right, and words of the shared memory that nobody writes."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from contextlib import suppress
from random import Random

from irqchip.port import MESSAGE_BYTES, SUFFIX
from irqchip.ring import ELSEWHERE, MEMORY_BYTES, PACKET_BYTES, SLOT_BYTES, SLOTS
from irqchip.v1 import irqchip_pb2 as pb
from tests.fuzz.findings import Report, check_message
from tests.fuzz.machines import PATIENCE, Machines
from tests.fuzz.messages import Messages
from tests.fuzz.mutation import mutate
from tests.fuzz.packets import packet, record

EPISODE = 5000  # packets
A_CONNECTION = 100  # packets
LINGERING = 0.005  # seconds that one waits for answers before it closes
_DAEMON_WAITS, _CLIENT_WAITS, _TO_DAEMON, _TO_CLIENT = 64, 128, 4096, 12288
_WORD = struct.Struct("<Q")
_HEADER = struct.Struct("<B7xQ")


class RingFuzzer:
    """One connection at a time; an episode at a time."""

    def __init__(self, target: str, prefix: str) -> None:
        self._path = target.removeprefix("unix://") + SUFFIX
        self._machines = Machines(target, prefix)

    def close(self) -> None:
        self._machines.close()

    def run(self, seed: str, count: int, report: Report) -> None:
        """So many packets, the same for a seed."""
        end, episode = report.sent + count, 0
        while report.sent < end:
            self._episode(f"{seed}/{episode}", min(report.sent + EPISODE, end), report)
            episode += 1

    def _episode(self, name: str, end: int, report: Report) -> None:
        self._machines.make(name)
        random = Random(name)
        messages = Messages(random, self._machines.names)
        try:
            while report.sent < end:
                connection = _Connection(self._path, random.choice(self._machines.names), random, messages, report)
                try:
                    connection.fuzz(min(A_CONNECTION, end - report.sent))
                finally:
                    connection.close()
        finally:
            self._machines.delete()


class _Connection:
    """It is mostly right, so that it lasts a while."""

    def __init__(self, path: str, vm: str, random: Random, messages: Messages, report: Report) -> None:
        self._random, self._messages, self._report = random, messages, report
        self._sent = self._taken = 0
        self._last = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)
        opening = pb.SessionOpen(vm=vm, rings=True)
        self._socket.send(pb.SessionRequest(open=opening).SerializeToString())
        packet, self._descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES + 1, 4)
        check_message(report, packet, b"", "ring")
        self._socket.setblocking(False)
        # What spoils the connection is to come late, mostly.
        self._spoilt = random.choice((0.0, 0.02, 0.05, 0.3))

    def close(self) -> None:
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def fuzz(self, count: int) -> None:
        """So many packets."""
        if len(self._descriptors) != 3:  # the VM can't be used
            self._report.sent += count
            return
        with mmap.mmap(self._descriptors[0], MEMORY_BYTES) as memory:
            for _ in range(count):
                self._send(memory)
                self._report.sent += 1
                if self._random.random() < 0.9:
                    self._receive(memory)
            if self._random.random() < 0.7:
                until = time.monotonic() + LINGERING
                while time.monotonic() < until:
                    self._receive(memory)
                    select.select([self._descriptors[2]], [], [], LINGERING / 5)

    def _send(self, memory: mmap.mmap) -> None:
        random = self._random
        slot = _TO_DAEMON + SLOT_BYTES * (self._sent % SLOTS)
        if _WORD.unpack_from(memory, slot)[0] and random.random() < 0.95:
            return  # there is no room
        if random.random() < 0.15:
            self._last = packet(random) if random.random() < 0.5 else self._messages.batch(4).SerializeToString()
            word = ELSEWHERE
        else:
            count = random.choice((1, 1, 1, 2, 3, 4))
            data = _HEADER.pack(0, random.getrandbits(8)) + b"".join(record(random) for _ in range(count))
            if random.random() < self._spoilt:
                data = mutate(random, data)
            self._last = data = data[:PACKET_BYTES]
            memory[slot + 8 : slot + 8 + len(data)] = data
            word = len(data)
        if random.random() < self._spoilt:
            word = random.choice((0, 1, word + 24, 16, 121, ELSEWHERE, ELSEWHERE - 1, 1 << 63, random.getrandbits(64)))
        _WORD.pack_into(memory, slot, word)
        self._sent += word != 0
        if word == ELSEWHERE and random.random() >= self._spoilt:
            with suppress(OSError):
                self._socket.send(self._last[:MESSAGE_BYTES])
        if random.random() < self._spoilt:
            for _ in range(random.choice((1, 8, 64))):
                at = 8 * random.randrange(MEMORY_BYTES // 8)
                _WORD.pack_into(memory, at, random.choice((0, 1, 2, 40, ELSEWHERE, random.getrandbits(64))))
        if random.random() < 0.2:
            _WORD.pack_into(memory, _CLIENT_WAITS, random.choice((0, 1, 1, 2, random.getrandbits(64))))
        if _WORD.unpack_from(memory, _DAEMON_WAITS)[0] or random.random() < 0.05:
            self._write(self._descriptors[1], random.choice((1, 1, 1, 2, 1 << 63)))
        if random.random() < 0.01:
            self._write(self._descriptors[2], (1 << 64) - 2)

    @staticmethod
    def _write(eventfd: int, value: int) -> None:
        with suppress(BlockingIOError):  # it is full
            os.eventfd_write(eventfd, value)

    def _receive(self, memory: mmap.mmap) -> None:
        """Take what there is."""
        for _ in range(2 * SLOTS):
            slot = _TO_CLIENT + SLOT_BYTES * (self._taken % SLOTS)
            word = _WORD.unpack_from(memory, slot)[0]
            if not word:
                break
            received = memory[slot + 8 : slot + 8 + word] if word <= PACKET_BYTES else b""
            _WORD.pack_into(memory, slot, 0)
            self._taken += 1
            if not self._spoilt:  # otherwise it may be what this client has written
                if word <= PACKET_BYTES:
                    check_message(self._report, received, self._last, "ring")
                elif word != ELSEWHERE:
                    self._report.found("no-length", self._last, "ring")
        with suppress(OSError):
            while received := self._socket.recv(MESSAGE_BYTES + 1):
                check_message(self._report, received, self._last, "ring")
