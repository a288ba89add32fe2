"""The console device, section 5.3."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.devices import VirtioConsole
from irqchip_client.devices.virtio.console import EMERG_WR, MOST_AT_ONCE, RECEIVE, RETRY, TRANSMIT, Feature
from irqchip_client.devices.virtio.mmio import Interrupt, Register, Status
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.virtio.machine import DATA, RINGS, Machine, NotedRam


class Terminal:
    """The console's other end."""

    def __init__(self) -> None:
        self.end, self.devices = socket.socketpair()
        self.end.setblocking(False)
        self.output = bytearray()
        self.accepts = True

    def __call__(self, data: bytes) -> bool:
        if self.accepts:
            self.output += data
        return self.accepts


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.end.close()
    terminal.devices.close()


@pytest.fixture
def machine(terminal: Terminal) -> Machine:
    machine = Machine(VirtioConsole(terminal, terminal.devices.fileno()))
    machine.driver.start(at=RINGS, queues=2)
    return machine


def send(machine: Machine, data: bytes) -> None:
    machine.ram.write(DATA, data)
    machine.driver.queues[TRANSMIT].add([(DATA, len(data))], [])
    machine.driver.notify(TRANSMIT)


def offer(machine: Machine, *lengths: int) -> None:
    for number, length in enumerate(lengths):
        machine.driver.queues[RECEIVE].add([], [(DATA + 0x1_0000 + 0x1000 * number, length)])
    machine.driver.notify(RECEIVE)


def received(machine: Machine) -> bytes:
    data = b""
    while taken := machine.driver.queues[RECEIVE].take():
        data += machine.ram.read(taken[0].writes[0][0], taken[1])
    return data


def test_it_is_a_console_with_one_port(machine: Machine) -> None:
    assert machine.driver[Register.DEVICE_ID] == 3
    assert machine.driver.offered() & 0xFF == Feature.EMERG_WRITE
    for number, most in ((0, 256), (1, 256), (2, 0)):
        machine.driver[Register.QUEUE_SEL] = number
        assert machine.driver[Register.QUEUE_SIZE_MAX] == most


def test_what_the_guest_sends_comes_out(machine: Machine, terminal: Terminal) -> None:
    send(machine, b"hello ")
    send(machine, b"world" * 1000)
    assert terminal.output == b"hello " + b"world" * 1000
    assert machine.driver.acknowledge() == Interrupt.USED_BUFFER


def test_output_that_is_not_accepted_waits(machine: Machine, terminal: Terminal) -> None:
    send(machine, b"a" * 600)
    terminal.accepts = False
    send(machine, b"b" * 600)
    assert machine.driver.queues[TRANSMIT].used_index == 1
    machine.bench.advance(5 * RETRY)
    assert terminal.output == b"a" * 600
    terminal.accepts = True
    machine.bench.advance(RETRY)
    assert terminal.output == b"a" * 600 + b"b" * 600
    assert machine.driver.queues[TRANSMIT].used_index == 2


def test_a_long_buffer_takes_several_turns(machine: Machine, terminal: Terminal) -> None:
    machine.ram.write(DATA, b"x" * 2 * MOST_AT_ONCE)
    machine.driver.queues[TRANSMIT].add([(DATA, 2 * MOST_AT_ONCE)], [])
    machine.driver.notify(TRANSMIT)
    assert len(terminal.output) == MOST_AT_ONCE
    machine.bench.advance()
    assert terminal.output == b"x" * 2 * MOST_AT_ONCE
    assert machine.driver.queues[TRANSMIT].used_index == 1


def test_a_reset_forgets_what_was_begun(machine: Machine, terminal: Terminal) -> None:
    machine.ram.write(DATA, b"x" * (MOST_AT_ONCE + 1))
    machine.driver.queues[TRANSMIT].add([(DATA, MOST_AT_ONCE + 1)], [])
    machine.driver.notify(TRANSMIT)
    terminal.output.clear()
    machine.driver.start(at=RINGS, queues=2)
    machine.bench.advance(1)
    send(machine, b"new")
    assert terminal.output == b"new"


def test_the_guest_receives_what_comes_in(machine: Machine, terminal: Terminal) -> None:
    offer(machine, 64)
    terminal.end.send(b"hello")
    machine.bench.look()
    assert received(machine) == b"hello"
    assert machine.driver.acknowledge() == Interrupt.USED_BUFFER


def test_input_waits_for_buffers(machine: Machine, terminal: Terminal) -> None:
    terminal.end.send(b"0123456789")
    machine.bench.look()
    assert not machine.bench.watched, "nothing is read that has no place"
    offer(machine, 4, 3)
    machine.bench.look()
    assert received(machine) == b"0123456"
    offer(machine, 100)
    machine.bench.look()
    assert received(machine) == b"789"


def test_no_input_is_read_before_the_driver_is_ready(terminal: Terminal) -> None:
    machine = Machine(VirtioConsole(terminal, terminal.devices.fileno()))
    terminal.end.send(b"early")
    machine.bench.look()
    machine.driver.start(at=RINGS, queues=2)
    offer(machine, 64)
    machine.bench.look()
    assert received(machine) == b"early"
    machine.driver[Register.STATUS] = 0
    assert not machine.bench.watched


def test_the_end_of_the_input_is_no_input(machine: Machine, terminal: Terminal) -> None:
    offer(machine, 64)
    terminal.end.shutdown(socket.SHUT_WR)
    machine.bench.look()
    assert not machine.bench.watched
    assert machine.driver.queues[RECEIVE].used_index == 0
    send(machine, b"still there")
    assert terminal.output == b"still there"


def test_a_buffer_to_receive_into_must_have_room(machine: Machine, terminal: Terminal) -> None:
    machine.driver.queues[RECEIVE].add([(DATA, 4)], [])
    machine.driver.notify(RECEIVE)
    terminal.end.send(b"x")
    machine.bench.look()
    assert Status.DEVICE_NEEDS_RESET in machine.driver.status


def test_an_emergency_write_needs_no_driver(terminal: Terminal) -> None:
    machine = Machine(VirtioConsole(terminal))
    for character in b"oops":
        machine.driver.write_config(EMERG_WR, character, 4)
    machine.driver.write_config(0, 5, 4)
    assert terminal.output == b"oops"
    assert machine.driver.config(EMERG_WR, 4) == 0


def test_another_process_goes_on(terminal: Terminal) -> None:
    ram = NotedRam(GuestMemory(1 << 20))
    machine = Machine(VirtioConsole(terminal, terminal.devices.fileno()), ram)
    machine.driver.start(at=RINGS, queues=2)
    offer(machine, 8, 8, 8)
    terminal.end.send(b"one")
    machine.bench.look()
    terminal.accepts = False
    send(machine, b"out")
    terminal.accepts = True
    machine.replace(VirtioConsole(terminal, terminal.devices.fileno()))
    terminal.end.send(b"two")
    machine.bench.look()
    assert terminal.output == b"out"
    assert received(machine) == b"onetwo"


def test_output_goes_to_a_descriptor_or_a_function() -> None:
    with pytest.raises(InvalidArgument, match="descriptor or a function"):
        VirtioConsole("terminal")  # type: ignore[arg-type]
    readable, writable = os.pipe()
    machine = Machine(VirtioConsole(writable))
    machine.driver.start(at=RINGS, queues=2)
    send(machine, b"through a pipe")
    assert os.read(readable, 100) == b"through a pipe"
    os.close(readable)
    os.close(writable)
