"""interrupts and top, with a real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from irqchip_client import Client, InterruptCount, InterruptCounts, InterruptKind, Latency, Vm
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client.cli.interrupts import table
from tests.waiting import eventually

APIC, IOAPIC, VECTOR, MSI = 0xFEE0_0000, 0xFEC0_0000, 0x41, 0x55


def ctl(daemon: Daemon, *arguments: str) -> str:
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", daemon.target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def pc(client: Client) -> Vm:
    vm = client.create_vm("vm")
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    vm.create_vcpu(1)
    vcpu.mmio_write(APIC + 0xF0, 0x1FF)
    for register, value in ((0x30, VECTOR), (0x31, 0)):
        vcpu.mmio_write(IOAPIC, register)
        vcpu.mmio_write(IOAPIC + 0x10, value)
    return vm


@contextmanager
def busy(vm: Vm) -> Iterator[None]:
    """A device interrupts all the time, and each time there are two MSIs."""
    enough = threading.Event()

    def run() -> None:
        with vm.session(client="nic") as session:
            vcpu = session.vcpu(0)
            while not enough.wait(0.002):
                session.line(16).pulse()
                vcpu.halt()
                vcpu.mmio_write(APIC + 0xB0, 0)
                for _ in range(2):
                    session.signal_msi(APIC, MSI)
                    vcpu.halt()
                    vcpu.mmio_write(APIC + 0xB0, 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_interrupts_and_top_of_a_busy_vm() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = pc(client)
        vm.interrupts()  # the counting begins while no interrupt is on its way
        with busy(vm):
            shown = ctl(daemon, "interrupts", "vm", "--for", "0.3", "--latency").splitlines()
            rows: list[list[str]] = []

            def are_busy() -> bool:
                """Whether there were enough interrupts in both updates, which a busy machine may prevent."""
                live = ctl(daemon, "top", "--interval", "0.2", "--count", "2").splitlines()
                rows[:] = [row.split("\t") for row in live]
                most_frequent_first = [row[1] for row in rows] == [f"V{MSI}", "16"] * 2
                return most_frequent_first and all(float(row[2]) > 0 for row in rows)

            eventually(are_busy)
        assert shown[0].split() == ["CPU0", "CPU1"]
        line, message = shown[1].split(), shown[2].split()
        assert (line[0], line[2:5], line[-1]) == ("16:", ["0", "IO-APIC", "65-edge"], "nic")
        assert int(line[1]) > 0
        assert (message[0], message[2:5]) == (f"V{MSI}:", ["0", "PCI-MSI", "85-edge"])
        assert "accept" in shown[1]
        assert len(rows[-1][3]) == 2  # of the two updates
        # The SDK has the same: none got lost, and each has both times.
        counts = {one.number: one for one in vm.interrupts().interrupts}
        for one in counts.values():
            assert one.accept.count == one.eoi.count == sum(one.counts.values())
        assert sum(counts[MSI].counts.values()) // 2 - sum(counts[VECTOR].counts.values()) in (-1, 0)
        document = json.loads(ctl(daemon, "interrupts", "vm", "--json"))
        assert {one["kind"] for one in document["interrupts"]} == {"ioapic", "msi"}


def latency(*buckets: int) -> Latency:
    return Latency(list(buckets), sum(buckets))


def test_the_table_is_that_of_proc_interrupts() -> None:
    some = [
        InterruptCount(InterruptKind.LOCAL, None, 236, False, [], {1: 5}, latency(), latency()),
        InterruptCount(InterruptKind.GIC, 11, 43, True, ["uart"], {0: 7, 1: 1}, latency(), latency()),
        InterruptCount(InterruptKind.PIC, 4, 52, False, [], {0: 3}, latency(), latency()),
    ]
    assert table(InterruptCounts(10**9, [0, 1], some)) == [
        "            CPU0       CPU1",
        "   4:          3          0  XT-PIC   52-edge",
        "  11:          7          1  GIC      43-level  uart",
        "V236:          0          5  Local    236-edge",
    ]


def test_a_quantile_is_a_bucket_that_enough_times_fit_into() -> None:
    assert [latency(0, 0, 9, 0, 1).quantile(share) for share in (0.5, 0.9, 0.99)] == [4, 4, 16]
    assert latency(0, 0).quantile(0.5) is None
