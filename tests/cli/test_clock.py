"""advance, and lengths of time."""

from collections.abc import Callable

import click
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import Client, Vm
from irqchip_client.cli.durations import DURATION, show_duration
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        *[
            ("7", 7),
            ("0", 0),
            ("7ns", 7),
            ("500us", 500_000),
            ("10ms", 10_000_000),
            ("1s", 10**9),
            ("1.5s", 15 * 10**8),
            ("0.000000001s", 1),
        ],
    ],
)
def test_a_length_of_time(text: str, nanoseconds: int) -> None:
    assert DURATION.convert(text, None, None) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        *["", "s", "x", "1 d", "1d", "-1ms", "1.5", "0.5ns", "1/0s", "nan", "infs", "1ss"],
        *["1h", "10min", "1e3", "1e3ms", "1_0", "1/2s", ".5s", "1.s", "\u0661s", "9" * 5000],
    ],
)
def test_an_invalid_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        *[(0, "0ns"), (999, "999ns"), (1000, "1us"), (1500, "1.5us"), (10_000_000, "10ms"), (10**9, "1s")],
        *[(1_000_000_001, "1.000000001s"), (600 * 10**9, "600s"), (1_020_000, "1.02ms")],
    ],
)
def test_a_length_of_time_is_shown_exactly(nanoseconds: int, text: str) -> None:
    assert show_duration(nanoseconds) == text


@given(st.integers(0, (1 << 64) - 1))
def test_a_length_of_time_that_is_shown_can_be_typed(nanoseconds: int) -> None:
    assert DURATION.convert(show_duration(nanoseconds), None, None) == nanoseconds


def test_advance(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    vm.create_pit()
    cpu = vm.create_vcpu(0)
    assert run("advance", vm.name, "10ms").stdout == "10ms; no timer runs\n"
    assert run("advance", vm.name, "1").stdout == "10.000001ms; no timer runs\n"
    for port, value in [(0x43, 0x34), (0x40, 0), (0x40, 0)]:  # Channel 0, 18.2 Hz.
        cpu.pio_write(port, value)
    period = 65536 * 10**9 // 1_193_182
    due = show_duration(10_000_001 + period)
    assert run("advance", vm.name, 0).stdout == f"10.000001ms; next timer at {due}\n"


def test_a_real_clock_does_not_advance(run: Run, fails: Callable[[Result], str], vm: Vm) -> None:
    assert fails(run("advance", vm.name, "1s")).endswith("(EINVAL)")


def test_an_invalid_duration_is_refused_with_the_allowed_forms(run: Run, vm: Vm) -> None:
    result = run("advance", vm.name, "1d")
    assert result.exit_code == 2
    assert "'1d' is no length of time: write 1.5s, 10ms, 500us or 20ns; without a unit it is ns" in result.stderr
