"""What a client may make the daemon hold: every queue, size and count that a client controls has its bound here."""

from __future__ import annotations

import errno
import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from irqchip.port import POLL_NS
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.regions import ACCESS_NS

# The most bytes of an operation's result in its batch's answer, without data that can be large, and without the text of
# an error.
LEAST_RESULT = 24

# Bytes that a result may take beyond those that each operation has: AdvanceClock's, and a status of IrqLines.
_ADVANCE_BYTES: Final = 20
_STATUS_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """The daemon's limits; the command line has a flag for each."""

    vms: int = 16384
    vcpus: int = MAX_VCPUS  # a VM
    sessions: int = 4096  # Sessions and Watches, of all VMs together
    message_bytes: int = 1 << 20  # of what a client sends, and of the results of a batch
    batch_operations: int = 4096
    queued_events: int = 1024  # a Session, or a Watch
    irqfds: int = 1024  # and eventfds of doorbells, of all Sessions together; each has a descriptor or two
    poll_us: int = POLL_NS // 1000  # that the port polls before it blocks, at the most
    access_ms: int = ACCESS_NS // 1_000_000  # that the owner of a region may take to answer an access
    rings: int = 256  # Sessions with rings, of a port; each ring has three descriptors and 20 KiB
    viewers: int = 16  # of the page; and VMs that keep a history for viewers

    @property
    def operations(self) -> int:
        """The most operations per batch, by which the answer always fits into a message."""
        return min(self.batch_operations, self.message_bytes // LEAST_RESULT)

    def within_descriptors(self) -> Limits:
        """These, with eventfds and rings that leave more than half of the process's descriptors for clients."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each has a descriptor, and a second one if it is resampled.
        if most == resource.RLIM_INFINITY:
            return self
        return replace(self, irqfds=min(self.irqfds, most // 8), rings=min(self.rings, most // 16))


def allow_descriptors() -> None:
    """Let the process have as many descriptors as it may: each client has one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the hard limit is above the kernel's own: keep the soft limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Room:
    """The bytes left for large results and for the texts of errors. E2BIG where they are not enough."""

    __slots__ = ("_bytes", "_changes", "_limits")

    def __init__(self, limits: Limits, least_bytes: int) -> None:
        self._limits = limits
        self._bytes = limits.message_bytes - least_bytes
        self._changes = limits.batch_operations

    def take(self, size: int) -> None:
        """Use some bytes."""
        if size > self._bytes:
            raise VmError(
                errno.E2BIG, f"the results of a batch have at most {self._limits.message_bytes} bytes; split the batch"
            )
        self._bytes -= size

    def take_changes(self, changes: Sequence[int]) -> None:
        """Use the room for an irq_lines: its changes, and the bytes of their statuses."""
        self._changes -= len(changes)
        if self._changes < 0:
            raise VmError(
                errno.E2BIG,
                f"the irq_lines of a batch have at most {self._limits.batch_operations} changes; split the batch",
            )
        self.take(_STATUS_BYTES * len(changes))

    def take_advance(self, _: int) -> None:
        """Use the room for the result of an advance_clock."""
        self.take(_ADVANCE_BYTES)

    def text(self, error: VmError) -> str:
        """The text of an error, or an empty text without room for it."""
        size = len(error.message.encode())
        if size > self._bytes:
            return ""
        self._bytes -= size
        return error.message
