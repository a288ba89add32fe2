"""A bench for device models: a bus, a clock that moves only in `advance`, and descriptors that `look` polls."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable

from irqchip_client._errors import NotFound
from irqchip_client.devices.device import Device, OutputLine, Timer
from irqchip_client.devices.ram import Ram


class Bench:
    """Runs one device."""

    def __init__(self, device: Device, *, now: float = 1000.0, ram: Ram | None = None) -> None:
        self.device = device
        self.ram = ram
        self.time = now
        self.timers: set[Timer] = set()
        self.watched: dict[int, Callable[[], None]] = {}
        self.edges: list[tuple[int, bool]] = []  # GSI and level, in order
        device.run_by(self)
        device.started()

    # The host.

    def drive(self, line: OutputLine) -> None:
        self.edges.append((line.gsi, line.level))

    def arm(self, timer: Timer) -> None:
        self.timers.add(timer)

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        if ready is None:
            self.watched.pop(descriptor, None)
        else:
            self.watched[descriptor] = ready

    def now(self) -> float:
        return self.time

    def memory(self) -> Ram:
        if self.ram is None:
            raise NotFound(errno.ENOENT, "this bench has no memory")
        return self.ram

    # The surroundings.

    @property
    def due(self) -> float | None:
        """The time of the next timer; None if no timer runs."""
        return min((timer.due for timer in self.timers if timer.due is not None), default=None)

    def advance(self, seconds: float = 0.0) -> int:
        """Lets time pass, and returns how many timers expired."""
        end = self.time + seconds
        expired = 0
        while (due := self.due) is not None and due <= end:
            self.time = max(self.time, due)
            timer = next(timer for timer in self.timers if timer.due == due)
            timer.due = None
            timer.expired()
            expired += 1
        self.time = end
        return expired

    def look(self) -> None:
        """Report readable descriptors to their handlers, until no watched descriptor is readable."""
        while self.watched and (ready := select.select(list(self.watched), [], [], 0)[0]):
            for descriptor in ready:
                if descriptor in self.watched:
                    self.watched[descriptor]()

    # The guest.

    def read(self, port: int, size: int = 1) -> int:
        for region in self.device.regions:
            if region.start <= port < region.start + region.length:
                value = region.do_read(port, size)
                assert 0 <= value < 1 << 8 * size
                return value
        raise AssertionError(f"port {port:#x} is not the device's")

    def write(self, port: int, value: int, size: int = 1) -> None:
        for region in self.device.regions:
            if region.start <= port < region.start + region.length:
                region.do_write(port, value, size)
                return
        bells = [bell for bell in self.device.doorbells if (bell.start, bell.length) == (port, size)]
        for bell in bells:
            if bell.value == value:
                bell.rung()
        if not bells:
            raise AssertionError(f"port {port:#x} is not the device's")

    def read_data(self, port: int, count: int, size: int) -> bytes:
        """`count` bytes of a data register, by reads of `size` bytes."""
        return b"".join(self.read(port, size).to_bytes(size, "little") for _ in range(count // size))

    def write_data(self, port: int, data: bytes, size: int) -> None:
        for at in range(0, len(data), size):
            self.write(port, int.from_bytes(data[at : at + size], "little"), size)

    def level(self, gsi: int) -> bool:
        return any(line.level for line in self.device.lines if line.gsi == gsi)
