"""Who drives lines."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Listener
from irqchipd.vm.routing import MAX_GSIS

# Line sources that are nobody's Session. KVM: kvm_host.h KVM_USERSPACE_IRQ_SOURCE_ID and its like.
SHARED = 0
PIT = 62
RESAMPLERS = 63

MAX_CLIENT_NAME = 64  # printable characters

# What the sources of a VM's Sessions may hold, open ones and those that a restored VM keeps: how many there are, and
# bytes. A byte of this is at least one of a snapshot's, so that a snapshot of the largest VM fits into a message, and
# RestoreVm takes whatever SaveVm gives: tests/service/test_snapshot_messages.py.
MAX_SOURCES = 4096
SOURCES_BYTES = 480 << 10
_SOURCE_BYTES = 64  # of each, beside its name
_RESAMPLED_BYTES = 32  # of a GSI that is resampled, and of who is to be told
_REACH_STEP = 256  # GSIs


class LineSource:
    """Something that drives lines: source 0 is shared by all, every other is one Session's.

    Its fields are for others to read, except dropped_events, which its Session counts.
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
        # How many of its VM's were there before it: it has its place in a list by this.
        self.serial = 0
        # The GSIs that it drives high, one bit each.
        self.asserted = 0
        # The first GSI that it has no room for yet, and what it is charged of SOURCES_BYTES: see SourcesBytes.
        self.reach = MAX_GSIS
        self.bytes = 0
        # The GSIs that it resamples, and how many of its GsiResampled nobody was there to be told.
        self.resampled: dict[int, int] = {}
        self.dropped_events = 0
        self.closed = False
        # It was restored, and its Session is yet to come.
        self.detached = False

    @property
    def description_bytes(self) -> int:
        """About as many as a message has that describes it, without its regions; not fewer."""
        return 40 + len(self.client.encode()) + 2 * self.asserted.bit_count() + 2 * len(self.resampled)


def gsis_of(bits: int) -> list[int]:
    """The GSIs that a bitmap has, ascending."""
    return [gsi for gsi, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def bits_of(gsis: Iterable[int]) -> int:
    """The reverse; each of them is less than MAX_GSIS."""
    digits = bytearray(b"0" * MAX_GSIS)
    for gsi in gsis:
        digits[~gsi] = ord("1")
    return int(digits, 2)


def reach_for(highest: int) -> int:
    """The reach of a source that may drive a GSI, -1 none: it grows in steps, so that few lines are charged for."""
    return min((highest // _REACH_STEP + 1) * _REACH_STEP, MAX_GSIS)


def bytes_of(client: str, reach: int, resampled: int) -> int:
    """What a source is charged of SOURCES_BYTES."""
    return _SOURCE_BYTES + len(client.encode()) + reach // 8 + _RESAMPLED_BYTES * resampled


class SourcesBytes:
    """What the sources of a VM's Sessions hold. Everything here runs under the lock of the VM."""

    __slots__ = ("_total",)

    def __init__(self) -> None:
        self._total = 0

    def charge(self, source: LineSource, reach: int, resampled: int) -> None:
        """A source is new, or grows: ENOSPC, and nothing has changed, where the VM's hold too much."""
        total = self._total - source.bytes + (size := bytes_of(source.client, reach, resampled))
        if total > SOURCES_BYTES:
            raise VmError(
                errno.ENOSPC, f"the VM's Sessions hold {SOURCES_BYTES} bytes of names and GSIs, the most that they may"
            )
        self._total, source.bytes, source.reach = total, size, reach

    def release(self, source: LineSource) -> None:
        """A source is no more."""
        self._total -= source.bytes
        source.bytes = 0
