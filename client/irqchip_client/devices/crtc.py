"""A VGA's CRT controller in colour: the registers with which text drivers set the cursor and the scroll position.

    3d4h  RW  the index of a register
    3d5h  RW  the register

The text itself is at b8000h, in the guest's RAM. Nothing is displayed. IBM, VGA Technical Reference Manual, "CRT
Controller Registers".
"""

from __future__ import annotations

from typing import ClassVar

from .device import Device
from .saving import BYTE, Fields, Octets

PORT = 0x3D4
REGISTERS = 25
INDEX = 0x1F  # the bits of the index register that exist
OVERFLOW, VERTICAL_RETRACE_END = 0x07, 0x11
PROTECT = 0x80  # of vertical retrace end: registers 0 to 7 can't be written
LINE_COMPARE_8 = 0x10  # of overflow, which is never protected


class Crtc(Device):
    """The CRT controller of a VGA, without a picture."""

    STATE: ClassVar[Fields] = {"index": BYTE, "registers": Octets(REGISTERS)}

    def __init__(self, base: int = PORT) -> None:
        super().__init__("CRTC")
        self.pio(base, 2, self.read, self.write)
        self._power_on()

    def _power_on(self) -> None:
        self.index = 0
        self.registers = bytearray(REGISTERS)

    def reset(self) -> None:
        """Clears the registers: the cursor is in the upper left corner."""
        self._power_on()

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """The index, or the register that it selects; a register that does not exist reads 0."""
        if offset == 0:
            return self.index
        return self.registers[self.index] if self.index < REGISTERS else 0

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """Sets the index, or the register that it selects."""
        if offset == 0:
            self.index = value & INDEX
            return
        at = self.index
        if at >= REGISTERS:
            return
        if at <= OVERFLOW and self.registers[VERTICAL_RETRACE_END] & PROTECT:
            if at != OVERFLOW:
                return
            value = self.registers[at] & ~LINE_COMPARE_8 | value & LINE_COMPARE_8
        self.registers[at] = value
