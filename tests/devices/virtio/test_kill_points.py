"""A disk whose process is killed at every line of its code in turn: the driver's requests are all done in the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from irqchip_client.devices import VirtioBlock
from irqchip_client.devices.virtio import mmio
from irqchip_client.devices.virtio.mmio import Status
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.virtio.driver import Driver
from tests.devices.virtio.machine import DATA, IN, OK, OUT, RAM, RINGS, Machine, NotedRam

CODE = str(Path(mmio.__file__).parent)
SECTORS = 16


class KilledError(BaseException):
    """The process ends here."""


class Killer:
    """Counts the lines of the devices' code, and raises KilledError at one of them, once."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.lines = 0

    def run(self, call: Callable[[], None]) -> bool:
        """Calls a function; returns whether it was killed."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            call()
        except KilledError:
            return True
        finally:
            sys.settrace(before)
        return False

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002 - a trace function's signature
        return self._line if frame.f_code.co_filename.startswith(CODE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                raise KilledError
        return self._line


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def restart(machine: Machine, disk: Path) -> None:
    """Another process takes the place of the one that was killed."""
    machine.replace(VirtioBlock(disk))


def make_mortal(machine: Machine, disk: Path, killer: Killer) -> None:
    """Has the device killed in the middle of an access, which then stays unanswered. Another process comes at once."""
    read, write = machine.bench.read, machine.bench.write

    def mortal_read(address: int, size: int) -> int:
        values: list[int] = []
        if killer.run(lambda: values.append(read(address, size))):
            restart(machine, disk)
            return (1 << 8 * size) - 1
        return values[0]

    def mortal_write(address: int, value: int, size: int) -> None:
        if killer.run(lambda: write(address, value, size)):
            restart(machine, disk)

    machine.driver = Driver(mortal_read, mortal_write, machine.ram, machine.driver.base)


def work(machine: Machine) -> None:
    """Offers two writes and two reads with one notification, and handles the interrupt."""
    for slot in range(2):
        machine.request(OUT, slot, bytes([slot + 1]) * 512, at=DATA + 0x1000 * slot)
    for slot in range(2, 4):
        machine.request(IN, slot - 2, room=512, at=DATA + 0x1000 * slot)
    machine.driver.notify(always=True)
    machine.bench.advance()
    machine.driver.acknowledge()


def check(machine: Machine, disk: Path) -> None:
    """All requests are done, once each as the driver sees it."""
    done = []
    while (taken := machine.queue.take()) is not None:
        address, length = taken[0].writes[-1]
        assert machine.ram.read(address + length - 1, 1) == bytes([OK])
        done.append(taken[0].head)
    assert len(done) == len(set(done)) == 4
    assert not machine.queue.buffers
    assert disk.read_bytes() == b"\1" * 512 + b"\2" * 512 + bytes(512 * (SECTORS - 2))
    for slot in (2, 3):
        assert machine.ram.read(DATA + 0x1000 * slot + 16, 512) == bytes([slot - 1]) * 512
    assert machine.ask(IN, 1, room=512) == (OK, b"\2" * 512)


def new_machine(disk: Path) -> Machine:
    disk.write_bytes(bytes(512 * SECTORS))
    return Machine(VirtioBlock(disk), NotedRam(GuestMemory(RAM)))


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
def test_it_may_be_killed_at_any_point_of_its_work(disk: Path, step: int) -> None:
    """Takes some seconds for all of them."""
    point, more = 0, True
    while more:
        point += step
        machine = new_machine(disk)
        machine.driver.start(at=RINGS)
        queues = machine.driver.queues
        killer = Killer(point)
        make_mortal(machine, disk, killer)
        machine.driver.queues = queues
        work(machine)
        more = killer.lines >= point
        check(machine, disk)
    assert point > 300


def test_it_may_be_killed_while_a_driver_sets_it_up(disk: Path) -> None:
    """The driver finds out: from what it reads, or from DEVICE_NEEDS_RESET. Then it begins anew."""
    point, more, begun_anew = 0, True, 0
    while more:
        point += 17
        machine = new_machine(disk)
        killer = Killer(point)
        make_mortal(machine, disk, killer)
        try:
            machine.driver.start(at=RINGS)
        except AssertionError:
            begun_anew += 1
            machine.driver.start(at=RINGS)
        if machine.driver.status & (Status.DEVICE_NEEDS_RESET | Status.FAILED):  # FAILED: it has written the ones
            begun_anew += 1
            machine.driver.start(at=RINGS)
        more = killer.lines >= point
        work(machine)
        check(machine, disk)
    assert begun_anew > 5
