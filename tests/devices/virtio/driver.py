"""A virtio driver, as section 3 of the standard describes one, over any way to access registers and memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from irqchip_client.devices.ram import Ram
from irqchip_client.devices.virtio.mmio import Feature, Interrupt, Register, Status

DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
PAGE = 4096


@dataclass
class Buffer:
    """A buffer that the driver has made available: what the device reads, and where the device writes."""

    head: int
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]


class Queue:
    """The driver's side of a split queue of `size` descriptors, whose parts are at an address."""

    def __init__(self, ram: Ram, at: int, size: int, *, event_idx: bool = False) -> None:
        self.ram, self.size, self.event_idx = ram, size, event_idx
        self.table = at
        self.available = at + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) // 4 * 4
        self.end = (self.used + 6 + 8 * size + PAGE - 1) // PAGE * PAGE
        ram.write(at, bytes(self.end - at))
        self.free = list(range(size))
        self.buffers: dict[int, Buffer] = {}
        self.index = self.seen = self.told = 0

    def descriptor(self, at: int, address: int, length: int, flags: int, following: int = 0) -> None:
        """Writes a descriptor."""
        self.ram.write(self.table + 16 * at, DESCRIPTOR.pack(address, length, flags, following))

    def add(self, reads: Sequence[tuple[int, int]], writes: Sequence[tuple[int, int]]) -> int:
        """Makes a buffer of a chain of descriptors. Returns its head."""
        parts = [(*part, 0) for part in reads] + [(*part, WRITE) for part in writes]
        taken = [self.free.pop(0) for _ in parts]
        for at, (address, length, flags) in enumerate(parts):
            last = at + 1 == len(parts)
            self.descriptor(taken[at], address, length, flags | (0 if last else NEXT), 0 if last else taken[at + 1])
        self.buffers[taken[0]] = Buffer(taken[0], list(reads), list(writes))
        self.offer(taken[0])
        return taken[0]

    def add_indirect(self, table: int, reads: Sequence[tuple[int, int]], writes: Sequence[tuple[int, int]]) -> int:
        """Makes a buffer of an indirect table, which is at an address."""
        parts = [(*part, 0) for part in reads] + [(*part, WRITE) for part in writes]
        for at, (address, length, flags) in enumerate(parts):
            more = NEXT if at + 1 < len(parts) else 0
            self.ram.write(table + 16 * at, DESCRIPTOR.pack(address, length, flags | more, at + 1 if more else 0))
        head = self.free.pop(0)
        self.descriptor(head, table, 16 * len(parts), INDIRECT)
        self.buffers[head] = Buffer(head, list(reads), list(writes))
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Puts a descriptor into the available ring."""
        self.ram.write(self.available + 4 + 2 * (self.index % self.size), struct.pack("<H", head))
        self.index = self.index + 1 & 0xFFFF
        self.ram.write(self.available + 2, struct.pack("<H", self.index))

    def word(self, at: int) -> int:
        """16 bits of memory."""
        return int.from_bytes(self.ram.read(at, 2), "little")

    @property
    def used_index(self) -> int:
        """How many buffers the device has used."""
        return self.word(self.used + 2)

    @property
    def wants_notification(self) -> bool:
        """Whether the device asks to be notified of one of the buffers since the last call. 2.7.10.1."""
        before, self.told = self.told, self.index
        if self.event_idx:
            event = self.word(self.used + 4 + 8 * self.size)
            return self.index - event - 1 & 0xFFFF < self.index - before & 0xFFFF
        return not self.word(self.used) & 1

    def take(self) -> tuple[Buffer, int] | None:
        """The next used buffer, and the bytes that were written to it."""
        if self.used_index == self.seen:
            return None
        head, length = struct.unpack("<II", self.ram.read(self.used + 4 + 8 * (self.seen % self.size), 8))
        self.seen = self.seen + 1 & 0xFFFF
        if self.event_idx:
            self.ram.write(self.available + 4 + 2 * self.size, struct.pack("<H", self.seen))
        buffer = self.buffers.pop(head)
        self.free += [head] if len(buffer.reads + buffer.writes) == 1 else self._chain(head)
        return buffer, length

    def _chain(self, head: int) -> list[int]:
        found = [head]
        while True:
            _, _, flags, following = DESCRIPTOR.unpack(self.ram.read(self.table + 16 * found[-1], 16))
            if not flags & NEXT:
                return found
            found.append(following)


class Driver:
    """Drives a device through its registers.

    read, write  a vCPU's accesses: of an address and a size, and of an address, a value and a size
    """

    def __init__(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], object], ram: Ram, base: int
    ) -> None:
        self._read, self._write = read, write
        self.ram, self.base = ram, base
        self.queues: list[Queue] = []
        self.features = 0

    def __getitem__(self, register: int) -> int:
        return self._read(self.base + register, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self._write(self.base + register, value, 4)

    def config(self, offset: int, size: int) -> int:
        """A field of the configuration, read as 4.2.2.2 says."""
        if size == 8:
            return self.config(offset, 4) | self.config(offset + 4, 4) << 32
        return self._read(self.base + Register.CONFIG + offset, size)

    def write_config(self, offset: int, value: int, size: int) -> None:
        """Writes a field of the configuration."""
        self._write(self.base + Register.CONFIG + offset, value, size)

    def offered(self) -> int:
        """The device's features."""
        words = []
        for word in range(4):
            self[Register.DEVICE_FEATURES_SEL] = word
            words.append(self[Register.DEVICE_FEATURES] << 32 * word)
        return sum(words)

    def accept(self, features: int) -> None:
        """Writes the features that the driver accepts."""
        for word in range(2):
            self[Register.DRIVER_FEATURES_SEL] = word
            self[Register.DRIVER_FEATURES] = features >> 32 * word & 0xFFFF_FFFF
        self.features = features

    @property
    def status(self) -> Status:
        return Status(self[Register.STATUS])

    def set_status(self, bits: int) -> None:
        """Sets bits of the status."""
        self[Register.STATUS] = self.status | bits

    def negotiate(self, features: int) -> bool:
        """3.1.1, up to FEATURES_OK; whether the device accepts the features."""
        self[Register.STATUS] = 0
        self.set_status(Status.ACKNOWLEDGE)
        self.set_status(Status.DRIVER)
        self.accept(features)
        self.set_status(Status.FEATURES_OK)
        return Status.FEATURES_OK in self.status

    def set_up_queue(self, number: int, queue: Queue) -> None:
        """4.2.3.2."""
        self[Register.QUEUE_SEL] = number
        assert self[Register.QUEUE_READY] == 0
        assert queue.size <= self[Register.QUEUE_SIZE_MAX]
        self[Register.QUEUE_SIZE] = queue.size
        areas = (queue.table, queue.available, queue.used)
        for low, area in zip(
            (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW), areas, strict=True
        ):
            self[low] = area & 0xFFFF_FFFF
            self[low + 4] = area >> 32
        self[Register.QUEUE_READY] = 1

    def start(self, *, at: int, size: int = 16, queues: int = 1, features: int | None = None) -> None:
        """Sets the device up, with queues whose memory begins at an address."""
        assert self.negotiate(self.offered() if features is None else features)
        self.queues = []
        for number in range(queues):
            queue = Queue(self.ram, at, size, event_idx=bool(self.features & Feature.EVENT_IDX))
            self.set_up_queue(number, queue)
            self.queues.append(queue)
            at = queue.end
        self.set_status(Status.DRIVER_OK)

    def notify(self, number: int = 0, *, always: bool = False) -> None:
        """Notifies of new buffers, if the device wants it."""
        if always or self.queues[number].wants_notification:
            self[Register.QUEUE_NOTIFY] = number

    def acknowledge(self) -> Interrupt:
        """What an interrupt's handler does first: reads the causes and acknowledges them."""
        causes = self[Register.INTERRUPT_STATUS]
        self[Register.INTERRUPT_ACK] = causes
        return Interrupt(causes)
