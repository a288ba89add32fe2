"""A guest's accesses reach the daemon's devices and those of the vCPU's own process."""

from __future__ import annotations

import re
import struct

import pytest

from irqchip_client import GuestError
from tests.kvm import guests
from tests.kvm.machine import Machine


def test_ports_one_by_one_and_in_strings(machine: Machine) -> None:
    machine.devices.ports = {0x300: iter([0x1111, 0x2222, 0x3333, 0x4444])}
    machine.memory.write(0x500, b"hello")
    machine.load_real(guests.PORTS)
    machine.cpu.run()
    assert machine.devices.said == b"\x5ahello"
    # Four words of a local device, 300 bytes of the daemon's PIC, which exceed a batch, and two unclaimed ones.
    assert machine.memory.read(0x600, 8 + 300 + 2) == struct.pack("<4H", 0x1111, 0x2222, 0x3333, 0x4444) + (
        b"\x5a" * 300 + b"\xff" * 2
    )
    assert machine.vcpu.pio_read(0x21).data == ord("o")  # the last of a string


def test_accesses_outside_ram_reach_devices(machine: Machine) -> None:
    machine.load_protected(guests.MEMORY)
    machine.cpu.run()
    assert machine.word(0x500) == 0x0017_0011  # the IOAPIC's version
    assert machine.word(0x504) == 0xFFFF_FFFF
    assert machine.word(0x508) == 0x4433_2211
    assert machine.devices.memory == {0xFD00_0FFD + n: 0x11 * (n + 1) for n in range(4)}


def test_a_local_devices_exception_ends_the_run(machine: Machine) -> None:
    def refuse(byte: int) -> None:
        raise LookupError(byte)

    machine.devices.on_say = refuse
    machine.load_real(guests.PORTS)
    with pytest.raises(LookupError, match="90"):
        machine.cpu.run()
    # The guest continues after that access.
    machine.devices.on_say = lambda _: None
    machine.devices.ports = {0x300: iter([1, 2, 3, 4])}
    machine.cpu.run()
    assert machine.devices.said[:1] == b"\x5a"


def test_a_triple_fault_says_where(machine: Machine) -> None:
    no_table = b"\x0f\x01\x1c\x25\x00\x05\x00\x00"  # lidt [0x500]
    page_fault = b"\x48\xa1" + (1 << 40).to_bytes(8, "little")  # mov rax, [0x10000000000]
    machine.load_long(no_table + page_fault)
    with pytest.raises(GuestError, match=r"vCPU 0 can't go on: a triple fault.* It is at RIP ") as caught:
        machine.cpu.run()
    if "KVM has reset the vCPU" in str(caught.value):  # AMD's processors keep no state
        assert "RIP 0xfff0, CS 0xf000 " in str(caught.value)
    else:
        assert re.search("RIP 0x12[0-9a-f]+, CS 0x18 ", str(caught.value))


def test_executing_outside_ram_reports_the_place(machine: Machine) -> None:
    machine.load_protected(b"\xb8\x00\x00\x00\xfd\xff\xe0")  # mov eax, 0xfd000000; jmp eax
    with pytest.raises(GuestError, match=r"internal error 1: .* RIP 0xfd000000"):
        machine.cpu.run()


def test_a_vcpu_can_be_restarted_after_an_error(machine: Machine) -> None:
    machine.load_protected(b"\xb8\x00\x00\x00\xfd\xff\xe0")
    with pytest.raises(GuestError):
        machine.cpu.run()
    machine.load_protected(guests.MEMORY)
    machine.cpu.run()
    assert machine.word(0x500) == 0x0017_0011
