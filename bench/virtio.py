"""A virtio disk in a process of its own: what a read of 4 KiB takes, from the doorbell to the end of Halt."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection

from bench.measure import Figure, Series
from bench.peers import pin, pinned
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
PAUSE = 500e-6  # seconds before each read: all processes block


class Eventfds:
    """The least that a doorbell and an interrupt can cost in Python: an eventfd to another process, and one back."""

    def __init__(self) -> None:
        self._there, self._here = os.eventfd(0), os.eventfd(0)
        self._child = os.fork()
        if not self._child:
            pin(os.getpid(), 1)
            while os.eventfd_read(self._there) == 1:
                os.eventfd_write(self._here, 1)
            os._exit(0)

    def hop(self) -> None:
        """Wakes the other process, and waits for it."""
        os.eventfd_write(self._there, 1)
        os.eventfd_read(self._here)

    def close(self) -> None:
        """End the other process."""
        os.eventfd_write(self._there, 2)
        os.waitpid(self._child, 0)


def disk(pipe: Connection, target: str, vm: str, path: str) -> None:
    """Run a virtio disk until the VM is deleted."""
    with connect(target) as client, client.vm(vm).session("disk") as session:
        host = RemoteHost(session, [VirtioBlock(path, gsi=GSI, read_only=True)])
        host.start()
        pipe.send("ready")
        host.serve()


class Reader:
    """A vCPU that reads a disk, as a driver does."""

    def __init__(self, session: Session, memory: GuestMemory) -> None:
        self._cpu = cpu = session.vcpu(0)
        self._driver = Driver(lambda at, size: cpu.mmio_read(at, size).data, cpu.mmio_write, memory, PC[0].address)
        self._driver.start(at=RINGS, size=4 * DEPTH)
        self._queue = self._driver.queues[0]
        self._memory = memory
        self._block = 0

    def read(self) -> float:
        """Reads a block, and handles the interrupt. Returns the microseconds up to the end of the interrupt's Halt."""
        self._offer(0)
        begun = time.perf_counter_ns()
        self._driver.notify(always=True)
        self._cpu.halt()
        took = (time.perf_counter_ns() - begun) / 1e3
        self._take()
        return took

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
        times: dict[str, list[float]] = {"read": [], "handled": [], "many": [], "bare": []}

        def timed(name: str, work: Callable[[], object]) -> None:
            begun = time.perf_counter_ns()
            work()
            times[name].append((time.perf_counter_ns() - begun) / 1e3)

        for _ in range(20):
            for _ in range(20):
                time.sleep(PAUSE)
                timed("bare", bare.hop)
                time.sleep(PAUSE)
                times["read"].append(reader.read())
                time.sleep(PAUSE)
                timed("handled", reader.read)
            timed("many", reader.read_many)
    bare_hop = Series(times["bare"][20:])
    series["bare eventfd ping-pong, blocking"] = bare_hop
    series["virtio read of 4 KiB, doorbell to Halt, blocking"] = read = Series(times["read"][20:])
    series["virtio read of 4 KiB, with the interrupt's acknowledgement, blocking"] = Series(times["handled"][20:])
    series["virtio read of 4 KiB, 32 with one doorbell, each, blocking"] = many = Series(
        [each / DEPTH for each in times["many"][1:]]
    )
    figures += [
        Figure.ratio(READ, read, bare_hop, 8.0),
        Figure(MANY, 1e6 / many.median, "1/s", 10_000, at_least=True),
    ]
