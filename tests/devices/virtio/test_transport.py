"""The MMIO transport, section by section: registers, status, features, notifications, reset and suspension."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from irqchip_client import Architecture, InvalidArgument
from irqchip_client.arm64 import spi
from irqchip_client.devices import VirtioBlock
from irqchip_client.devices.ram import PUBLISHED
from irqchip_client.devices.virtio.mmio import MOST_AT_ONCE, Feature, Interrupt, Register, Status
from irqchip_client.devices.virtio.places import ARM64, PC
from irqchip_client.devices.virtio.queue import MOST
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.virtio.driver import Driver, Queue
from tests.devices.virtio.machine import DATA, IN, OK, RINGS, Machine, NotedRam


@pytest.fixture
def machine(disk: Path) -> Machine:
    return Machine(VirtioBlock(disk))


@pytest.fixture
def driver(machine: Machine) -> Driver:
    return machine.driver


def read_sector(machine: Machine, sector: int) -> bytes:
    status, data = machine.ask(IN, sector, room=512)
    assert status == OK
    return data


# 4.2.2: registers.


def test_a_driver_recognises_the_device(driver: Driver) -> None:
    assert driver[Register.MAGIC_VALUE].to_bytes(4, "little") == b"virt"
    assert driver[Register.VERSION] == 2
    assert driver[Register.DEVICE_ID] == 2


def test_accesses_that_the_standard_forbids_read_0_and_write_nothing(machine: Machine, driver: Driver) -> None:
    base = driver.base
    for offset, size in ((0, 1), (0, 2), (1, 1), (2, 2), (Register.STATUS, 1)):
        assert machine.bench.read(base + offset, size) == 0
        machine.bench.write(base + offset, 0xFF, size)
    for register in range(0, Register.CONFIG, 4):
        if register not in list(Register):
            assert driver[register] == 0
            driver[register] = 0xFFFF_FFFF
    assert driver.status == 0
    assert machine.bench.read(base, 8) == 0x2_7472_6976  # a bus splits what is wider than a register


def test_shared_memory_is_a_region_of_no_length(driver: Driver) -> None:
    driver[Register.SHM_SEL] = 0
    for register in (Register.SHM_LEN_LOW, Register.SHM_LEN_HIGH, Register.SHM_BASE_LOW, Register.SHM_BASE_HIGH):
        assert driver[register] == 0xFFFF_FFFF


def test_a_queue_that_does_not_exist_has_no_size(driver: Driver) -> None:
    driver[Register.QUEUE_SEL] = 1
    assert (driver[Register.QUEUE_SIZE_MAX], driver[Register.QUEUE_READY]) == (0, 0)
    driver[Register.QUEUE_READY] = 1
    driver[Register.QUEUE_SEL] = 0
    assert (driver[Register.QUEUE_SIZE_MAX], driver[Register.QUEUE_READY]) == (MOST, 0)


def test_a_ready_queue_keeps_its_registers(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    driver[Register.QUEUE_SIZE] = 3
    driver[Register.QUEUE_DESC_LOW] = 0x1234
    assert read_sector(machine, 5) == bytes([5]) * 512


def test_no_buffer_is_used_of_a_queue_that_is_not_ready(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    driver[Register.QUEUE_READY] = 0
    assert driver[Register.QUEUE_READY] == 0
    machine.request(IN, 1, room=512)
    driver.notify(always=True)
    assert machine.queue.used_index == 0
    driver[Register.QUEUE_READY] = 1
    driver.notify(always=True)
    assert machine.queue.used_index == 1


# 2.1 and 3.1: status and features.


def test_features_that_were_not_offered_are_refused(driver: Driver) -> None:
    offered = driver.offered()
    unknown = next(1 << bit for bit in range(64) if not offered >> bit & 1)
    assert not driver.negotiate(Feature.VERSION_1 | unknown)
    driver.set_status(Status.DRIVER_OK)
    assert driver.status == Status.ACKNOWLEDGE | Status.DRIVER
    assert driver.negotiate(Feature.VERSION_1), "a reset allows another negotiation"


def test_a_legacy_driver_is_refused(driver: Driver) -> None:
    assert not driver.negotiate(driver.offered() & ~Feature.VERSION_1)


def test_no_features_can_be_added_after_features_ok(driver: Driver) -> None:
    assert driver.negotiate(Feature.VERSION_1)
    driver.accept(driver.offered())
    driver.set_status(Status.DRIVER_OK)
    assert Status.DRIVER_OK in driver.status


def test_a_driver_clears_no_bit_of_the_status(driver: Driver) -> None:
    driver.start(at=RINGS)
    before = driver.status
    driver[Register.STATUS] = Status.ACKNOWLEDGE
    assert driver.status == before
    driver[Register.STATUS] = Status.DEVICE_NEEDS_RESET
    assert driver.status == before, "only the device sets this one"


def test_nothing_is_used_before_driver_ok(machine: Machine, driver: Driver) -> None:
    assert driver.negotiate(driver.offered())
    queue = Queue(machine.ram, RINGS, 16)
    driver.set_up_queue(0, queue)
    driver.queues = [queue]
    machine.request(IN, 1, room=512)
    assert queue.used_index == 0
    driver.set_status(Status.DRIVER_OK)
    assert queue.used_index == 1, "what was made available before is used then"


def test_nothing_is_used_after_failed(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    driver.set_status(Status.FAILED)
    machine.request(IN, 1, room=512)
    driver.notify(always=True)
    assert machine.queue.used_index == 0
    assert not machine.line


def test_a_reset_clears_everything(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    machine.request(IN, 1, room=512)
    driver.notify()
    assert machine.line
    driver[Register.STATUS] = 0
    assert (driver.status, driver[Register.INTERRUPT_STATUS], driver[Register.QUEUE_READY]) == (0, 0, 0)
    assert not machine.line
    driver.start(at=RINGS)
    assert read_sector(machine, 7) == bytes([7]) * 512


def test_a_reset_of_the_vm_is_one_of_the_device(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    machine.request(IN, 1, room=512)
    driver.notify()
    machine.device.reset()
    assert driver.status == 0
    assert not machine.line


# 4.2.3.4: interrupts.


def test_the_line_is_high_until_the_driver_acknowledges(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    assert not machine.line
    machine.request(IN, 1, room=512)
    driver.notify()
    assert machine.line
    driver[Register.INTERRUPT_ACK] = 0
    assert machine.line
    assert driver.acknowledge() == Interrupt.USED_BUFFER
    assert not machine.line


def test_a_cause_that_is_left_makes_another_edge(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    machine.device.config_changes()
    machine.request(IN, 1, room=512)
    driver.notify()
    machine.bench.edges.clear()
    driver[Register.INTERRUPT_ACK] = Interrupt.USED_BUFFER
    assert machine.bench.edges == [(machine.gsi, False), (machine.gsi, True)]
    assert driver.acknowledge() == Interrupt.CONFIGURATION


def test_a_change_of_the_configuration_has_another_generation(machine: Machine, driver: Driver) -> None:
    before = driver[Register.CONFIG_GENERATION]
    machine.device.config_changes()
    assert driver[Register.CONFIG_GENERATION] != before
    assert not machine.line, "there is no driver yet"
    driver.start(at=RINGS)
    machine.device.config_changes()
    assert driver.acknowledge() == Interrupt.CONFIGURATION


# 2.7.7 and 2.7.10: suppression of notifications.


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_is_notified_only_as_it_asks(machine: Machine, driver: Driver, event_idx: bool) -> None:
    driver.start(at=RINGS, features=Feature.VERSION_1 | (Feature.EVENT_IDX if event_idx else 0))
    queue = machine.queue
    if event_idx:
        machine.ram.write(queue.available + 4 + 2 * queue.size, (2).to_bytes(2, "little"))  # used_event
    else:
        machine.ram.write(queue.available, (1).to_bytes(2, "little"))  # VIRTQ_AVAIL_F_NO_INTERRUPT
    for number in range(4):
        if not event_idx and number == 2:
            machine.ram.write(queue.available, bytes(2))
        machine.request(IN, number, room=512, at=DATA + 0x1000 * number)
        driver.notify()
        assert queue.used_index == number + 1
        assert (driver.acknowledge() != 0) == (number >= 2 if not event_idx else number == 2)


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_device_asks_to_be_notified_of_the_next_buffer(machine: Machine, driver: Driver, event_idx: bool) -> None:
    driver.start(at=RINGS, features=Feature.VERSION_1 | (Feature.EVENT_IDX if event_idx else 0))
    for number in range(40):  # beyond the queue's size, too
        machine.request(IN, number, room=512)
        driver.notify()
        assert machine.queue.take() is not None


def test_many_buffers_take_several_turns(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS, size=256)
    for number in range(70):
        machine.request(IN, 0, room=512, at=DATA + 0x400 * number)
    driver.notify(always=True)
    assert machine.queue.used_index == MOST_AT_ONCE, "other accesses come in between"
    assert machine.line
    assert machine.bench.advance() == 2
    assert machine.queue.used_index == 70


# 2.6.1: reset of a queue.


def test_a_queue_is_reset_alone_and_set_up_anew(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    assert read_sector(machine, 3) == bytes([3]) * 512
    driver[Register.QUEUE_RESET] = 1
    assert (driver[Register.QUEUE_RESET], driver[Register.QUEUE_READY]) == (0, 0)
    machine.request(IN, 1, room=512)
    driver.notify(always=True)
    assert machine.queue.used_index == 1, "no request is executed of a queue that was reset"
    driver.queues = [Queue(machine.ram, RINGS + 0x8000, 8, event_idx=True)]
    driver.set_up_queue(0, machine.queue)
    assert read_sector(machine, 4) == bytes([4]) * 512
    assert Status.DRIVER_OK in driver.status


def test_without_ring_reset_the_register_does_nothing(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS, features=Feature.VERSION_1)
    driver[Register.QUEUE_RESET] = 1
    assert read_sector(machine, 3) == bytes([3]) * 512


# 3.5 of draft 1.4: suspension.


def test_a_suspended_device_uses_and_notifies_nothing(machine: Machine, driver: Driver) -> None:
    driver.start(at=RINGS)
    assert read_sector(machine, 3) == bytes([3]) * 512
    driver.set_status(Status.SUSPEND)
    assert driver.status & (Status.SUSPEND | Status.DRIVER_OK) == Status.SUSPEND
    machine.request(IN, 1, room=512)
    driver.notify(always=True)
    machine.device.config_changes()
    assert machine.queue.used_index == 1
    assert not machine.line
    driver.set_status(Status.DRIVER_OK)
    assert driver.status & (Status.SUSPEND | Status.DRIVER_OK) == Status.DRIVER_OK
    assert machine.queue.used_index == 2
    assert driver.acknowledge() == Interrupt.USED_BUFFER | Interrupt.CONFIGURATION


def test_suspension_needs_its_feature_and_a_running_device(driver: Driver) -> None:
    assert driver.negotiate(driver.offered())
    driver.set_status(Status.SUSPEND)
    assert Status.SUSPEND not in driver.status
    driver.start(at=RINGS, features=Feature.VERSION_1)
    driver.set_status(Status.SUSPEND)
    assert Status.SUSPEND not in driver.status


# A process that ends, and another that goes on.


def noted(disk: Path) -> Machine:
    return Machine(VirtioBlock(disk), NotedRam(GuestMemory(1 << 20)))


def test_another_process_goes_on_with_the_requests_that_wait(disk: Path) -> None:
    machine = noted(disk)
    driver = machine.driver
    driver.start(at=RINGS)
    assert read_sector(machine, 3) == bytes([3]) * 512
    machine.request(IN, 9, room=512)
    machine.replace(VirtioBlock(disk))
    assert machine.line, "the driver may have missed an interrupt"
    assert driver.acknowledge() == Interrupt.USED_BUFFER | Interrupt.CONFIGURATION
    taken = machine.queue.take()
    assert taken is not None
    assert machine.ram.read(taken[0].writes[0][0], 512) == bytes([9]) * 512
    assert read_sector(machine, 10) == bytes([10]) * 512


def test_a_process_that_was_replaced_uses_no_buffer(disk: Path) -> None:
    """One that was stopped, for example, until it lost its regions, and then goes on."""
    machine = noted(disk)
    driver = machine.driver
    driver.start(at=RINGS)
    replaced = machine.device
    machine.replace(VirtioBlock(disk))
    machine.request(IN, 9, room=512)
    replaced.look(0)
    assert machine.queue.used_index == 0
    machine.device.look(0)
    assert machine.queue.used_index == 1
    machine.ram.erase_notes()
    machine.device.reset()
    driver.start(at=RINGS)
    assert read_sector(machine, 4) == bytes([4]) * 512


@pytest.mark.parametrize(("address", "published"), [(None, 1), (0xE000_0000, 0)])
def test_the_causes_of_interrupts_are_published_at_a_slots_own_place(
    disk: Path, address: int | None, published: int
) -> None:
    ram = NotedRam(GuestMemory(1 << 20))
    Machine(VirtioBlock(disk, address=address), ram).device.config_changes()
    assert ram.kept[PUBLISHED:].cast("I")[0] == published


def test_a_suspended_device_is_suspended_in_the_next_process(disk: Path) -> None:
    machine = noted(disk)
    driver = machine.driver
    driver.start(at=RINGS)
    assert read_sector(machine, 3) == bytes([3]) * 512
    driver.set_status(Status.SUSPEND)
    machine.replace(VirtioBlock(disk))
    assert Status.SUSPEND in driver.status
    driver.set_status(Status.DRIVER_OK)
    assert read_sector(machine, 4) == bytes([4]) * 512


def test_without_notes_the_next_process_says_that_it_needs_a_reset(machine: Machine, disk: Path) -> None:
    driver = machine.driver
    driver.start(at=RINGS)
    machine.request(IN, 9, room=512)
    machine.replace(VirtioBlock(disk))
    assert driver.status == 0
    driver.notify(always=True)
    assert driver.status == Status.DEVICE_NEEDS_RESET
    assert driver.acknowledge() == Interrupt.CONFIGURATION
    assert "whose state was lost" in machine.device.broken
    driver.start(at=RINGS)
    assert read_sector(machine, 4) == bytes([4]) * 512


def test_notes_of_another_device_are_not_taken(disk: Path) -> None:
    machine = noted(disk)
    machine.driver.start(at=RINGS)
    ram = machine.ram
    assert isinstance(ram, NotedRam)
    kept = bytes(ram.kept)
    for at in (0, 4, 8, 40):  # whatever is wrong with them
        ram.kept[:] = kept
        ram.kept[at] ^= 0xFF
        ram.kept[len(kept) // 2 + at] ^= 0xFF
        machine.replace(VirtioBlock(disk))
        assert machine.driver.status == 0


def test_a_saved_state_goes_on_elsewhere(machine: Machine, disk: Path) -> None:
    driver = machine.driver
    driver.start(at=RINGS)
    assert read_sector(machine, 3) == bytes([3]) * 512
    saved = json.loads(json.dumps(machine.device.save()))
    other = Machine(VirtioBlock(disk))
    other.ram.write(0, machine.ram.read(0, 1 << 20))
    other.device.restore(saved)
    other.driver.queues = driver.queues
    other.queue.ram = other.ram
    assert other.driver.status == driver.status
    assert read_sector(other, 4) == bytes([4]) * 512


def test_states_that_contradict_themselves_are_refused(machine: Machine) -> None:
    machine.driver.start(at=RINGS)
    saved = machine.device.save()
    wrong: list[dict[str, Any]] = [
        {"status": 0x100},
        {"driver_features": 1 << 63},
        {"queues": []},
        {"queues": [{"size": 1, "ready": True}]},
        {"interrupt_status": 4},
    ]
    for changes in wrong:
        with pytest.raises(InvalidArgument):
            machine.device.restore({**saved, "state": {**saved["state"], **changes}})
    assert machine.device.save() == saved


# Places.


def test_a_device_is_where_its_slot_says(disk: Path) -> None:
    device = VirtioBlock(disk, slot=3)
    assert [region.start for region in device.regions] == [PC[3].address, PC[3].address + 0x54]
    assert device.lines[0].gsi == PC[3].gsi == 19
    device.place(Architecture.ARM64)
    assert device.regions[0].start == ARM64[3].address
    assert device.lines[0].gsi == spi(19)
    elsewhere = VirtioBlock(disk, address=0xE000_0000, gsi=5)
    elsewhere.place(Architecture.ARM64)
    assert (elsewhere.regions[0].start, elsewhere.lines[0].gsi) == (0xE000_0000, 5)
    with pytest.raises(InvalidArgument, match="use 0 to 7"):
        VirtioBlock(disk, slot=8)
