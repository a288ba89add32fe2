"""Reads of the local APIC that a KVM vCPU's process answers itself."""

from __future__ import annotations

import os
import statistics
import struct
import time
from fcntl import ioctl as run_ioctl
from mmap import mmap

import pytest

from irqchip_client import NotFound, SessionClosed
from irqchip_client.kvm import GuestMemory, KvmVm, Start, StartMode
from irqchip_client.kvm.ioctls import Exit, Request, Run, ioctl
from irqchip_client.kvm.registers import Registers
from tests.kvm.machine import APIC, ENTRY, Machine
from tests.vmm.guests import FLAG, SEEN, WAITS_FOR_FLAG, reads_id

READS, RUNS = 20_000, 7


def test_a_change_by_others_is_visible_before_memory_written_after_it(machine: Machine) -> None:
    machine.load_protected(WAITS_FOR_FLAG)
    assert machine.cpu._local_apic.read(APIC + 0x80, 4) == 0
    for tpr in range(0x10, 0x100, 0x10):
        machine.memory.write(FLAG, bytes(4))
        machine.cpu.start(Start(StartMode.PROTECTED, ENTRY))
        with machine.running() as done:
            time.sleep(0.005)
            machine.vcpu.mmio_write(APIC + 0x80, tpr)
            machine.memory.write(FLAG, struct.pack("<I", 1))
            done.result(10)
        assert machine.word(SEEN) == tpr


def test_a_guest_that_asks_the_daemon_nothing_ends_with_its_vm(machine: Machine) -> None:
    machine.load_protected(reads_id(0))  # 2^32 times
    with machine.running() as done:
        time.sleep(0.05)
        machine.vm.delete()
        with pytest.raises((SessionClosed, NotFound), match="deleted"):
            done.result(10)


@pytest.mark.long
def test_a_read_costs_its_exit_and_little_more(machine: Machine) -> None:
    """The reads per second reach two thirds of the exits per second: 100,000 of 150,000."""
    machine.load_protected(reads_id(READS))
    own, bare = [], []
    for _ in range(RUNS):
        bare.append(exits_a_second())
        machine.cpu.start(Start(StartMode.PROTECTED, ENTRY))
        began = time.perf_counter()
        machine.cpu.run()
        own.append(READS / (time.perf_counter() - began))
    reads, exits = statistics.median(own), statistics.median(bare)
    print(f"{reads:,.0f} reads of the APIC ID a second; {exits:,.0f} bare exits")
    assert reads > exits / 1.5


def exits_a_second() -> float:
    """The exits per second of the same guest, with nothing that answers its reads."""
    with GuestMemory(1 << 16) as memory, KvmVm(memory) as kvm:
        memory.write(ENTRY, reads_id(READS))
        fd = ioctl(kvm.fd, Request.CREATE_VCPU, 0)
        try:
            with mmap(fd, kvm.run_size) as run:
                Registers(fd).start(Start(StartMode.PROTECTED, ENTRY))
                began, exits = time.perf_counter(), 0
                while True:
                    run_ioctl(fd, Request.RUN)
                    if run[Run.EXIT_REASON] != Exit.MMIO:
                        return exits / (time.perf_counter() - began)
                    exits += 1
        finally:
            os.close(fd)
