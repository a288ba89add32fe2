"""Reads of the local APIC that a KVM vCPU's process answers itself."""

from __future__ import annotations

import os
import statistics
import struct
import time
from fcntl import ioctl as run_ioctl
from mmap import mmap

import pytest

from irqchip.lapic_page import COPIED
from irqchip_client import Client, NotFound, SessionClosed
from irqchip_client.kvm import GuestMemory, KvmVm, Start, StartMode, entry, why_not
from irqchip_client.kvm.ioctls import Exit, Request, Run, ioctl
from irqchip_client.kvm.registers import Registers
from tests.kvm.guests import code
from tests.kvm.machine import APIC, ENTRY, Machine
from tests.vmm.guests import FLAG, SEEN, WAITS_FOR_FLAG, reads_id
from tests.waiting import PATIENCE

READS = 20_000
RUNS, MOST_RUNS = 7, 40  # more on a machine on which the times vary
REGISTERS, READ_AT = 256, 0x8000

# In protected mode: copies the first word of each register of the local APIC to 8000h.
READS_ALL = code(
    """
    fb                          sti
    be 00 00 e0 fe              mov esi, 0xfee00000
    bf 00 80 00 00              mov edi, 0x8000
    b9 00 01 00 00              mov ecx, 256
                            again:
    8b 06                       mov eax, [esi]
    ab                          stosd
    83 c6 10                    add esi, 16
    e2 f8                       loop again
    e6 f4                       out 0xf4, al
    """
)


@pytest.mark.parametrize("native", [True, False], ids=["machine code", "Python"])
def test_every_register_reads_as_the_daemon_says(
    irqchip_client: Client, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that change by themselves, and those that do not exist, are the daemon's own answers."""
    if reason := why_not():
        pytest.skip(reason)
    if not native:
        monkeypatch.setattr(entry, "executable", lambda _: None)
    with GuestMemory(1 << 20) as memory, KvmVm(memory) as kvm:
        machine = Machine(irqchip_client, kvm, memory)
        with machine.cpu as cpu:
            for offset, value in ((0xF0, 0x1FF), (0x80, 0x20), (0x320, 0x10031), (0xD0, 0x0200_0000)):
                machine.vcpu.mmio_write(APIC + offset, value)
            machine.load_protected(READS_ALL)
            cpu.run()
            own = [machine.vcpu.mmio_read(APIC + 16 * number).data for number in range(REGISTERS)]
            assert struct.unpack("<256I", memory.read(READ_AT, 4 * REGISTERS)) == tuple(own)
            # The first read, of no register, has told where they are.
            shared = sum(not offset & 0xF for offset in COPIED)
            assert cpu._entry.answered == (shared if native else 0)


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
            done.result(PATIENCE)
        assert machine.word(SEEN) == tpr


def test_a_guest_that_asks_the_daemon_nothing_ends_with_its_vm(machine: Machine) -> None:
    machine.load_protected(reads_id(0))  # 2^32 times
    with machine.running() as done:
        time.sleep(0.05)
        machine.vm.delete()
        with pytest.raises((SessionClosed, NotFound), match="deleted"):
            done.result(PATIENCE)


@pytest.mark.long
def test_a_read_costs_its_exit_and_little_more(machine: Machine) -> None:
    """The reads per second reach two thirds of the exits per second: 100,000 of 150,000."""
    machine.load_protected(reads_id(READS))
    own: list[float] = []
    bare: list[float] = []
    while len(own) < RUNS or (statistics.median(own) <= statistics.median(bare) / 1.5 and len(own) < MOST_RUNS):
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
