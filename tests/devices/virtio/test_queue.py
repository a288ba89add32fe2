"""Split virtqueues, section 2.7: what a driver may do, and what it may not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from irqchip_client.devices import VirtioBlock
from irqchip_client.devices.virtio.mmio import Feature, Interrupt, Register, Status
from irqchip_client.devices.virtio.queue import LONGEST
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.virtio.driver import INDIRECT, NEXT, WRITE, Driver, Queue
from tests.devices.virtio.machine import DATA, IN, OK, RAM, RINGS, Machine, NotedRam


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 128)
    machine = Machine(VirtioBlock(path))
    machine.driver.start(at=RINGS)
    machine.ram.write(DATA, struct.pack("<IIQ", IN, 0, 1))
    return machine


def serves(machine: Machine, table: int | None = None) -> bool:
    """Whether a read whose data and status are behind the header at DATA is done."""
    before = machine.queue.used_index
    reads, writes = [(DATA, 16)], [(DATA + 16, 512), (DATA + 528, 1)]
    machine.ram.write(DATA + 16, b"\xee" * 513)
    if table is None:
        machine.queue.add(reads, writes)
    else:
        machine.queue.add_indirect(table, reads, writes)
    machine.driver.notify(always=True)
    return machine.queue.used_index == before + 1 and machine.ram.read(DATA + 16, 513) == bytes(range(256)) * 2 + b"\0"


# What is allowed.


def test_a_request_may_be_cut_in_any_way(machine: Machine) -> None:
    # 2.7.4: no assumption about the framing.
    for header, data in (([16], [512]), ([1, 15], [500, 12]), ([4, 4, 8], [1] * 5 + [507]), ([15, 1], [511, 1])):
        reads, writes, at = [], [], DATA
        for length in header:
            reads.append((at, length))
            at += length
        for length in data[:-1]:
            writes.append((at, length))
            at += length
        writes.append((at, data[-1] + 1))  # with the status in the last piece
        machine.ram.write(DATA + 16, bytes(513))
        machine.queue.add(reads, writes)
        machine.driver.notify(always=True)
        taken = machine.queue.take()
        assert taken is not None
        assert taken[1] == 513
        assert machine.ram.read(DATA + 16, 513) == bytes(range(256)) * 2 + bytes([OK])


def test_a_buffer_may_be_an_indirect_table(machine: Machine) -> None:
    assert serves(machine, table=DATA + 0x1000)


def test_descriptors_may_precede_an_indirect_table(machine: Machine) -> None:
    # 2.7.5.3.2, and the write flag of the descriptor of the table is ignored.
    table = DATA + 0x1000
    machine.ram.write(table, struct.pack("<QIHH", DATA + 16, 512, WRITE | NEXT, 1))
    machine.ram.write(table + 16, struct.pack("<QIHH", DATA + 528, 1, WRITE, 0))
    machine.queue.descriptor(0, DATA, 16, NEXT, 1)
    machine.queue.descriptor(1, table, 32, INDIRECT | WRITE)
    machine.queue.offer(0)
    machine.driver.notify(always=True)
    assert machine.queue.used_index == 1
    assert machine.ram.read(DATA + 528, 1) == bytes([OK])


def test_empty_descriptors_are_skipped(machine: Machine) -> None:
    parts = [(DATA, 16, NEXT), (RAM + 5, 0, NEXT), (DATA + 16, 512, WRITE | NEXT), (DATA + 528, 1, WRITE | NEXT)]
    for at, (address, length, flags) in enumerate(parts):
        machine.queue.descriptor(at, address, length, flags, at + 1)
    machine.queue.descriptor(4, 0, 0, WRITE)
    machine.queue.offer(0)
    machine.driver.notify(always=True)
    assert machine.ram.read(DATA + 528, 1) == bytes([OK])


def test_indices_wrap(tmp_path: Path) -> None:
    """A process that goes on with a queue takes the used index; so this one begins shortly before the end."""
    (tmp_path / "disk").write_bytes(bytes(512 * 64))
    machine = Machine(VirtioBlock(tmp_path / "disk"), NotedRam(GuestMemory(RAM)))
    machine.driver.start(at=RINGS)
    queue = machine.queue
    queue.index = queue.seen = queue.told = 0xFFF8
    for at in (queue.available, queue.used):
        machine.ram.write(at + 2, struct.pack("<H", queue.index))
    machine.replace(VirtioBlock(tmp_path / "disk"))
    for number in range(16):
        status, _ = machine.ask(IN, number, room=512)
        assert status == OK
    assert queue.used_index == 8
    assert not machine.device.broken


def test_spurious_notifications_do_nothing(machine: Machine) -> None:
    for number in (0, 1, 0xFFFF, 0xFFFF_FFFF):
        machine.driver[Register.QUEUE_NOTIFY] = number
    assert machine.queue.used_index == 0
    assert not machine.line


# What is not. The device then needs a reset, and says so.


def point_outside(queue: Queue) -> None:
    queue.descriptor(0, RAM - 15, 16, NEXT, 1)
    queue.descriptor(1, DATA + 16, 513, WRITE)


def wrap_around(queue: Queue) -> None:
    queue.descriptor(0, (1 << 64) - 8, 16, NEXT, 1)
    queue.descriptor(1, DATA + 16, 513, WRITE)


def write_outside(queue: Queue) -> None:
    queue.descriptor(0, DATA, 16, NEXT, 1)
    queue.descriptor(1, RAM, 513, WRITE)


def loop(queue: Queue) -> None:
    queue.descriptor(0, DATA, 1, NEXT, 1)
    queue.descriptor(1, DATA, 1, NEXT, 0)


def loop_of_nothing(queue: Queue) -> None:
    queue.descriptor(0, DATA, 0, NEXT, 0)


def make_it_huge(queue: Queue) -> None:
    queue.descriptor(0, DATA, 0xFFFF_FFFF, NEXT, 1)
    queue.descriptor(1, DATA, 0xFFFF_FFFF, 0)


def leave_the_table(queue: Queue) -> None:
    queue.descriptor(0, DATA, 16, NEXT, queue.size)


def read_behind_writing(queue: Queue) -> None:
    queue.descriptor(0, DATA + 16, 513, WRITE | NEXT, 1)
    queue.descriptor(1, DATA, 16, 0)


def make_no_room(queue: Queue) -> None:
    queue.descriptor(0, DATA, 16, 0)


def shorten_the_header(queue: Queue) -> None:
    queue.descriptor(0, DATA, 15, NEXT, 1)
    queue.descriptor(1, DATA + 16, 513, WRITE)


def chain_an_indirect_table(queue: Queue) -> None:
    queue.descriptor(0, DATA + 0x1000, 32, INDIRECT | NEXT, 1)


def nest_an_indirect_table(queue: Queue) -> None:
    queue.ram.write(DATA + 0x1000, struct.pack("<QIHH", DATA + 0x1000, 16, INDIRECT, 0))
    queue.descriptor(0, DATA + 0x1000, 16, INDIRECT)


def cut_an_indirect_table(queue: Queue) -> None:
    queue.descriptor(0, DATA + 0x1000, 24, INDIRECT)


def empty_an_indirect_table(queue: Queue) -> None:
    queue.descriptor(0, DATA + 0x1000, 0, INDIRECT)


def enlarge_an_indirect_table(queue: Queue) -> None:
    queue.descriptor(0, 0, 16 * (LONGEST + 1), INDIRECT)


def move_an_indirect_table(queue: Queue) -> None:
    queue.descriptor(0, RAM, 32, INDIRECT)


FAULTS: list[Callable[[Queue], None]] = [
    *(point_outside, wrap_around, write_outside, loop, loop_of_nothing, make_it_huge, leave_the_table),
    *(read_behind_writing, make_no_room, shorten_the_header, chain_an_indirect_table, nest_an_indirect_table),
    *(cut_an_indirect_table, empty_an_indirect_table, enlarge_an_indirect_table, move_an_indirect_table),
]


def needs_reset(machine: Machine) -> bool:
    """Whether the device has said that it needs a reset, uses no buffer any more, and works after a reset."""
    driver = machine.driver
    assert Status.DEVICE_NEEDS_RESET in driver.status
    assert driver.acknowledge() & Interrupt.CONFIGURATION
    used = machine.queue.used_index
    machine.queue.index = used  # what is offered now would be valid
    machine.request(IN, 1, room=512)
    driver.notify(always=True)
    assert machine.queue.used_index == used
    assert machine.device.broken
    machine.ram.write(DATA, struct.pack("<IIQ", IN, 0, 1))
    driver.start(at=RINGS)
    return serves(machine)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_driver_that_breaks_the_rules_must_reset_the_device(machine: Machine, fault: Callable[[Queue], None]) -> None:
    fault(machine.queue)
    machine.queue.offer(0)
    machine.driver.notify(always=True)
    assert machine.queue.used_index == 0
    assert needs_reset(machine)


def test_a_head_must_be_in_the_table(machine: Machine) -> None:
    machine.queue.offer(16)
    machine.driver.notify(always=True)
    assert needs_reset(machine)


def test_no_more_buffers_can_be_available_than_the_queue_has(machine: Machine) -> None:
    machine.ram.write(machine.queue.available + 2, struct.pack("<H", 17))
    machine.driver.notify(always=True)
    assert needs_reset(machine)


def test_indirect_tables_need_their_feature(machine: Machine) -> None:
    machine.driver.start(at=RINGS, features=Feature.VERSION_1)
    assert not serves(machine, table=DATA + 0x1000)
    assert needs_reset(machine)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (Register.QUEUE_SIZE, 0),
        (Register.QUEUE_SIZE, 12),
        (Register.QUEUE_SIZE, 512),
        (Register.QUEUE_SIZE, 0xFFFF_FFFF),
        (Register.QUEUE_DESC_LOW, RINGS + 8),
        (Register.QUEUE_DRIVER_LOW, RINGS + 1),
        (Register.QUEUE_DEVICE_LOW, RINGS + 2),
        (Register.QUEUE_DESC_LOW, RAM - 16),
        (Register.QUEUE_DRIVER_LOW, RAM - 2),
        (Register.QUEUE_DEVICE_HIGH, 0xFFFF_FFFF),
    ],
)
def test_a_queue_must_be_valid_when_the_device_goes_live(machine: Machine, register: Register, value: int) -> None:
    driver: Driver = machine.driver
    assert driver.negotiate(driver.offered())
    queue = Queue(machine.ram, RINGS, 16, event_idx=True)
    driver.queues = [queue]
    driver.set_up_queue(0, queue)
    driver[Register.QUEUE_READY] = 0
    driver[register] = value
    driver[Register.QUEUE_READY] = 1
    driver.set_status(Status.DRIVER_OK)
    assert Status.DEVICE_NEEDS_RESET in driver.status
    assert needs_reset(machine)
