"""The room for a batch's results: in bytes, and in changes of lines."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError

# Bytes that a result may take beyond those that each operation has: AdvanceClock's, and a status of IrqLines.
_ADVANCE_BYTES: Final = 20
_STATUS_BYTES: Final = 10


class Room:
    """What is left for results that can be large, and for the texts of errors. E2BIG where that is not enough."""

    __slots__ = ("_bytes", "_changes", "_limits")

    def __init__(self, limits: Limits, least_bytes: int) -> None:
        self._limits = limits
        self._bytes = limits.message_bytes - least_bytes
        self._changes = limits.batch_operations

    def take(self, size: int) -> None:
        """Use some bytes."""
        if size > self._bytes:
            raise VmError(errno.E2BIG, f"the results of this batch have {self._limits.message_bytes} bytes; split it")
        self._bytes -= size

    def take_changes(self, changes: Sequence[int]) -> None:
        """Use the room for an irq_lines: its changes, and the bytes of their statuses."""
        self._changes -= len(changes)
        if self._changes < 0:
            raise VmError(errno.E2BIG, f"a batch has {self._limits.batch_operations} changes at the most; split it")
        self.take(_STATUS_BYTES * len(changes))

    def take_advance(self, _: int) -> None:
        """Use the room for the result of an advance_clock."""
        self.take(_ADVANCE_BYTES)

    def text(self, error: VmError) -> str:
        """The text of an error, or nothing where it finds no room."""
        size = len(error.message.encode())
        if size > self._bytes:
            return ""
        self._bytes -= size
        return error.message
