"""A virtio disk in a process of its own: its notifies, interrupts and memory; what happens when it is killed."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from irqchip_client import Claim, Client, Interrupt, InterruptSource, Session, TimedOut, Vm
from irqchip_client.devices.virtio.mmio import Interrupt as Cause
from irqchip_client.devices.virtio.mmio import Register, Status
from irqchip_client.devices.virtio.places import MOST, PC
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.run import local_devices, shared_memory
from tests.devices.virtio.driver import Driver
from tests.devices.virtio.machine import DATA, RAM, RINGS, SECTORS
from tests.waiting import PATIENCE, eventually

IOAPIC, LAPIC = 0xFEC0_0000, 0xFEE0_0000
VECTOR = 0x51


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.shareable(RAM, notes=MOST) as memory:
        yield memory


@pytest.fixture
def vm(irqchip_client: Client, memory: GuestMemory) -> Iterator[Vm]:
    """A VM that shares its memory, and whose GSI 16 is level-triggered to vCPU 0."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    cpu = vm.create_vcpu(0)
    cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    for register, value in ((0x10 + 2 * 16 + 1, 0), (0x10 + 2 * 16, VECTOR | 1 << 15)):
        cpu.mmio_write(IOAPIC, register)
        cpu.mmio_write(IOAPIC + 0x10, value)
    with shared_memory(vm, memory):
        yield vm


class Vcpu:
    """A vCPU that runs a driver."""

    def __init__(self, session: Session, memory: GuestMemory) -> None:
        self._vcpu = session.vcpu(0)
        self.driver = Driver(self.read, self.write, memory, PC[0].address)
        self.memory = memory

    def read(self, address: int, size: int) -> int:
        return self._vcpu.mmio_read(address, size).data

    def write(self, address: int, value: int, size: int) -> Claim:
        return self._vcpu.mmio_write(address, value, size)

    def halt(self, seconds: float = PATIENCE) -> bool:
        """Executes HLT, and takes the device's interrupt. Returns whether it came."""
        try:
            wake = self._vcpu.halt(timeout=seconds)
        except TimedOut:
            return False
        assert isinstance(wake, Interrupt)
        assert (wake.vector, wake.source) == (VECTOR, InterruptSource.LAPIC)
        return True

    def end_interrupt(self) -> None:
        self._vcpu.mmio_write(LAPIC + 0xB0, 0)

    def offer_read(self, sector: int, slot: int = 0) -> int:
        """Offers a read of a sector into a place of its own."""
        at = DATA + 0x400 * slot
        self.memory.write(at, bytes(8) + sector.to_bytes(8, "little") + b"\xee" * 513)
        return self.driver.queues[0].add([(at, 16)], [(at + 16, 512), (at + 528, 1)])

    def answer(self, slot: int = 0) -> tuple[int, bytes]:
        """The status and the data of a read."""
        data = self.memory.read(DATA + 0x400 * slot + 16, 513)
        return data[512], data[:512]


@pytest.fixture
def cpu(vm: Vm, memory: GuestMemory) -> Iterator[Vcpu]:
    with vm.session("vcpu 0") as session:
        yield Vcpu(session, memory)


@contextmanager
def device(vm: Vm, client: Client, disk: Path) -> Iterator[subprocess.Popen[str]]:
    """`irqchipctl device VirtioBlock`, ready to answer."""
    with model(vm, client, "VirtioBlock", f"path={disk}") as process:
        yield process


