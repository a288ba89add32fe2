"""A virtio device on a bench, with a guest's memory and a driver."""

from __future__ import annotations

import struct

from irqchip_client.devices.ram import NOTES, Ram
from irqchip_client.devices.virtio.mmio import VirtioDevice
from irqchip_client.devices.virtio.places import PC
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.bench import Bench
from tests.devices.virtio.driver import Driver, Queue

RAM = 1 << 20
RINGS = 0x1_0000  # where the driver puts its queues
DATA = 0x4_0000  # and its buffers
SECTORS = 256  # of the disk

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2


class NotedRam:
    """A guest's memory with notes, which outlive a device."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.kept = memoryview(bytearray(NOTES))
        self.read, self.write, self.view, self.flush = memory.read, memory.write, memory.view, memory.flush

    def notes(self, number: int) -> memoryview | None:  # noqa: ARG002 - for one device
        return self.kept

    def erase_notes(self) -> None:
        self.kept[:] = bytes(NOTES)


class Machine:
    """A device, run by a bench, and a driver for it."""

    def __init__(self, device: VirtioDevice, ram: Ram | None = None) -> None:
        self.ram: Ram = GuestMemory(RAM) if ram is None else ram
        self.device = device
        self.bench = Bench(device, ram=self.ram)
        place = PC[device.slot]
        self.gsi = place.gsi
        self.driver = Driver(self.bench.read, self.bench.write, self.ram, place.address)

    def replace(self, device: VirtioDevice) -> None:
        """The device's process was killed, and started again."""
        self.device = device
        self.bench.device = device
        self.bench.timers.clear()
        self.bench.watched.clear()
        device.run_by(self.bench)
        device.started()

    @property
    def line(self) -> bool:
        return self.bench.level(self.gsi)

    @property
    def queue(self) -> Queue:
        return self.driver.queues[0]

    # Requests to a block device.

    def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, at: int = DATA) -> None:
        """Makes a request available, whose header, data and status are at an address."""
        self.ram.write(at, struct.pack("<IIQ", kind, 0, sector) + data)
        self.ram.write(at + 16 + len(data), b"\xee" * (room + 1))
        reads = [(at, 16)] + ([(at + 16, len(data))] if data else [])
        writes = ([(at + 16 + len(data), room)] if room else []) + [(at + 16 + len(data) + room, 1)]
        self.queue.add(reads, writes)

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> tuple[int, bytes]:
        """Makes a request, and waits for its status and data."""
        self.request(kind, sector, data, room)
        self.driver.notify()
        self.bench.advance()
        taken = self.queue.take()
        assert taken is not None
        (address, length), *rest = taken[0].writes
        self.driver.acknowledge()
        if not rest:
            return self.ram.read(address, 1)[0], b""
        return self.ram.read(rest[0][0], 1)[0], self.ram.read(address, length)
