"""The debug exit: its exit statuses are QEMU's."""

from __future__ import annotations

import pytest

from irqchip_client.devices.exit import DebugExit
from tests.devices.bench import Bench

BASE = 0xF4


@pytest.mark.parametrize(
    ("port", "value", "size", "status"),
    [
        (BASE, 0, 1, 1),
        (BASE, 0x10, 1, 0x21),
        (BASE + 3, 0xFF, 1, 0x1FF),
        (BASE, 0x1234, 2, 0x2469),
        (BASE, 0xFFFF_FFFF, 4, 0x1_FFFF_FFFF),
        (BASE + 2, 5, 4, 11),
    ],
)
def test_a_write_ends_with_twice_its_value_plus_one(port: int, value: int, size: int, status: int) -> None:
    ended: list[int] = []
    bench = Bench(DebugExit(ended.append, BASE))
    bench.write(port, value, size)
    assert ended == [status]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_reads_give_zero_and_end_nothing(size: int) -> None:
    ended: list[int] = []
    bench = Bench(DebugExit(ended.append, BASE))
    assert bench.read(BASE, size) == 0
    assert ended == []
