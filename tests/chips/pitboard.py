"""A board for the 8254: a clock, the bus, GSI 0, and the names of the chip's commands."""

from __future__ import annotations

from irqchipd.chips.i8254 import Pit, Port, Speaker
from irqchipd.chips.i8254_state import FREQUENCY, Access

STATUS_OUT = 0x80


def control(channel: int, mode: int, access: int = Access.WORD, bcd: int = 0) -> int:
    return channel << 6 | access << 4 | mode << 1 | bcd


def latch(channel: int) -> int:
    return channel << 6


def read_back(*channels: int, count: bool = True, status: bool = True) -> int:
    return 0xC0 | (not count) << 5 | (not status) << 4 | sum(2 << channel for channel in channels)


def clocks(count: int) -> int:
    """The nanoseconds after which `count` whole clocks have passed."""
    return -(-count * 1_000_000_000 // FREQUENCY)


class Board:
    """The chip's surroundings. Ticks are acknowledged immediately, unless `acknowledges` is turned off."""

    def __init__(self, *, now: int = 0) -> None:
        self.time = now
        self.alarm: int | None = None
        self.acknowledges = True
        self.later = False
        self.ticks: list[int] = []  # their times
        self.pit = Pit.at_reset(self)
        self.speaker = Speaker(self.pit)

    # The wires.

    def now(self) -> int:
        return self.time

    def set_pit_alarm(self, deadline: int | None) -> None:
        self.alarm = deadline

    def deliver_tick(self) -> None:
        self.ticks.append(self.time)
        if self.acknowledges:
            self.pit.irq_acked()

    def deliver_later(self) -> None:
        self.later = True

    def settle(self) -> None:
        """Do the work of the kernel's thread: deliver waiting ticks."""
        while self.later:
            self.later = False
            self.pit.deliver()

    # Time.

    def advance(self, ns: int) -> None:
        end = self.time + ns
        while self.alarm is not None and self.alarm <= end:
            self.time, self.alarm = max(self.alarm, self.time), None
            self.pit.timer_expired()
            self.settle()
        self.time = end

    # The guest.

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.pit.write(port, 1, value)
            self.settle()

    def read(self, port: int) -> int:
        return self.pit.read(port, 1)

    def program(self, channel: int, mode: int, count: int, *, bcd: int = 0) -> None:
        self.out(Port.CONTROL, control(channel, mode, bcd=bcd))
        self.load(channel, count)

    def load(self, channel: int, count: int) -> None:
        """Write a count's two halves."""
        self.out(Port.CHANNEL_0 + channel, count & 0xFF, count >> 8 & 0xFF)

    def word(self, channel: int) -> int:
        """Read a channel twice, as a word."""
        return self.read(Port.CHANNEL_0 + channel) | self.read(Port.CHANNEL_0 + channel) << 8

    def count(self, channel: int) -> int:
        self.out(Port.CONTROL, latch(channel))
        return self.word(channel)

    def status(self, channel: int) -> int:
        self.out(Port.CONTROL, read_back(channel, count=False))
        return self.read(Port.CHANNEL_0 + channel)

    def output(self, channel: int) -> int:
        return int(bool(self.status(channel) & STATUS_OUT))

    def ack(self) -> None:
        self.pit.irq_acked()
        self.settle()

    def beep(self, value: int) -> None:
        self.speaker.write(Port.SPEAKER, 1, value)
