"""Reads of the local APIC that a Unicorn vCPU's process answers itself."""

from __future__ import annotations

import statistics
import struct
import time
from typing import TYPE_CHECKING

import pytest

from irqchip_client import Client, NotFound, SessionClosed
from tests.vmm.guests import FLAG, SEEN, WAITS_FOR_FLAG, reads_id

if TYPE_CHECKING:
    from .machine import Machine

APIC = 0xFEE0_0000
READS = 100_000
RUNS, MOST_RUNS = 5, 40  # more on a machine on which the times vary


def test_a_change_by_others_is_visible_before_memory_written_after_it(machine: Machine) -> None:
    assert machine.cpu._local_apic.read(APIC + 0x80, 4) == 0
    for tpr in range(0x10, 0x100, 0x10):
        machine.memory.write(FLAG, bytes(4))
        machine.start(WAITS_FOR_FLAG)
        with machine.running() as running:
            time.sleep(0.005)
            machine.daemon.mmio_write(APIC + 0x80, tpr)
            machine.memory.write(FLAG, struct.pack("<I", 1))
            running.join()
        assert machine.word(SEEN) == tpr


def test_a_guest_that_asks_the_daemon_nothing_ends_with_its_vm(irqchip_client: Client, machine: Machine) -> None:
    machine.start(reads_id(0))  # 2^32 times
    with machine.running() as running:
        time.sleep(0.05)
        machine.vm.delete()
        with pytest.raises((SessionClosed, NotFound), match="deleted"):
            running.join()
    irqchip_client.create_vm(machine.vm.name)  # for the fixture to delete


@pytest.mark.long
def test_a_guest_reads_its_apic_id_100_000_times_a_second(machine: Machine) -> None:
    rates: list[float] = []
    while len(rates) < RUNS or (statistics.median(rates) < 100_000 and len(rates) < MOST_RUNS):
        machine.start(reads_id(READS))
        began = time.perf_counter()
        machine.cpu.run()
        rates.append(READS / (time.perf_counter() - began))
    reads = statistics.median(rates)
    print(f"{reads:,.0f} reads of the APIC ID a second")
    assert reads >= 100_000
