"""Devices that test kernels expect, as QEMU has them: the number of CPUs, and ports that drive interrupt lines."""

from __future__ import annotations

import struct
from typing import ClassVar

from .device import Device
from .saving import Fields, Number

# QEMU: docs/specs/fw_cfg.rst, include/standard-headers/linux/qemu_fw_cfg.h.
SELECTOR, DATA = 0x510, 0x511
SIGNATURE, ID, RAM_SIZE, CPUS, MAX_CPUS = 0x00, 0x01, 0x03, 0x05, 0x0F

# QEMU: hw/misc/pc-testdev.c.
LINES, FIRST_LINE_PORT = 24, 0x2000


class FwCfg(Device):
    """fw_cfg. A 16-bit write to 510h selects an item. Reads of 511h return its bytes, and then zeros.

    items  the content of each item, by number
    """

    STATE: ClassVar[Fields] = {"_selected": Number(0, 0xFFFF), "_position": Number(0, 0xFFFF_FFFF)}

    def __init__(self, cpus: int, memory_size: int) -> None:
        super().__init__("fw_cfg")
        self.items = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", 1),  # this interface, and no DMA
            RAM_SIZE: struct.pack("<Q", memory_size),
            CPUS: struct.pack("<H", cpus),
            MAX_CPUS: struct.pack("<H", cpus),
        }
        self._selected = 0
        self._position = 0
        self.pio(SELECTOR, 2, self.read, self.write, width=2)

    def read(self, offset: int, size: int) -> int:
        """Data: one byte, whatever the size."""
        if offset + size <= DATA - SELECTOR:
            return 0
        item = self.items.get(self._selected, b"")
        if self._position >= len(item):
            return 0
        self._position += 1
        return item[self._position - 1]

    def write(self, offset: int, value: int, size: int) -> None:
        """Selects an item. Items cannot be written."""
        if offset == 0 and size == 2:
            self._selected, self._position = value, 0

    def reset(self) -> None:
        """QEMU: hw/nvram/fw_cfg.c fw_cfg_reset."""
        self._selected = self._position = 0


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
