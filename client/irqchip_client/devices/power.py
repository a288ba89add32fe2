"""ACPI's fixed hardware of a PC: power-off, the power management timer, and the reset register.

ACPI Specification 6.5, section 4.8.3, "Fixed Hardware". The registers, at 600h as on QEMU's PC:

    0, 1    PM1 status: bit 0, the timer's most significant bit has changed; writing a 1 clears it
    2, 3    PM1 enable: bit 0, the interrupt for that change, level-triggered and active high; bits 5 and 8 to 10
            (global lock, buttons and RTC) can be set, but their events never occur
    4, 5    PM1 control: bit 0 reads 1, as the machine is always in ACPI mode; bits 12:10 are the sleep type, which a
            write with bit 13 enters
    8 to 11 the timer, 24 bits, which counts at 3.579545 MHz

The reset register is that of PCI chipsets, at CF9h, although this machine has no PCI: bit 2 resets the processors.
There is no power button, no general purpose event and no other sleep state than power-off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from .device import Device, Host
from .saving import Bits, Fields, Number

BASE: Final = 0x600
SCI: Final = 9  # the interrupt, an ISA interrupt as on all PCs
RESET_PORT: Final = 0xCF9
# Offsets: 4.8.3.1 to 4.8.3.3. Each register has 16 bits, and the timer 32.
ENABLE, CONTROL, TIMER = 2, 4, 8
LENGTH: Final = 12
# Status and enable.
TIMER_CARRY: Final = 1 << 0
GLOBAL_LOCK, POWER_BUTTON, SLEEP_BUTTON, RTC = 1 << 5, 1 << 8, 1 << 9, 1 << 10
ENABLE_BITS: Final = TIMER_CARRY | GLOBAL_LOCK | POWER_BUTTON | SLEEP_BUTTON | RTC
# 4.8.3.2.1, PM1 control.
SCI_EN, SLEEP_ENABLE = 1 << 0, 1 << 13
BUS_MASTER_RELOAD = 1 << 1
SLEEP_TYPE_SHIFT, SLEEP_TYPE_MASK = 10, 7
CONTROL_BITS = SLEEP_TYPE_MASK << SLEEP_TYPE_SHIFT | BUS_MASTER_RELOAD  # bits that keep the value written
POWER_OFF: Final = 5  # the sleep type of S5, which the DSDT's _S5 names
RATE: Final = 3_579_545  # Hz; 4.8.3.3
TIMER_BITS: Final = 24
HALF: Final = 1 << TIMER_BITS - 1  # ticks between two changes of the most significant bit
# The reset register. Intel ICH9 datasheet, 13.7.5.
RESET_CPU, RESET_HARD, RESET_FULL = 1 << 2, 1 << 1, 1 << 3

FARTHEST = 1 << 60  # the most ticks in a saved state


class PowerManagement(Device):
    """Power-off, reset and timer. The public attributes are its registers.

    power_off, reset  called when the guest turns the machine off, or resets it
    """

    STATE: ClassVar[Fields] = {
        "enable": Bits(ENABLE_BITS),
        "control": Bits(CONTROL_BITS),
        "reset_control": Bits(RESET_HARD | RESET_FULL),
        "ticks": Number(0, FARTHEST),
        "carries": Number(0, FARTHEST // HALF),
    }

    def __init__(self, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        super().__init__("power management")
        self._power_off = power_off
        self._reset_machine = reset
        self._began = 0.0  # the host's time when the timer was 0
        self.enable = 0
        self.control = 0
        self.reset_control = 0
        self.carries = 0  # changes of the timer's most significant bit when the guest last cleared the status
        self._line = self.line(SCI)
        self._carry = self.timer(self._update)
        self.pio(BASE, LENGTH, self.read, self.write, width=4)
        self.pio(RESET_PORT, 1, self.read_reset, self.write_reset)

    @property
    def ticks(self) -> int:
        """The timer, with all its bits."""
        return int((self.host.now() - self._began) * RATE)

    @ticks.setter
    def ticks(self, ticks: int) -> None:
        self._began = self.host.now() - ticks / RATE

    @property
    def status(self) -> int:
        """PM1 status."""
        return TIMER_CARRY if self.ticks // HALF != self.carries else 0

    def run_by(self, host: Host) -> None:
        """Connects the device to a host: the timer goes on by the host's clock."""
        ticks = self.ticks
        super().run_by(host)
        self.ticks = ticks

    def reset(self) -> None:
        """Resets all but the timer, which goes on."""
        self.enable = self.control = self.reset_control = 0
        self.carries = self.ticks // HALF
        self._update()

    def restored(self) -> None:
        """Waits for the next carry."""
        self._update()

    def read(self, offset: int, size: int) -> int:
        """Reads any part of the registers, which follow one another."""
        registers = (
            self.status
            | self.enable << 8 * ENABLE
            | (self.control | SCI_EN) << 8 * CONTROL
            | (self.ticks & (1 << TIMER_BITS) - 1) << 8 * TIMER
        )
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> None:
        """Each byte goes to its register; the timer is read only."""
        value <<= 8 * offset
        written = (1 << 8 * size) - 1 << 8 * offset
        if value & TIMER_CARRY:
            self.carries = self.ticks // HALF
        enabled = written >> 8 * ENABLE & ENABLE_BITS
        self.enable = self.enable & ~enabled | value >> 8 * ENABLE & enabled
        self._update()
        value, written = value >> 8 * CONTROL, written >> 8 * CONTROL & CONTROL_BITS
        self.control = self.control & ~written | value & written
        if value & SLEEP_ENABLE and self.control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == POWER_OFF:
            self._power_off()

    def read_reset(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """The last value written. The bit that resets always reads 0."""
        return self.reset_control

    def write_reset(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """Resets the machine."""
        self.reset_control = value & (RESET_HARD | RESET_FULL)
        if value & RESET_CPU:
            self._reset_machine()

    def _update(self) -> None:
        """The line is high while an enabled status is set. Otherwise a timer waits for the next carry."""
        raised = bool(self.status & self.enable)
        self._line.set(raised)
        if self.enable & TIMER_CARRY and not raised:
            self._carry.start_at(self._began + ((self.carries + 1) * HALF + 1) / RATE)
        else:
            self._carry.stop()
