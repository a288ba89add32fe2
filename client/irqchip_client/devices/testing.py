"""What test kernels expect of a machine, as QEMU has it: its number of CPUs, and ports that drive interrupt lines."""

from __future__ import annotations

import struct

from .device import Device

# QEMU: docs/specs/fw_cfg.rst, include/standard-headers/linux/qemu_fw_cfg.h.
SELECTOR, DATA = 0x510, 0x511
SIGNATURE, ID, RAM_SIZE, CPUS, MAX_CPUS = 0x00, 0x01, 0x03, 0x05, 0x0F

# QEMU: hw/misc/pc-testdev.c.
LINES, FIRST_LINE_PORT = 24, 0x2000


class FwCfg(Device):
    """fw_cfg: a 16-bit write to 510h selects an item, whose bytes are then read at 511h, and after them zeros."""

    def __init__(self, cpus: int, memory_size: int) -> None:
        super().__init__("fw_cfg")
        self.items = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", 1),  # this interface, and no DMA
            RAM_SIZE: struct.pack("<Q", memory_size),
            CPUS: struct.pack("<H", cpus),
            MAX_CPUS: struct.pack("<H", cpus),
        }
        self._rest = b""
        self.pio(SELECTOR, 2, self.read, self.write, width=2)

    def read(self, offset: int, size: int) -> int:
        """Data: one byte, whatever the size."""
        if offset + size <= DATA - SELECTOR:
            return 0
        byte, self._rest = self._rest[:1], self._rest[1:]
        return int.from_bytes(byte, "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """The selector. Items can't be written."""
        if offset == 0 and size == 2:
            self._rest = self.items.get(value, b"")


class LinePorts(Device):
    """A write to port 2000h + n drives GSI n: high where it is not 0."""

    def __init__(self) -> None:
        super().__init__("line ports")
        self._lines = [self.line(gsi) for gsi in range(LINES)]
        self.pio(FIRST_LINE_PORT, LINES + 3, self.read, self.write, width=4)  # four bytes of the last one too

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """Nothing is to be read."""
        return 0

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """A level."""
        if offset < LINES:
            self._lines[offset].set(value != 0)
