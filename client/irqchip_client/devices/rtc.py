"""The MC146818 real-time clock of a PC/AT, with 114 bytes of CMOS memory.

Motorola MC146818A datasheet: "Address map", "Time, calendar, and alarm locations", "Registers" A to D, "Update cycle".
The clock also counts the century, at 32h as in QEMU; on other PCs, firmware keeps it there. 37h, the century's place in
a PS/2, is the same register.

The clock does not tick. It counts time in periods of the 32,768 Hz crystal, on the host's clock, and computes a value
when the guest reads it. A timer runs only while an enabled interrupt is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import date
from enum import IntEnum
from typing import ClassVar

from .device import Device
from .saving import BYTE, SECONDS, Bits, Fields, Number, Octets, Plain

CRYSTAL = 32_768  # Hz; all times are its ticks
UIP_TICKS = 8  # UIP is set for 244 us before an update
FIRST_UPDATE = CRYSTAL // 2  # after the divider has left its reset
DAY = 86_400  # seconds


class Register(IntEnum):
    """Numbers for the index port."""

    SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
    WEEKDAY, DAY, MONTH, YEAR = range(6, 10)
    A, B, C, D = range(10, 14)
    CENTURY = 0x32
    PS2_CENTURY = 0x37  # the same register: QEMU: hw/rtc/mc146818rtc.c RTC_IBM_PS2_CENTURY_BYTE


TIME = (
    Register.SECONDS,
    Register.MINUTES,
    Register.HOURS,
    Register.WEEKDAY,  # 1 is Sunday
    Register.DAY,
    Register.MONTH,
    Register.YEAR,
    Register.CENTURY,
)
ALARMS = (Register.SECONDS_ALARM, Register.MINUTES_ALARM, Register.HOURS_ALARM)
ALARM_ANY = 0xC0  # these two bits of an alarm: any value matches
HOURS_PM = 0x80

A_UIP = 0x80
A_DIVIDER = 0x70
DIVIDER_LAST_RUNNING = 0x20  # higher values reset the divider, or are not for a PC
A_RATE = 0x0F

B_SET, B_PERIODIC, B_ALARM, B_UPDATE, B_SQUARE_WAVE = 0x80, 0x40, 0x20, 0x10, 0x08
B_BINARY, B_24H = 0x04, 0x02

C_IRQ, C_PERIODIC, C_ALARM, C_UPDATE = 0x80, 0x40, 0x20, 0x10

D_VALID = 0x80

MEMORY = 128  # bytes, the registers included

FARTHEST = 1 << 50  # the most seconds and ticks in a state
_WHOLE = Number(-FARTHEST, FARTHEST)


class Rtc(Device):
    """The clock at ports 70h and 71h. The public attributes are its registers, at first as a PC's firmware leaves them.

    base, gsi  the first port, and the line
    clock      the host's time, in seconds since 1970, UTC; the device keeps the guest's time as a difference to it
    cmos       the memory's first content, by number, from 0eh

    A restored Rtc continues as if its battery had kept it running since it was saved.
    """

    STATE: ClassVar[Fields] = {
        "index": Number(0, MEMORY - 1),
        "a": Bits(0xFF & ~A_UIP),
        "b": BYTE,
        "c": Bits(C_IRQ | C_PERIODIC | C_ALARM | C_UPDATE),
        "bytes": Octets(MEMORY),
        "offset": _WHOLE,
        "_seconds": _WHOLE,
        "_weekday_ahead": Number(0, 6),
        # The ticks from the divider's beginning to the time of saving, and the host's time then.
        "_divider_age": _WHOLE,
        "_saved_at": SECONDS,
    }

    def __init__(
        self,
        base: int = 0x70,
        gsi: int = 8,
        *,
        clock: Callable[[], float] = time.time,
        cmos: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__("MC146818")
        self._clock = clock
        self.pio(base, 2, self.read, self.write)
        self._line = self.line(gsi, retries=True)
        self._event = self.timer(self._expired)

        self.index = 0
        self.a = DIVIDER_LAST_RUNNING | 0x06  # 1024 Hz
        self.b = B_24H
        self.c = 0
        # The alarms, the memory, and the time's registers while it stands still.
        self.bytes = bytearray(MEMORY)
        for number, value in (cmos or {}).items():
            self.bytes[number] = value & 0xFF
        # The divider's beginning, as if it had never been reset; the seconds since 1970 at that time; and the time at
        # which the flags were last set.
        self._divider_began = 0
        self._seconds = 0
        self._seen = 0
        # The days that the guest's weekday is ahead of the calendar's: the chip counts the weekday on its own.
        self._weekday_ahead = 0
        # The guest's time less the host's, seconds.
        self.offset = 0
        self._follow_host()
        # Set by a restore: the host's time at a tick, from which the clock goes on.
        self._goes_on_from: tuple[float, int] | None = None

    def started(self) -> None:
        if self._goes_on_from is None:
            self._follow_host()
        else:
            self._go_on(*self._goes_on_from)

    def reset(self) -> None:
        """Disables the interrupts. The time, the alarm and the memory do not change."""
        self._catch_up()
        self.b &= ~(B_PERIODIC | B_ALARM | B_UPDATE | B_SQUARE_WAVE)
        self.c = 0
        self._settle()

    def save(self) -> dict[str, Plain]:
        self._catch_up()
        self._settle()
        return super().save()

    def restored(self) -> None:
        assert self._goes_on_from is not None  # by _saved_at
        self._go_on(*self._goes_on_from)

    # Of STATE.

    @property
    def _divider_age(self) -> int:
        return self._now() - self._divider_began

    @_divider_age.setter
    def _divider_age(self, ticks: int) -> None:
        self._divider_began = self._now() - ticks

    @property
    def _saved_at(self) -> float:
        return self._clock()

    @_saved_at.setter
    def _saved_at(self, seconds: float) -> None:
        self._seen = self._now()
        self._goes_on_from = seconds, self._seen

    def _go_on(self, saved_at: float, tick: int) -> None:
        """Goes on from a state that was saved at a host's time, and at a tick of that host's clock."""
        ahead = self._now() - int(max(self._clock() - saved_at, 0) * CRYSTAL) - tick
        self._divider_began += ahead
        self._seen += ahead
        self._goes_on_from = saved_at, tick + ahead
        self._catch_up()
        self._settle()

    def _follow_host(self) -> None:
        self._seen = self._now()
        seconds, part = divmod(self._clock() + self.offset, 1)
        self._seconds = int(seconds)
        self._divider_began = self._seen - int(part * CRYSTAL)

    # Ports.

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - both ports are bytes
        """A guest's IN. The index port cannot be read."""
        if offset == 0:
            return 0xFF
        match self._register:
            case Register.A:
                return self.a | (A_UIP if self._update_is_near() else 0)
            case Register.B:
                return self.b
            case Register.C:
                self._catch_up()
                value, self.c = self.c, 0
                self._settle()
                return value
            case Register.D:
                return D_VALID
            case index if index in TIME and self._runs:
                return self._encoded(self._seconds_at(self._now()))[TIME.index(Register(index))]
            case index:
                return self.bytes[index]

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - both ports are bytes
        """A guest's OUT. Bit 7 of the index port would mask NMIs, and is ignored."""
        if offset == 0:
            self.index = value & 0x7F
            return
        self._catch_up()
        match self._register:
            case Register.A:
                self._write_control(value & ~A_UIP, self.b)
            case Register.B:
                self._write_control(self.a, value & ~B_UPDATE if value & B_SET else value)
            case Register.C | Register.D:
                return
            case index if index in TIME and self._runs:
                self._store(self._encoded(self._seconds_at(self._seen)))
                self.bytes[index] = value
                self._set_time()
            case index:
                self.bytes[index] = value
        self._settle()

    @property
    def _register(self) -> int:
        return Register.CENTURY if self.index == Register.PS2_CENTURY else self.index

    # Registers A and B.

    @property
    def _divider_runs(self) -> bool:
        return self.a & A_DIVIDER <= DIVIDER_LAST_RUNNING

    @property
    def _runs(self) -> bool:
        """Whether the time is updated; if not, its registers are memory."""
        return self._divider_runs and not self.b & B_SET

    @property
    def _period(self) -> int:
        """Ticks between periodic interrupts; 0: no interrupts. Datasheet: "Periodic interrupt selection"."""
        rate = self.a & A_RATE
        return 0 if rate == 0 else 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _update_is_near(self) -> bool:
        return self._runs and (self._now() - self._divider_began) % CRYSTAL >= CRYSTAL - UIP_TICKS

    def _write_control(self, a: int, b: int) -> None:
        """Stops the time at SET or the divider's reset, or lets it go on from the registers."""
        divided, ran = self._divider_runs, self._runs
        if ran:
            before = self._encoded(self._seconds_at(self._seen))
        self.a, self.b = a, b
        if ran and not self._runs:
            self._store(before)
        if self._divider_runs and not divided:
            self._divider_began = self._seen - FIRST_UPDATE
        if self._runs and not ran:
            self._set_time()

    # Register C.

    def _catch_up(self) -> None:
        """Sets the flags for the events since the last call."""
        now, seen = self._now(), self._seen
        self._seen = now
        if not self._divider_runs:
            return
        if self._period and (now - self._divider_began) // self._period > (seen - self._divider_began) // self._period:
            self.c |= C_PERIODIC
        if self._runs and (after := self._seconds_at(now)) > (before := self._seconds_at(seen)):
            self.c |= C_UPDATE
            alarm = self._next_alarm(before)
            if alarm is not None and alarm <= after:
                self.c |= C_ALARM

    def _settle(self) -> None:
        """After any change: drives the line, which stays high until C is read, and sets the timer."""
        self.c &= ~C_IRQ
        if self.c & self.b & (B_PERIODIC | B_ALARM | B_UPDATE):
            self.c |= C_IRQ
        self._line.set(bool(self.c & C_IRQ))
        due = None if self.c & C_IRQ else self._next_interrupt()
        seconds = None if due is None else due / CRYSTAL  # exact: a power of two
        if seconds != self._event.due:
            self._event.start_at(seconds)

    def _next_interrupt(self) -> int | None:
        """The tick of the next enabled interrupt, if nothing else happens."""
        due = []
        if self._divider_runs and self.b & B_PERIODIC and self._period:
            due.append(self._seen + self._period - (self._seen - self._divider_began) % self._period)
        if self._runs:
            seconds = self._seconds_at(self._seen)
            if self.b & B_UPDATE:
                due.append(self._divider_began + (seconds + 1 - self._seconds) * CRYSTAL)
            if self.b & B_ALARM and (alarm := self._next_alarm(seconds)) is not None:
                due.append(self._divider_began + (alarm - self._seconds) * CRYSTAL)
        return min(due, default=None)

    def _expired(self) -> None:
        self._catch_up()
        self._settle()

    # The alarm.

    def _next_alarm(self, after: int) -> int | None:
        """The first second after another at which the alarm goes off; None if its bytes are no time of day."""
        second, minute, hour = (self.bytes[register] for register in ALARMS)
        seconds = [value for value in range(60) if _matches(second, self._to_byte(value))]
        minutes = [value for value in range(60) if _matches(minute, self._to_byte(value))]
        hours = [value for value in range(24) if _matches(hour, self._to_hours(value))]
        if not (seconds and minutes and hours):
            return None
        day, now = after // DAY * DAY, after % DAY
        for h in hours:
            if h * 3600 + 3599 > now:
                for m in minutes:
                    if h * 3600 + m * 60 + 59 > now:
                        for s in seconds:
                            if h * 3600 + m * 60 + s > now:
                                return day + h * 3600 + m * 60 + s
        return day + DAY + hours[0] * 3600 + minutes[0] * 60 + seconds[0]

    # The time.

    def _now(self) -> int:
        """The host's clock, ticks."""
        return int(self.host.now() * CRYSTAL)

    def _seconds_at(self, tick: int) -> int:
        return self._seconds + (tick - self._divider_began) // CRYSTAL

    def _encoded(self, seconds: int) -> bytes:
        """The registers of TIME for some seconds since 1970."""
        days, second = divmod(seconds, DAY)
        year, month, day = _calendar(days)
        numbers = (
            (days + 4 + self._weekday_ahead) % 7 + 1,  # the first day of 1970 was a Thursday
            day,
            month,
            year % 100,
            year // 100 % 100,
        )
        time_of_day = self._to_byte(second % 60), self._to_byte(second // 60 % 60), self._to_hours(second // 3600)
        return bytes((*time_of_day, *map(self._to_byte, numbers)))

    def _store(self, encoded: bytes) -> None:
        for register, byte in zip(TIME, encoded, strict=True):
            self.bytes[register] = byte

    def _set_time(self) -> None:
        """Sets the time from the registers of TIME. An invalid day counts on from the first of its month."""
        byte = self.bytes
        second, minute, weekday, day, month, year, century = (
            self._to_number(byte[register]) for register in TIME if register != Register.HOURS
        )
        hour = self._to_number(byte[Register.HOURS] & ~(0 if self.b & B_24H else HOURS_PM))
        if not self.b & B_24H:
            hour = hour % 12 + (12 if byte[Register.HOURS] & HOURS_PM else 0)
        days = _days(century * 100 + year, month, day)
        seconds = days * DAY + hour * 3600 + minute * 60 + second
        self._weekday_ahead = (weekday - 1 - (seconds // DAY + 4)) % 7
        self._seconds += seconds - self._seconds_at(self._seen)
        self.offset = seconds - int(self._clock() // 1)

    def _to_byte(self, number: int) -> int:
        return number if self.b & B_BINARY else number // 10 << 4 | number % 10

    def _to_number(self, byte: int) -> int:
        return byte if self.b & B_BINARY else (byte >> 4) * 10 + (byte & 0x0F)

    def _to_hours(self, hour: int) -> int:
        if self.b & B_24H:
            return self._to_byte(hour)
        return self._to_byte((hour - 1) % 12 + 1) | (HOURS_PM if hour >= 12 else 0)


def _matches(alarm: int, byte: int) -> bool:
    return alarm & ALARM_ANY == ALARM_ANY or alarm == byte


# The calendar repeats every 400 years; `datetime` covers those from 2000 on.
_CYCLE = 146_097  # days
_BASE = date(2000, 1, 1).toordinal()
_SINCE_1970 = _BASE - date(1970, 1, 1).toordinal()


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970 of any day of any month of any year."""
    year, month = year + (month - 1) // 12, (month - 1) % 12
    cycles, year = divmod(year - 2000, 400)
    return date(2000 + year, month + 1, 1).toordinal() - _BASE + cycles * _CYCLE + day - 1 + _SINCE_1970


def _calendar(days: int) -> tuple[int, int, int]:
    """Year, month and day of some days since 1970."""
    cycles, day = divmod(days - _SINCE_1970, _CYCLE)
    found = date.fromordinal(_BASE + day)
    return found.year + 400 * cycles, found.month, found.day