@contextmanager
def model(vm: Vm, client: Client, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", client.target, "device"]
    with subprocess.Popen([*command, *arguments, "--vm", vm.name], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "GSI 1" in line, line + process.stderr.read()
            yield process
        finally:
            process.kill()


def test_a_read_is_a_doorbell_and_an_interrupt(vm: Vm, irqchip_client: Client, cpu: Vcpu, disk: Path) -> None:
    with device(vm, irqchip_client, disk):
        cpu.driver.start(at=RINGS)
        for sector in (3, 200):
            cpu.offer_read(sector)
            cpu.driver.notify()
            assert cpu.halt()
            assert cpu.driver.acknowledge() == Cause.USED_BUFFER
            cpu.end_interrupt()
            assert cpu.driver.queues[0].take() is not None
            assert cpu.answer() == (0, bytes([sector]) * 512)
        assert not cpu.halt(0.01), "the line is low again"
        cpu.driver[Register.QUEUE_NOTIFY] = 7
        cpu.driver[Register.STATUS] = 0
        assert cpu.driver.status == 0


def test_a_reset_of_the_vm_resets_the_device_and_its_notes(
    vm: Vm, irqchip_client: Client, cpu: Vcpu, disk: Path, memory: GuestMemory
) -> None:
    with local_devices(vm, [], memory), device(vm, irqchip_client, disk):
        cpu.driver.start(at=RINGS)
        assert any(memory.notes(0) or b"")
        vm.reset()
        eventually(lambda: cpu.driver.status == 0, PATIENCE)
    with device(vm, irqchip_client, disk):
        assert cpu.driver.status == 0


def test_the_cause_of_an_interrupt_is_read_without_asking_the_device(
    vm: Vm, irqchip_client: Client, cpu: Vcpu, disk: Path, memory: GuestMemory
) -> None:
    register = PC[0].address + Register.INTERRUPT_STATUS
    with local_devices(vm, [], memory) as host:
        assert host.mmio_read(register, 4) is None, "no device is there"
        with device(vm, irqchip_client, disk) as process:
            cpu.driver.start(at=RINGS)
            assert host.mmio_read(register, 4) == 0
            cpu.offer_read(3)
            cpu.driver.notify()
            assert cpu.halt()
            assert host.mmio_read(register, 4) == cpu.read(register, 4) == Cause.USED_BUFFER
            assert host.mmio_read(register, 2) is None
            assert host.mmio_read(PC[1].address + Register.INTERRUPT_STATUS, 4) is None
            process.kill()
            process.wait()
            assert host.mmio_read(register, 4) == Cause.USED_BUFFER, "an interrupt's handler may be about to read it"
        host.reset()
        assert host.mmio_read(register, 4) is None


def test_a_console_is_a_socket(vm: Vm, irqchip_client: Client, cpu: Vcpu, memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "console"
    with model(vm, irqchip_client, "VirtioConsole", "--listen", str(path)), socket.socket(socket.AF_UNIX) as terminal:
        terminal.connect(str(path))
        terminal.settimeout(PATIENCE)
        driver = Driver(cpu.read, cpu.write, memory, PC[1].address)
        driver.start(at=RINGS, queues=2)
        receive, transmit = driver.queues
        memory.write(DATA, b"login: ")
        transmit.add([(DATA, 7)], [])
        driver.notify(1)
        assert terminal.recv(100) == b"login: "
        receive.add([], [(DATA, 64)])
        driver.notify(0)
        terminal.send(b"root\r")
        eventually(lambda: receive.used_index == 1, PATIENCE)
        taken = receive.take()
        assert taken is not None
        assert memory.read(DATA, taken[1]) == b"root\r"


class Reads:
    """A driver that keeps some reads in flight, and knows nothing of processes."""

    def __init__(self, cpu: Vcpu, generator: random.Random) -> None:
        self.cpu = cpu
        self.random = generator
        self.done = 0
        self.in_flight: dict[int, tuple[int, int]] = {}  # by descriptor: where it is, and which sector
        self.free = [0, 1, 2, 3]

    def offer(self) -> None:
        while self.free:
            slot, sector = self.free.pop(), self.random.randrange(SECTORS)
            self.in_flight[self.cpu.offer_read(sector, slot)] = slot, sector
            self.cpu.driver.notify()

    def take(self, seconds: float) -> None:
        """Waits for an interrupt, and handles it."""
        if self.cpu.halt(seconds):
            self.cpu.driver.acknowledge()
            self.cpu.end_interrupt()
        while (taken := self.cpu.driver.queues[0].take()) is not None:
            slot, sector = self.in_flight.pop(taken[0].head)
            assert self.cpu.answer(slot) == (0, bytes([sector]) * 512)
            self.free.append(slot)
            self.done += 1

    def go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.offer()
            self.take(0.01)


def read_while_it_is_killed(vm: Vm, client: Client, cpu: Vcpu, disk: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    reads = Reads(cpu, generator)
    for kill in range(kills):
        with device(vm, client, disk) as process:
            if not kill:
                cpu.driver.start(at=RINGS)
            before = reads.done
            while reads.done == before:  # the reads of before are done, and others
                reads.go_on(0.01)
            reads.go_on(0.05 * generator.random())
            process.send_signal(signal.SIGKILL)
            reads.go_on(0.02 * generator.random())
    with device(vm, client, disk):
        while reads.in_flight:
            reads.take(10)
        assert cpu.driver.status & (Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET) == Status.DRIVER_OK


def test_reads_go_on_when_the_process_is_killed_and_started_again(
    vm: Vm, irqchip_client: Client, cpu: Vcpu, disk: Path
) -> None:
    read_while_it_is_killed(vm, irqchip_client, cpu, disk, kills=2, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_reads_go_on_when_the_process_is_killed_often(
    vm: Vm, irqchip_client: Client, cpu: Vcpu, disk: Path, seed: int
) -> None:
    """Takes less than two minutes."""
    read_while_it_is_killed(vm, irqchip_client, cpu, disk, kills=20, seed=seed)
