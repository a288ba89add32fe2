"""What a device is made of, by the example of docs/devices.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from irqchip_client.devices import Device
from tests.devices.bench import Bench

TEXT = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)\nif __name__", TEXT, re.DOTALL)
PORT, GSI = 0x300, 5


@pytest.fixture
def bench() -> Bench:
    names: dict[str, type[Device]] = {}
    exec(CODE, names)
    return Bench(names["Doorbell"](PORT, GSI))  # type: ignore[call-arg, arg-type]


def test_the_example_interrupts_until_it_is_read_and_forgets(bench: Bench) -> None:
    bench.write(PORT, 1)
    bench.write(PORT, 1)
    assert bench.edges == [(GSI, True)]
    assert bench.read(PORT) == 2
    assert not bench.level(GSI)
    assert bench.advance(1.0) == 1
    assert bench.read(PORT) == 0


def test_an_access_wider_than_a_register_is_several_the_lowest_first() -> None:
    seen: list[tuple[int, int, int]] = []
    device = Device("wide")
    device.pio(PORT, 8, lambda offset, size: offset << 4 | size, lambda *write: seen.append(write), width=2)
    bench = Bench(device)
    assert bench.read(PORT + 2, 4) == 0x0042_0022
    bench.write(PORT + 2, 0x1234_5678, 4)
    assert seen == [(2, 0x5678, 2), (4, 0x1234, 2)]
    assert bench.read(PORT + 1) == 0x11
