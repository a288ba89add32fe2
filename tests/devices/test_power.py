"""ACPI's fixed hardware: ACPI Specification 6.5, section 4.8.3."""

from __future__ import annotations

import pytest

from irqchip_client.devices import PowerManagement
from irqchip_client.devices.power import HALF, RATE
from tests.devices.bench import Bench

STATUS, ENABLE, CONTROL, TIMER, RESET = 0x600, 0x602, 0x604, 0x608, 0xCF9
SCI = 9
SLEEP = 1 << 13


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def bench(events: list[str]) -> Bench:
    return Bench(PowerManagement(lambda: events.append("off"), lambda: events.append("reset")))


def test_sleep_type_5_turns_the_machine_off(bench: Bench, events: list[str]) -> None:
    bench.write(CONTROL, 5 << 10, 2)
    assert events == []
    bench.write(CONTROL, 5 << 10 | SLEEP, 2)
    assert events == ["off"]


def test_a_write_of_the_high_byte_alone_turns_the_machine_off(bench: Bench, events: list[str]) -> None:
    bench.write(CONTROL + 1, (5 << 10 | SLEEP) >> 8)
    assert events == ["off"]


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_other_sleep_types_do_nothing(bench: Bench, events: list[str], sleep_type: int) -> None:
    bench.write(CONTROL, sleep_type << 10 | SLEEP, 2)
    assert events == []


def test_the_machine_is_always_in_acpi_mode(bench: Bench) -> None:
    assert bench.read(CONTROL, 2) == 1
    bench.write(CONTROL, 0xFFFF & ~SLEEP, 2)
    assert bench.read(CONTROL, 2) == 7 << 10 | 1 << 1 | 1


def test_the_timer_counts_at_3_579545_mhz_in_24_bits(bench: Bench) -> None:
    first = bench.read(TIMER, 4)
    bench.advance(1.0)
    assert (bench.read(TIMER, 4) - first) % (1 << 24) in range(RATE - 2, RATE + 3)
    bench.advance(100.0)
    assert bench.read(TIMER, 4) < 1 << 24


def test_the_status_says_that_the_timers_highest_bit_has_changed(bench: Bench) -> None:
    bench.write(STATUS, 1, 2)
    bench.advance(HALF / RATE + 0.001)
    assert bench.read(STATUS, 2) == 1
    assert bench.edges == []  # it is not enabled
    bench.write(STATUS, 0, 2)
    assert bench.read(STATUS, 2) == 1
    bench.write(STATUS, 1, 2)
    assert bench.read(STATUS, 2) == 0


def test_an_enabled_status_is_an_interrupt_until_it_is_cleared(bench: Bench) -> None:
    bench.write(ENABLE, 1, 2)
    assert bench.read(ENABLE, 2) == 1
    assert bench.advance(HALF / RATE + 0.001) == 1
    assert bench.edges == [(SCI, True)]
    bench.write(STATUS, 1, 2)
    assert bench.edges == [(SCI, True), (SCI, False)]
    bench.advance(HALF / RATE)
    assert bench.edges[2:] == [(SCI, True)]
    bench.write(ENABLE, 0, 2)
    assert bench.edges[3:] == [(SCI, False)]
    assert bench.due is None


@pytest.mark.parametrize("bit", [5, 8, 9, 10])
def test_other_events_are_enabled_and_never_come(bench: Bench, bit: int) -> None:
    """ACPICA: evxfevnt.c acpi_enable_event reads the bit back. Linux enables global lock and RTC."""
    bench.write(ENABLE, 1 << bit, 2)
    assert bench.read(ENABLE, 2) == 1 << bit
    bench.advance(HALF / RATE + 0.001)
    assert bench.edges == []
    assert bench.due is None


def test_one_access_of_four_bytes_clears_the_status_and_enables_it(bench: Bench) -> None:
    bench.advance(HALF / RATE + 0.001)
    bench.write(STATUS, 1 << 16 | 1, 4)
    assert bench.read(STATUS, 4) == 1 << 16


def test_the_reset_register_resets_with_bit_2(bench: Bench, events: list[str]) -> None:
    bench.write(RESET, 0x02)
    assert (bench.read(RESET), events) == (0x02, [])
    bench.write(RESET, 0x06)
    assert events == ["reset"]


def test_a_restored_device_goes_on_from_its_ticks(bench: Bench) -> None:
    bench.write(ENABLE, 1, 2)
    bench.advance(1.0)
    saved = bench.device.save()
    other = Bench(PowerManagement(lambda: None, lambda: None), now=5.0)
    other.device.restore(saved)
    assert other.read(TIMER, 4) == bench.read(TIMER, 4)
    assert other.advance(HALF / RATE - 1.0 + 0.001) == 1
    assert other.edges == [(SCI, True)]
