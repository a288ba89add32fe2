"""The parts of a device, shown with the example of docs/devices.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.devices import Device, Uart
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


def test_a_wide_access_is_split_into_registers_lowest_first() -> None:
    seen: list[tuple[int, int, int]] = []
    device = Device("wide")
    device.pio(PORT, 8, lambda offset, size: offset << 4 | size, lambda *write: seen.append(write), width=2)
    bench = Bench(device)
    assert bench.read(PORT + 2, 4) == 0x0042_0022
    bench.write(PORT + 2, 0x1234_5678, 4)
    assert seen == [(2, 0x5678, 2), (4, 0x1234, 2)]
    assert bench.read(PORT + 1) == 0x11


def test_the_example_is_reset_and_saved(bench: Bench) -> None:
    bench.write(PORT, 1)
    saved = bench.device.save()
    bench.device.reset()
    assert not bench.level(GSI)
    assert bench.read(PORT) == 0
    bench.device.restore(saved)
    assert bench.level(GSI)
    assert bench.read(PORT) == 1


def test_a_timer_that_was_started_before_the_device_was_run_goes_on_then() -> None:
    expired: list[float] = []
    device = Device("early")
    device.timer(lambda: expired.append(device.host.now())).start(0.5)
    assert Bench(device).advance(1.0) == 1
    assert expired == [1000.5]


@pytest.mark.parametrize(
    ("start", "length"), [("0x20", 1), (-1, 1), (0x10000, 1), (0xFFFF, 2), (0x20, 0), (0x20, None)]
)
def test_an_invalid_region_is_refused_at_its_definition(start: object, length: object) -> None:
    with pytest.raises(InvalidArgument, match="a region"):
        Device("wrong").pio(start, length, lambda *_: 0, lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{}, {"output": 1, "colour": 3}])
def test_a_constructor_says_which_arguments_it_takes(arguments: dict[str, int]) -> None:
    with pytest.raises(
        InvalidArgument, match=r"Uart: .*'(output|colour)'; write Uart\(output, input_fd=None, .* gsi=4, "
    ):
        Uart(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"output": "x"}, "output is 'x': write a descriptor or a function"),
        ({"output": 1, "gsi": "4"}, "gsi is '4': write a whole number"),
        ({"output": 1, "base": None}, "base is None: write a whole number"),
        ({"output": 1, "paced": "no"}, "paced is 'no': write True or False"),
        ({"output": 1, "input_fd": 0.5}, "input_fd is 0.5: write a whole number"),
    ],
)
def test_a_constructor_names_the_invalid_argument(arguments: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Uart: {wrong}"):
        Uart(**arguments)
    assert Uart(1, None, paced=True).paced


def test_a_constructors_own_exception_is_not_changed() -> None:
    class Broken(Device):
        def __init__(self, port: int) -> None:
            raise TypeError(f"port {port}")

    with pytest.raises(TypeError, match="port 5"):
        Broken(5)
