"""The debug exit of a test machine, as QEMU's isa-debug-exit: a write ends the run, with the guest's status."""

from __future__ import annotations

from collections.abc import Callable

from .device import Device

PORTS = 4  # QEMU: -device isa-debug-exit,iosize=4
WIDTH = 4  # bytes of the widest access


class DebugExit(Device):
    """QEMU's isa-debug-exit. A write to one of its four ports calls `ended` with (value << 1) | 1, which is never 0.

    ended   called with the exit status; a process keeps only the low 8 bits of its exit status
    base    the first port
    """

    def __init__(self, ended: Callable[[int], None], base: int = 0xF4) -> None:
        super().__init__("debug exit")
        self._ended = ended
        self.pio(base, PORTS, self.read, self.write, width=WIDTH)

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """QEMU: hw/misc/debugexit.c debug_exit_read."""
        return 0

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """QEMU: hw/misc/debugexit.c debug_exit_write."""
        self._ended(value << 1 | 1)
