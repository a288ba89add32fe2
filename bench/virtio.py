"""A virtio disk in a process of its own: the time of a read of 4 KiB, from the doorbell to the end of Halt."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from bench.measure import PAUSE, Figure, Series, round_robin
from bench.peers import Eventfds, pin, pinned
from bench.workers import EOI, GSI, prepare, session_over, worker
from irqchip_client import Session, connect
from irqchip_client._daemon import start_daemon
from irqchip_client.devices import RemoteHost, VirtioBlock
from irqchip_client.devices.virtio.places import MOST, PC
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.run import shared_memory
from tests.devices.virtio.driver import Driver

READ = "a virtio read of 4 KiB, from the doorbell to the end of Halt, polling off / bare eventfd ping-pong, blocking"
MANY = "virtio reads of 4 KiB, 32 with one doorbell, a second"
FIGURES = (READ, MANY)
RAM, RINGS, HEADERS, DATA = 4 << 20, 0x1_0000, 0x2_0000, 0x10_0000
BLOCK, BLOCKS, DEPTH = 4096, 256, 32


def disk(pipe: Connection, target: str, vm: str, path: str) -> None:
    """Run a virtio disk until the VM is deleted."""
    with connect(target) as client, client.vm(vm).session("disk") as session:
        host = RemoteHost(session, [VirtioBlock(path, gsi=GSI, read_only=True)])
        host.start()
        pipe.send("ready")
        host.serve()


class Reader:
    """A vCPU that reads a disk, as a driver does.

    times  the microseconds of each read(), from the doorbell to the end of Halt
    """

    def __init__(self, session: Session, memory: GuestMemory) -> None:
        self.times: list[float] = []
        self._cpu = cpu = session.vcpu(0)
        self._driver = Driver(lambda at, size: cpu.mmio_read(at, size).data, cpu.mmio_write, memory, PC[0].address)
        self._driver.start(at=RINGS, size=4 * DEPTH)
        self._queue = self._driver.queues[0]
        self._memory = memory
        self._block = 0

    def read(self) -> None:
        """Reads a block, and handles the interrupt."""
        self._offer(0)
        begun = time.perf_counter_ns()
        self._driver.notify(always=True)
        self._cpu.halt()
        self.times.append((time.perf_counter_ns() - begun) / 1e3)
        self._take()

    def read_many(self) -> None:
        """Reads DEPTH blocks with one doorbell."""
        for slot in range(DEPTH):
            self._offer(slot)
        self._driver.notify(always=True)
        while self._queue.buffers:
            self._cpu.halt()
            self._take()

    def _offer(self, slot: int) -> None:
        self._block = (self._block + 7) % BLOCKS
        header = HEADERS + 32 * slot
        self._memory.write(header, bytes(8) + (8 * self._block).to_bytes(8, "little"))
        self._queue.add([(header, 16)], [(DATA + BLOCK * slot, BLOCK), (header + 16, 1)])

    def _take(self) -> None:
        self._driver.acknowledge()
        self._cpu.mmio_write(EOI, 0)
        while self._queue.take() is not None:
            pass


def by_virtio(figures: list[Figure], series: dict[str, Series]) -> None:
    """Reads of a disk in another process, beside eventfds to another process and back."""
    with ExitStack() as stack:
        path = stack.enter_context(tempfile.NamedTemporaryFile())
        path.write(os.urandom(BLOCK * BLOCKS))
        path.flush()
        bare = Eventfds()
        stack.callback(bare.close)
        daemon = stack.enter_context(start_daemon(arguments=["--poll", "0"]))
        pin(daemon.pid, 1)
        stack.enter_context(pinned(0))
        client = stack.enter_context(daemon.connect())
        vm = prepare(client, "vm")
        memory = stack.enter_context(GuestMemory.shareable(RAM, notes=MOST))
        stack.enter_context(shared_memory(vm, memory))
        stack.enter_context(worker(disk, daemon.target, "vm", path.name, poll_us=0))
        reader = Reader(stack.enter_context(session_over(client, "vm", "port", 0)), memory)
        measured = round_robin(
            {
                "bare eventfd ping-pong, blocking": (bare.hop, 20, 1),
                "virtio read of 4 KiB, with the interrupt's acknowledgement, blocking": (reader.read, 20, 1),
                "virtio read of 4 KiB, 32 with one doorbell, each, blocking": (reader.read_many, 1, DEPTH),
            },
            rounds=20,
            pause=PAUSE,
        )
    bare_hop, _, many = measured.values()
    read = Series(reader.times[20:])  # the first ones only warm up
    series.update(measured)
    series["virtio read of 4 KiB, doorbell to Halt, blocking"] = read
    figures += [
        Figure.ratio(READ, read, bare_hop, 8.0),
        Figure(MANY, 1e6 / many.median, "1/s", 10_000, at_least=True),
    ]
