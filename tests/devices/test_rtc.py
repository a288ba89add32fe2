"""The MC146818: its time and calendar, stopping it, its interrupts, its memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_client.devices.rtc import Rtc
from tests.devices.bench import Bench

BASE, GSI = 0x70, 8
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(14)
CENTURY, PS2_CENTURY = 0x32, 0x37
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQ, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
UIP = 0x80
START = datetime(2026, 11, 23, 12, 59, 58, 250_000, tzinfo=UTC)  # a Monday
MS = 0.001


class Clock(Bench):
    """An RTC on a host whose time is START."""

    def __init__(self, start: datetime = START) -> None:
        self.started = start.timestamp() - 1000.0
        self.time = 1000.0
        super().__init__(Rtc(BASE, GSI, clock=lambda: self.started + self.time))

    def get(self, register: int) -> int:
        self.write(BASE, register)
        return self.read(BASE + 1)

    def put(self, register: int, value: int) -> None:
        self.write(BASE, register)
        self.write(BASE + 1, value)

    def date(self) -> tuple[int, ...]:
        """The date from century to second, and the weekday."""
        return tuple(self.get(r) for r in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY))

    def set_date(self, *values: int) -> None:
        """Set the date as drivers do, with SET."""
        self.put(B, self.get(B) | SET)
        for register, value in zip((CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY), values, strict=True):
            self.put(register, value)
        self.put(B, self.get(B) & ~SET)

    def alarm(self, hour: int, minute: int, second: int) -> None:
        for register, value in ((HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)):
            self.put(register, value)


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Time and calendar.


def test_it_shows_the_hosts_time_in_bcd_and_goes_on(clock: Clock) -> None:
    assert clock.date() == (0x20, 0x26, 0x11, 0x23, 0x12, 0x59, 0x58, 2)
    clock.advance(0.74)
    assert clock.get(SECONDS) == 0x58
    clock.advance(0.02)
    assert clock.get(SECONDS) == 0x59
    clock.advance(1)
    assert clock.date() == (0x20, 0x26, 0x11, 0x23, 0x13, 0x00, 0x00, 2)
    assert clock.due is None  # the clock needs no timer for that


def test_it_shows_the_hosts_time_in_binary(clock: Clock) -> None:
    clock.put(B, BINARY | H24)
    assert clock.date() == (20, 26, 11, 23, 12, 59, 58, 2)


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"),
    [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (13, 0x81, 0x81), (23, 0x91, 0x8B)],
)
def test_the_hours_of_a_12_hour_clock(hour: int, bcd: int, binary: int) -> None:
    clock = Clock(START.replace(hour=hour))
    clock.put(B, 0)
    assert clock.get(HOURS) == bcd
    clock.put(B, BINARY)
    assert clock.get(HOURS) == binary
    clock.set_date(20, 26, 11, 23, binary, 0, 0, 2)
    clock.put(B, BINARY | H24)
    assert clock.get(HOURS) == hour


def test_what_the_guest_sets_is_kept_as_a_difference_to_the_host(clock: Clock) -> None:
    clock.set_date(0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6)
    assert clock.date() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6)
    clock.advance(1)
    assert clock.date() == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7)
    clock.advance(timedelta(days=59).total_seconds())
    assert clock.date()[:4] == (0x20, 0x00, 0x02, 0x29)


def test_a_register_can_be_set_without_stopping(clock: Clock) -> None:
    clock.put(MINUTES, 0x30)
    assert clock.date() == (0x20, 0x26, 0x11, 0x23, 0x12, 0x30, 0x58, 2)


def test_the_weekday_is_counted_on_its_own(clock: Clock) -> None:
    clock.put(WEEKDAY, 7)
    assert clock.get(WEEKDAY) == 7
    clock.advance(86_400)
    assert clock.get(WEEKDAY) == 1


def test_set_stops_the_time_and_takes_the_update_interrupt_back(clock: Clock) -> None:
    clock.put(B, SET | UIE | H24)
    assert clock.get(B) == SET | H24
    clock.advance(10)
    assert clock.get(SECONDS) == 0x58
    assert clock.get(C) & UF == 0
    clock.put(B, H24)
    assert clock.get(SECONDS) == 0x58
    clock.advance(0.74)  # the divider has kept running
    assert clock.get(SECONDS) == 0x58
    clock.advance(0.02)
    assert clock.get(SECONDS) == 0x59


def test_the_first_update_is_half_a_second_after_the_dividers_reset(clock: Clock) -> None:
    clock.put(A, 0x76)
    clock.advance(10.1)
    assert clock.get(SECONDS) == 0x58
    assert clock.get(C) == 0  # not even the periodic flag
    clock.put(A, 0x26)
    clock.advance(0.499)
    assert clock.get(SECONDS) == 0x58
    clock.advance(0.002)
    assert clock.get(SECONDS) == 0x59


def test_uip_is_set_for_244_us_before_an_update(clock: Clock) -> None:
    clock.advance(0.75 - 245e-6)
    assert clock.get(A) == 0x26
    clock.advance(2e-6)
    assert clock.get(A) == 0x26 | UIP
    assert clock.get(SECONDS) == 0x58
    clock.advance(244e-6)
    assert clock.get(A) == 0x26
    assert clock.get(SECONDS) == 0x59
    clock.put(B, SET | H24)
    clock.advance(1 - 100e-6)
    assert clock.get(A) == 0x26


def test_uip_can_not_be_written(clock: Clock) -> None:
    clock.put(A, 0xAF)
    assert clock.get(A) == 0x2F


# Interrupts.


def test_flags_are_set_without_interrupts_and_cleared_by_reading(clock: Clock) -> None:
    clock.advance(1)
    assert [clock.get(C), clock.get(C)] == [PF | UF, 0]
    assert clock.edges == []


def test_update_ended_interrupts_every_second_until_c_is_read(clock: Clock) -> None:
    clock.get(C)
    clock.put(B, UIE | H24)
    clock.advance(0.751)
    assert clock.level(GSI)
    assert clock.due is None  # no timer runs while the line is high
    assert clock.get(C) == IRQ | UF | PF
    assert not clock.level(GSI)
    assert clock.advance(3.0) == 1
    clock.get(C)
    assert clock.advance(1.0) == 1


@pytest.mark.parametrize(
    ("rate", "period"),
    [(1, 3.90625), (2, 7.8125), (3, 0.1220703125), (4, 0.244140625), (6, 0.9765625), (13, 125), (14, 250), (15, 500)],
)
def test_periodic_interrupts_come_at_register_as_rate(clock: Clock, rate: int, period: float) -> None:
    clock.put(A, 0x20 | rate)
    clock.get(C)
    clock.put(B, PIE | H24)
    assert clock.due is not None
    clock.advance(clock.due - clock.time)
    for _ in range(5):
        began = clock.time
        assert clock.get(C) & (IRQ | PF) == IRQ | PF
        assert clock.due is not None
        clock.advance(clock.due - clock.time)
        assert clock.level(GSI)
        assert clock.time - began == pytest.approx(period * MS, rel=1e-9)


def test_without_a_rate_there_is_no_periodic_interrupt(clock: Clock) -> None:
    clock.put(A, 0x20)
    clock.get(C)
    clock.put(B, PIE | H24)
    assert clock.due is None
    clock.advance(10)
    assert clock.get(C) & PF == 0


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x13, 0x00, 0x05), 6.75),
        ((0x12, 0x59, 0x59), 0.75),
        ((0x12, 0x59, 0x58), 86_399.75),  # this second has passed
        ((0xFF, 0xFF, 0xFF), 0.75),
        ((0xC0, 0x59, 0x58), 3599.75),
        ((0xFF, 0xFF, 0x00), 1.75),
        ((0x00, 0xFF, 0xFF), 11 * 3600 + 1.75),
        ((0xFF, 0x10, 0xFF), 601.75),
    ],
)
def test_the_alarm_goes_off_when_the_time_matches(clock: Clock, alarm: tuple[int, int, int], after: float) -> None:
    clock.alarm(*alarm)
    clock.put(B, AIE | H24)
    assert clock.due is not None
    assert clock.due - clock.time == pytest.approx(after, abs=1e-4)
    clock.advance(after - 0.001)
    assert not clock.level(GSI)
    clock.advance(0.002)
    assert clock.level(GSI)
    assert clock.get(C) & (IRQ | AF) == IRQ | AF


def test_an_alarm_that_is_no_time_of_day_never_goes_off(clock: Clock) -> None:
    clock.alarm(0x25, 0x00, 0x00)
    clock.put(B, AIE | H24)
    assert clock.due is None
    clock.advance(100_000)
    assert clock.get(C) & AF == 0


def test_an_alarm_on_a_12_hour_clock(clock: Clock) -> None:
    clock.put(B, 0)
    clock.alarm(0x81, 0x00, 0x00)
    clock.put(B, AIE)
    clock.advance(1.8)
    assert clock.get(C) & AF


def test_enabling_an_interrupt_whose_flag_is_set_raises_it_and_disabling_lowers_it(clock: Clock) -> None:
    clock.advance(1)
    clock.put(B, UIE | H24)
    assert clock.level(GSI)
    clock.put(B, H24)
    assert not clock.level(GSI)
    assert clock.get(C) & IRQ == 0


def test_no_interrupt_enabled_needs_no_timer(clock: Clock) -> None:
    clock.put(B, UIE | AIE | PIE | H24)
    clock.get(C)
    clock.put(B, H24)
    assert clock.due is None
    assert clock.advance(1000) == 0


# The ports.


def test_memory_is_kept_and_the_nmi_bit_is_not_part_of_the_index(clock: Clock) -> None:
    for number in range(0x0E, 0x80):
        if number not in (CENTURY, PS2_CENTURY):
            clock.put(number | 0x80, number ^ 0x5A)
    kept = [number for number in range(0x0E, 0x80) if number not in (CENTURY, PS2_CENTURY)]
    assert all(clock.get(number) == number ^ 0x5A for number in kept)


def test_37h_is_the_century_too_as_on_a_pc(clock: Clock) -> None:
    assert clock.get(PS2_CENTURY) == clock.get(CENTURY) == 0x20
    clock.put(PS2_CENTURY, 0x19)
    assert clock.date()[:2] == (0x19, 0x26)
    clock.put(CENTURY, 0x21)
    assert clock.get(PS2_CENTURY) == 0x21
    clock.put(B, clock.get(B) | SET)  # while the clock is stopped, too
    clock.put(PS2_CENTURY, 0x20)
    assert clock.get(CENTURY) == 0x20


def test_the_initial_memory_can_be_given() -> None:
    bench = Bench(Rtc(cmos={0x10: 0x40}))
    bench.write(0x70, 0x10)
    assert bench.read(0x71) == 0x40


def test_the_index_port_can_not_be_read_and_d_says_valid(clock: Clock) -> None:
    assert clock.read(BASE) == 0xFF
    clock.put(D, 0)
    assert clock.get(D) == 0x80


def test_a_word_writes_index_and_data(clock: Clock) -> None:
    clock.write(BASE, 0x5520, 2)
    assert clock.get(0x20) == 0x55


# Properties.


@settings(max_examples=100)
@given(
    when=st.datetimes(datetime(1900, 1, 1), datetime(2999, 12, 31), timezones=st.just(UTC)),
    control=st.sampled_from((0, BINARY, H24, BINARY | H24)),
    later=st.integers(0, 40 * 86_400),
)
def test_any_date_is_set_read_and_counted_on(when: datetime, control: int, later: int) -> None:
    clock = Clock()
    clock.put(B, control)

    def encoded(time: datetime) -> tuple[int, ...]:
        hour = time.hour if control & H24 else (time.hour - 1) % 12 + 1
        values = [time.year // 100, time.year % 100, time.month, time.day, hour, time.minute, time.second]
        values.append(time.isoweekday() % 7 + 1)
        if not control & BINARY:
            values = [int(str(value), 16) for value in values]
        if not control & H24 and time.hour >= 12:
            values[4] |= 0x80
        return tuple(values)

    clock.set_date(*encoded(when))
    assert clock.date() == encoded(when)
    clock.advance(later)
    assert clock.date() == encoded(when + timedelta(seconds=later))


@settings(max_examples=150)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from((*range(14), CENTURY, 0x7F)), st.none() | st.integers(0, 255)),
            st.tuples(st.just(-1), st.integers(0, 3_000_000)),  # us
        ),
        max_size=40,
    ),
    control=st.integers(0, 255),
)
def test_the_line_is_high_exactly_while_an_enabled_flag_is_set(
    steps: list[tuple[int, int | None]], control: int
) -> None:
    clock = Clock()
    clock.put(B, control)
    for register, value in steps:
        if register < 0:
            assert value is not None
            assert clock.advance(value / 1e6) <= 1  # afterwards the line stays high
        elif value is None:
            clock.get(register)
        else:
            clock.put(register, value)
        level, enabled = clock.level(GSI), clock.get(B) & (PIE | AIE | UIE)
        if level:
            assert clock.due is None
        flags = clock.get(C)
        assert level == bool(flags & IRQ) == bool(flags & enabled)
