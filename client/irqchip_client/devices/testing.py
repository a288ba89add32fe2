"""QEMU's test device, which test kernels expect: ports that drive interrupt lines."""

from __future__ import annotations

from .device import Device

# QEMU: hw/misc/pc-testdev.c.
LINES, FIRST_LINE_PORT = 24, 0x2000


class LinePorts(Device):
    """A write to port 2000h + n drives GSI n: low for 0, else high."""

    def __init__(self) -> None:
        super().__init__("line ports")
        self._lines = [self.line(gsi) for gsi in range(LINES)]
        self.pio(
            FIRST_LINE_PORT, LINES + 3, self.read, self.write, width=4
        )  # a write of four bytes to the last port, too

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """Reads 0."""
        return 0

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """Drives a line."""
        if offset < LINES:
            self._lines[offset].set(value != 0)

    def reset(self) -> None:
        """Drives all lines low."""
        for line in self._lines:
            line.set(False)
