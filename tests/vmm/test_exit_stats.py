"""The counts of exits, without a guest: how they are kept, added up and shown."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from irqchip_client import Client, Space
from irqchip_client.cli.exits import owner_of, summary, table
from irqchip_client.vmm.accesses import LocalStrings
from irqchip_client.vmm.exit_stats import (
    IO_READ,
    IO_WRITE,
    MAX_ROWS,
    MMIO_WRITE,
    Answerer,
    CountedDevices,
    CountedSession,
    ExitCount,
    ExitStats,
)


class Ports:
    """A device at one port."""

    def pio_read(self, port: int, size: int) -> int | None:  # noqa: ARG002
        return 0 if port == 0x60 else None

    def pio_write(self, port: int, value: int, size: int) -> bool:  # noqa: ARG002
        return port == 0x60

    mmio_read, mmio_write = pio_read, pio_write


class Strings(Ports):
    """A device that takes strings, too."""

    def pio_read_string(self, port: int, size: int, count: int) -> list[int] | None:  # noqa: ARG002
        return [*range(count)] if port == 0x60 else None

    def pio_write_string(self, port: int, values: Sequence[int], size: int) -> bool:  # noqa: ARG002
        return port == 0x60


def test_exits_add_up_over_vcpus_and_the_shortest_and_longest_are_kept() -> None:
    stats = ExitStats()
    for _ in range(2):
        recorder = stats.recorder()
        for _ in range(3):
            with recorder.exit(IO_READ, 0x60):
                pass
        with recorder.exit(MMIO_WRITE, 0xFEE0_00B0):
            pass
    reads, writes = stats.counts()
    assert (reads.kind, reads.at, reads.by, reads.count, reads.operations) == (IO_READ, 0x60, Answerer.NOBODY, 6, 0)
    assert (writes.at, writes.count) == (0xFEE0_00B0, 2)
    assert 0 < reads.min_ns <= reads.total_ns / 6 <= reads.max_ns <= reads.total_ns


def test_a_guest_cannot_make_the_counts_grow_without_bound() -> None:
    stats = ExitStats()
    recorder = stats.recorder()
    for address in range(3 * MAX_ROWS):
        with recorder.exit(MMIO_WRITE, address):
            pass
    counts = stats.counts()
    assert len(counts) == MAX_ROWS + 1
    assert (counts[0].at, counts[0].count) == (None, 2 * MAX_ROWS)


def test_who_answered_is_who_was_called(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    stats = ExitStats()
    recorder = stats.recorder()
    devices = CountedDevices(Ports(), recorder)
    with vm.session("vcpu 0") as session:
        counted = CountedSession(session, recorder)
        counted.vcpu(0).pio_read(0x21)  # before the first exit
        for port in (0x60, 0x21, 0x21):
            with recorder.exit(IO_READ, port):
                if devices.pio_read(port, 1) is None:
                    counted.vcpu(0).pio_read(port)
                    counted.run([])
        counted.vcpu(0).acknowledge()
    rows = {(row.kind, row.at): (row.by, row.count, row.operations) for row in stats.counts()}
    assert rows == {
        (IO_READ, 0x60): (Answerer.DEVICE, 1, 0),
        (IO_READ, 0x21): (Answerer.DAEMON, 2, 4),
        ("ack interrupt", None): (Answerer.DAEMON, 1, 1),
    }


def test_a_device_still_gets_a_string_at_once() -> None:
    stats = ExitStats()
    recorder = stats.recorder()
    devices = CountedDevices(Strings(), recorder)
    assert isinstance(devices, LocalStrings)
    with recorder.exit(IO_READ, 0x60):
        assert devices.pio_read_string(0x60, 2, 3) == [0, 1, 2]
    with recorder.exit(IO_WRITE, 0x60):
        assert devices.pio_write_string(0x60, [1, 2], 2)
    with recorder.exit(IO_READ, 0x61):
        assert devices.pio_read_string(0x61, 2, 3) is None
    assert not devices.pio_write_string(0x61, [1, 2], 2)
    rows = {(row.kind, row.at): (row.by, row.count) for row in stats.counts()}
    assert rows == {
        (IO_READ, 0x60): (Answerer.DEVICE, 1),
        (IO_WRITE, 0x60): (Answerer.DEVICE, 1),
        (IO_READ, 0x61): (Answerer.NOBODY, 1),
    }
    without = CountedDevices(Ports(), recorder)
    assert without.pio_read_string(0x60, 2, 3) is None
    assert not without.pio_write_string(0x60, [1, 2], 2)


def test_an_exit_that_fails_counts() -> None:
    stats = ExitStats()
    with pytest.raises(ZeroDivisionError), stats.recorder().exit(IO_READ, 0x60):
        1 / 0  # noqa: B018
    assert stats.counts()[0].count == 1


def test_another_processs_region_is_named(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    with vm.session("clock") as session:
        session.register_region(Space.PIO, 0x70, 2)
        owner = owner_of(vm)
        rows = [
            *table(
                [
                    ExitCount(IO_READ, 0x71, Answerer.DAEMON, 3, 6_000, 1_000, 3_000, 3),
                    ExitCount(MMIO_WRITE, 0x71, Answerer.DAEMON, 1, 2_000, 2_000, 2_000, 2),
                ],
                owner,
                "the daemon here",
            )
        ]
    assert rows == [
        (IO_READ, "71", "clock", 3, "75.0", "75.0", "1.0us", "2.0us", "3.0us", 3),
        (MMIO_WRITE, "71", "the daemon here", 1, "25.0", "25.0", "2.0us", "2.0us", "2.0us", 2),
    ]


def test_the_summary_has_the_daemons_share() -> None:
    rows = [
        ExitCount(IO_READ, 0x60, Answerer.DEVICE, 3, 6_000, 1_000, 3_000, 0),
        ExitCount("interrupt", None, Answerer.DAEMON, 1, 2_000, 2_000, 2_000, 2),
    ]
    assert [*summary(rows, 2)] == ["4 exits in 2.0 s; 25.0 % answered by the daemon, in 2 batches"]
    assert [*summary([], 0)] == ["0 exits in 0.0 s; 0.0 % answered by the daemon, in 0 batches"]
