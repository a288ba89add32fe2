"""Line sources, which drive lines."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Listener
from irqchipd.vm.routing import MAX_GSIS

# Line sources without a Session. KVM: kvm_host.h KVM_USERSPACE_IRQ_SOURCE_ID and its like.
SHARED: Final = 0
PIT: Final = 62
RESAMPLERS: Final = 63

MAX_CLIENT_NAME: Final = 64  # printable characters

# The most sources of a VM's Sessions, open ones and those that a restored VM keeps, and the most bytes that they hold.
# A byte counted here is at least a byte of a snapshot. So a snapshot of the largest VM fits into a message, and
# RestoreVm accepts whatever SaveVm returns: tests/service/test_snapshot_messages.py.
MAX_SOURCES: Final = 4096
SOURCES_BYTES: Final = 480 << 10
_SOURCE_BYTES: Final = 64  # per source, besides its name
_RESAMPLED_BYTES: Final = 32  # per GSI that a source resamples
_REACH_STEP: Final = 256  # lines


class LineSource:
    """Something that drives lines: source 0 is shared by all clients, every other belongs to one Session.

    The VM writes the fields, except dropped_events, which the Session counts.
    """

    __slots__ = (
        "asserted",
        "bytes",
        "client",
        "closed",
        "detached",
        "dropped_events",
        "listener",
        "number",
        "on_deleted",
        "reach",
        "resampled",
        "serial",
    )

    def __init__(
        self,
        number: int,
        client: str = "",
        on_deleted: Callable[[], None] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.number = number
        self.client = client
        self.on_deleted = on_deleted
        self.listener = listener
        # The number of sources that the VM had opened, including this one: the order in lists.
        self.serial = 0
        # The lines that the source drives high, one bit each. An architecture defines a line's number: a GSI, say.
        self.asserted = 0
        # The first line that the source is not charged for yet, and the source's charge: see SourcesBytes.
        self.reach = MAX_GSIS
        self.bytes = 0
        # The GSIs that the source resamples, and their acknowledgements while it had no Session.
        self.resampled: dict[int, int] = {}
        self.dropped_events = 0
        self.closed = False
        # Whether the source was restored, and waits for its Session.
        self.detached = False

    def description_bytes(self, number_bytes: int) -> int:
        """An upper bound of the bytes that describe the source in a message, without its regions."""
        return 40 + len(self.client.encode()) + number_bytes * self.asserted.bit_count() + 2 * len(self.resampled)


def numbers_of(bits: int) -> list[int]:
    """The numbers of the bits in a bitmap, ascending."""
    return [number for number, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def bits_of(numbers: Iterable[int], most: int = MAX_GSIS) -> int:
    """The bitmap of some numbers, each less than most."""
    digits = bytearray(b"0" * most)
    for number in numbers:
        digits[~number] = ord("1")
    return int(digits, 2)


def reach_for(highest: int, lines: int = MAX_GSIS) -> int:
    """The reach that includes a line, 0 for -1. A reach grows in steps, so that a source with few lines pays little."""
    return min((highest // _REACH_STEP + 1) * _REACH_STEP, lines)


def bytes_of(client: str, reach: int, resampled: int) -> int:
    """A source's charge of SOURCES_BYTES."""
    return _SOURCE_BYTES + len(client.encode()) + reach // 8 + _RESAMPLED_BYTES * resampled


class SourcesBytes:
    """The bytes that the sources of a VM's Sessions hold. Everything here runs under the lock of the VM."""

    __slots__ = ("_total",)

    def __init__(self) -> None:
        self._total = 0

    def charge(self, source: LineSource, reach: int, resampled: int) -> None:
        """Charge a source that is new or grows: ENOSPC, without a change, if the VM's sources would hold too much."""
        total = self._total - source.bytes + (size := bytes_of(source.client, reach, resampled))
        if total > SOURCES_BYTES:
            raise VmError(
                errno.ENOSPC, f"the VM's Sessions hold {SOURCES_BYTES} bytes of names and GSIs, the most that they may"
            )
        self._total, source.bytes, source.reach = total, size, reach

    def release(self, source: LineSource) -> None:
        """A source is closed."""
        self._total -= source.bytes
        source.bytes = 0
