"""A driver that writes anything anywhere: the device neither raises an exception nor hangs, and works after a reset."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from pathlib import Path

import pytest

from irqchip_client.devices import VirtioBlock, VirtioConsole
from irqchip_client.devices.virtio.mmio import Register, VirtioDevice
from tests.devices.virtio.machine import IN, OK, RAM, RINGS, Machine

REGISTERS = [int(register) for register in Register]


def number(random: random.Random) -> int:
    """A number that may mean something."""
    kind = random.randrange(6)
    if kind == 0:
        return random.randrange(8)
    if kind == 1:
        return 1 << random.randrange(32)
    if kind == 2:
        return random.randrange(RAM) & ~0xF
    if kind == 3:
        return 0xFFFF_FFFF
    return random.getrandbits(32)


def write_registers(machine: Machine, random: random.Random) -> None:
    driver = machine.driver
    for _ in range(random.randrange(1, 12)):
        size = random.choice((1, 2, 4, 4, 4, 4, 8))
        offset = random.choice((*REGISTERS, random.randrange(0x1F8)))
        notifies = offset < Register.QUEUE_NOTIFY + 4 and offset + size > Register.QUEUE_NOTIFY
        if notifies and (offset, size) != (Register.QUEUE_NOTIFY, 4):
            continue  # no region has all of it
        if random.random() < 0.3 and not notifies:
            machine.bench.read(driver.base + offset, size)
        else:
            machine.bench.write(driver.base + offset, number(random) % (1 << 8 * size), size)


def write_memory(machine: Machine, random: random.Random) -> None:
    """Changes the rings, descriptors first."""
    queue = random.choice(machine.driver.queues)
    for _ in range(random.randrange(1, 8)):
        kind = random.randrange(5)
        if kind == 0:
            machine.ram.write(queue.used + random.randrange(8), bytes([random.randrange(256)]))
        elif kind == 1:
            queue.offer(random.choice((0, 1, random.randrange(queue.size), random.getrandbits(16))))
        elif kind == 2:
            machine.ram.write(queue.available, struct.pack("<HH", random.randrange(2), random.getrandbits(16)))
        else:
            address = random.choice(
                (random.randrange(RAM), random.randrange(queue.end), RAM - 8, random.getrandbits(64))
            )
            length = random.choice((0, 1, 16, 512, 1024, random.randrange(1 << 20), 0xFFFF_FFFF))
            flags = random.choice((0, 1, 2, 3, 4, random.getrandbits(16)))
            following = random.choice((0, 1, random.randrange(queue.size), random.getrandbits(16)))
            queue.descriptor(random.randrange(queue.size), address, length, flags, following)


def attack(machine: Machine, random: random.Random, steps: int, queues: int) -> None:
    driver = machine.driver
    for _ in range(steps):
        match random.randrange(8):
            case 0:
                driver.start(
                    at=random.choice((RINGS, RINGS, 0, 0x8_0000)), size=random.choice((1, 4, 16)), queues=queues
                )
            case 1 | 2:
                write_registers(machine, random)
            case 3:
                machine.bench.advance(0.1 * random.random())
            case 4:
                saved = json.loads(json.dumps(machine.device.save()))
                machine.device.restore(saved)
            case 5 if driver.queues:
                driver.queues[0].free = list(range(driver.queues[0].size)) * 4  # whether they are free or not
                machine.request(random.choice((0, 1, 4, 8, 99)), random.randrange(80), room=random.choice((0, 512)))
                driver.notify(random.randrange(queues), always=True)
            case _ if driver.queues:
                write_memory(machine, random)
                driver.notify(random.randrange(queues), always=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_disk_survives_any_driver(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 128)
    machine = Machine(VirtioBlock(path))
    began = time.monotonic()
    attack(machine, random.Random(seed), 2000, 1)
    assert time.monotonic() - began < 20
    assert path.stat().st_size == 256 * 128
    works(machine)
    assert machine.ask(IN, 0, room=512)[0] == OK


@pytest.mark.parametrize("seed", range(6))
def test_a_console_survives_any_driver(seed: int) -> None:
    readable, writable = os.pipe()
    output = bytearray()
    machine = Machine(VirtioConsole(output.extend, readable))
    generator = random.Random(seed)
    for _ in range(20):
        os.write(writable, b"input")
        attack(machine, generator, 20, 2)
        machine.bench.look()
    works(machine, queues=2)
    machine.ram.write(0x4_0000, b"hello")
    output.clear()
    machine.driver.queues[1].add([(0x4_0000, 5)], [])
    machine.driver.notify(1)
    assert output == b"hello"
    os.close(readable)
    os.close(writable)


def works(machine: Machine, queues: int = 1) -> None:
    """After a reset nothing is left of it."""
    device: VirtioDevice = machine.device
    machine.driver.start(at=RINGS, queues=queues)
    assert device.is_live
