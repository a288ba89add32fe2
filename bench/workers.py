"""The processes of the benchmarks: a device, a vCPU and flooders. Each takes its commands from a pipe."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from bench.peers import pin
from irqchip_client import Client, Interrupt, Session, TimedOut, Vm, Wake, connect, embedded, ops
from irqchip_client.devices import Device, RemoteHost

GSI, VECTOR = 20, 0x51
LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
SVR, EOI = LAPIC + 0xF0, LAPIC + 0xB0
BATCH = 256
ANSWERED_PORT = 0x300

_CONTEXT = multiprocessing.get_context("spawn")


@contextmanager
def _port(setting: str, *, rings: bool = False) -> Iterator[None]:
    before = {name: os.environ.get(name, "") for name in ("IRQCHIP_PORT", "IRQCHIP_RINGS")}
    os.environ |= {"IRQCHIP_PORT": setting, "IRQCHIP_RINGS": "" if rings else "off"}
    try:
        yield
    finally:
        os.environ |= before


def session_over(client: Client, vm: str, transport: str, poll_us: int | None = None) -> Session:
    """A Session over gRPC, or over the port's socket or its rings with this polling time."""
    with _port("off" if transport == "grpc" else "" if poll_us is None else str(poll_us), rings=transport == "ring"):
        session = client.vm(vm).session("bench")
    assert session.transport == ("grpc" if transport == "grpc" else "port")
    return session


@contextmanager
def worker(
    target: Callable[..., None], *arguments: Any, poll_us: int | None = None, rings: bool = False
) -> Iterator[Connection]:
    """A process that runs a function with a pipe, until the pipe is closed."""
    here, there = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=target, args=(there, *arguments), daemon=True)
    with _port("" if poll_us is None else str(poll_us), rings=rings):
        process.start()
    there.close()
    try:
        assert here.recv() == "ready"
        yield here
    finally:
        here.close()
        process.join(5)
        process.kill()


def vcpu(pipe: Connection, target: str, vm: str, memory: str) -> None:
    """Halt repeatedly, and record when each halt ended: word 0 is the count, word 1 the time."""
    with connect(target) as client, client.vm(vm).session("vcpu") as session:
        calls = [ops.mmio_write(0, EOI, 0), ops.halt(0)]
        _halt_repeatedly(pipe, memory, lambda: session.run(calls)[-1])


def embedded_vcpu(pipe: Connection, socket: str, memory: str) -> None:
    """The same with a daemon in this process, which listens for the device's process."""
    pin(os.getpid(), 1)
    with embedded(socket) as client, prepare(client, "vm").session("vcpu") as session:
        cpu = session.vcpu(0)

        def halt() -> Wake:
            cpu.mmio_write(EOI, 0)
            return cpu.halt()

        _halt_repeatedly(pipe, memory, halt)
        with suppress(EOFError):  # The device still uses the daemon.
            while True:
                pipe.recv()


def _halt_repeatedly(pipe: Connection, memory: str, halt: Callable[[], Wake]) -> None:
    shared = SharedMemory(memory)
    words = memoryview(shared.buf or b"").cast("q")
    pipe.send("ready")
    while True:
        wake = halt()
        words[1] = time.perf_counter_ns()
        words[0] += 1
        assert isinstance(wake, Interrupt)
        if pipe.poll():
            break
    words.release()
    shared.close()


def device(pipe: Connection, target: str, vm: str, memory: str, pause: float, polling: bool) -> None:
    """For each number received, raise that many interrupts, and answer with the microseconds until each arrived."""
    shared = SharedMemory(memory)
    words = memoryview(shared.buf or b"").cast("q")
    with connect(target) as client, client.vm(vm).session("device") as session:
        line, irqfd = session.line(GSI), session.irqfd(GSI)
        pipe.send("ready")
        while True:
            try:
                how, count = pipe.recv()
            except EOFError:
                break
            times = []
            for _ in range(count):
                seen = words[0]
                # By then the vCPU has halted again, and a side that does not poll blocks.
                if polling:
                    session.vcpu(0).pio_read(0x21)
                else:
                    time.sleep(pause)
                begun = time.perf_counter_ns()
                if how == "irqfd to Halt":
                    irqfd.trigger()
                else:
                    line.raise_()
                while words[0] == seen:
                    time.sleep(pause)
                times.append((words[1] - begun) / 1e3)
                if how != "irqfd to Halt":
                    line.lower()
            pipe.send(times)
    words.release()
    shared.close()


class _Ones(Device):
    """A device whose registers read as 1."""

    def __init__(self) -> None:
        super().__init__("bench")
        self.pio(ANSWERED_PORT, 1, lambda offset, size: 1, lambda offset, value, size: None)  # noqa: ARG005


def answerer(pipe: Connection, target: str, vm: str) -> None:
    """A device that answers reads of a port."""
    with connect(target) as client, client.vm(vm).session("answerer") as session:
        host = RemoteHost(session, [_Ones()])
        host.start()
        pipe.send("ready")
        while not pipe.poll():
            with suppress(TimedOut):
                host.serve_one(session.next_event(0.25))


def flooder(pipe: Connection, target: str, vm: str) -> None:
    """Drive lines as fast as possible, a batch at a time, between the pipe's start and stop."""
    with connect(target) as client, client.vm(vm).session("flood") as session:
        calls = [ops.irq_lines([(GSI + 1, bool(n % 2)) for n in range(BATCH)])]
        pipe.send("ready")
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            while not pipe.poll():
                session.run(calls)
            pipe.recv()
            pipe.send("quiet")


def prepare(client: Client, name: str) -> Vm:
    """Create a VM with a GSI that interrupts vCPU 0, edge-triggered."""
    vm = client.create_vm(name)
    vm.create_irqchip()
    cpu = vm.create_vcpu(0)
    cpu.mmio_write(SVR, 0x1FF)
    for register, value in ((0x10 + 2 * GSI + 1, 0), (0x10 + 2 * GSI, VECTOR)):
        cpu.mmio_write(IOAPIC, register)
        cpu.mmio_write(IOAPIC + 0x10, value)
    return vm
