"""What a device model is made of, without I/O: regions, lines, timers, inputs. Hosts connect it to a VM.

    class Doorbell(Device):
        def __init__(self, port: int, gsi: int) -> None:
            super().__init__("doorbell")
            self.rung = 0
            self.interrupt = self.line(gsi)
            self.pio(port, 1, self.read, self.write)

        def read(self, offset: int, size: int) -> int:
            self.interrupt.set(False)
            return self.rung

        def write(self, offset: int, value: int, size: int) -> None:
            self.rung = value
            self.interrupt.set(True)

A host calls a device from one thread at a time, so that a model needs no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from irqchip_client._model import Space

Read = Callable[[int, int], int]  # offset, size: the value
Write = Callable[[int, int, int], None]  # offset, value, size


class Host(Protocol):
    """Who runs a device."""

    def drive(self, line: OutputLine) -> None:
        """A line has another level."""

    def arm(self, timer: Timer) -> None:
        """A timer is due at another time, or no more."""

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        """Call `ready` whenever a descriptor can be read, or no more."""

    def now(self) -> float:
        """Seconds of a clock that only runs forward."""


class _NoHost:
    """Of a device that is not run yet."""

    def drive(self, line: OutputLine) -> None:
        pass

    def arm(self, timer: Timer) -> None:
        pass

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        pass

    def now(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class DeviceRegion:
    """A range of ports or addresses that is the device's.

    read, write  take offsets into it
    width        bytes of its registers: a wider access is as many of this width, the lowest first
    """

    space: Space
    start: int
    length: int
    read: Read
    write: Write
    width: int

    def do_read(self, address: int, size: int) -> int:
        """A vCPU's read of an address in it."""
        offset, width = address - self.start, self.width
        if size <= width:
            return self.read(offset, size)
        value = 0
        for byte in range(0, size, width):
            value |= self.read(offset + byte, width) << 8 * byte
        return value

    def do_write(self, address: int, value: int, size: int) -> None:
        """A vCPU's write to an address in it."""
        offset, width = address - self.start, self.width
        if size <= width:
            self.write(offset, value, size)
            return
        mask = (1 << 8 * width) - 1
        for byte in range(0, size, width):
            self.write(offset + byte, value >> 8 * byte & mask, width)


class OutputLine:
    """A GSI that the device drives.

    insists  an edge that is coalesced is made again a little later, as long as the line is high
    """

    __slots__ = ("_device", "gsi", "insists", "level")

    def __init__(self, device: Device, gsi: int, insists: bool) -> None:
        self._device = device
        self.gsi = gsi
        self.insists = insists
        self.level = False

    def set(self, level: bool) -> None:
        """Drives it high or low; nothing where it is so already."""
        if level != self.level:
            self.level = level
            self._device.host.drive(self)

    def pulse(self) -> None:
        """An edge."""
        self.set(True)
        self.set(False)


class Timer:
    """Calls the device back once, when it is due."""

    __slots__ = ("_device", "due", "expired")

    def __init__(self, device: Device, expired: Callable[[], None]) -> None:
        self._device = device
        self.expired = expired
        self.due: float | None = None  # on the host's clock

    def start(self, seconds: float) -> None:
        """It is due so many seconds from now, whatever it was."""
        self.start_at(self._device.host.now() + seconds)

    def start_at(self, due: float | None) -> None:
        """It is due at a time of the host's clock; with None, never."""
        self.due = due
        self._device.host.arm(self)

    def stop(self) -> None:
        """It is due no more."""
        self.start_at(None)


class Device:
    """A device model. A subclass says in its constructor what it has, and who it is: name, at most 64 characters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.host: Host = _NoHost()
        self.regions: list[DeviceRegion] = []
        self.lines: list[OutputLine] = []

    def pio(self, start: int, length: int, read: Read, write: Write, *, width: int = 1) -> None:
        """Has a range of ports."""
        self.regions.append(DeviceRegion(Space.PIO, start, length, read, write, width))

    def mmio(self, start: int, length: int, read: Read, write: Write, *, width: int = 8) -> None:
        """Has a range of physical addresses."""
        self.regions.append(DeviceRegion(Space.MMIO, start, length, read, write, width))

    def line(self, gsi: int, *, insists: bool = False) -> OutputLine:
        """Has a line. One that insists makes an edge that is coalesced again: of GSI 8 KVM forgets them."""
        line = OutputLine(self, gsi, insists)
        self.lines.append(line)
        return line

    def timer(self, expired: Callable[[], None]) -> Timer:
        """Has a timer."""
        return Timer(self, expired)

    def started(self) -> None:
        """A host runs it from now on: the place to watch descriptors and start timers."""
