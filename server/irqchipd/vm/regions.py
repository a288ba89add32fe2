"""Regions: ranges of an I/O bus that line sources answer for, and doorbells.

KVM: virt/kvm/kvm_main.c kvm_io_bus_*, eventfd.c ioeventfd_*. Everything of Regions runs under the lock of the VM.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.bus import IoBus
from irqchipd.vm.clock import Alarm
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Doorbell, Listener, RegionAccess, RegionsLost
from irqchipd.vm.pending import Pending
from irqchipd.vm.sources import LineSource

MAX_DEVICES: Final = 1000  # per bus, and every doorbell is one; KVM: kvm_host.h NR_IOBUS_DEVS
ACCESS_NS: Final = 2_000_000_000  # nanoseconds of the host's time that an owner has for an access
# If accesses to a range time out twice within this many times ACCESS_NS, the range can't be claimed for as long again.
# So a range delays a vCPU for 2/32 of its time, however often it is claimed; a single timeout has no consequence.
BARRED_PERIODS: Final = 30
MAX_LOSSES: Final = 1000  # the most ranges whose timeouts are remembered
MAX_REGION_ACCESSES: Final = 1024  # the most that wait for a region's owner
_CROWDED: Final = MAX_REGION_ACCESSES // 2
REGION_BYTES: Final = 40  # the most that a region's description takes in a message
MATCHED_LENGTHS: Final = (1, 2, 4, 8)  # bytes of a doorbell with a datamatch; KVM: eventfd.c kvm_ioeventfd


class Space(IntEnum):
    """An address space."""

    PIO = 1
    MMIO = 2
    MEMORY = 3  # the guest's memory, which processes share; irqchipd sets s390's indicators in it


LIMITS: Final = {Space.PIO: 1 << 16, Space.MMIO: 1 << 64, Space.MEMORY: 1 << 64}

# An owner's answer to an access: the value read, or 0 for a write; None without one; an error where the VM was deleted.
Answer = int | VmError | None


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A description of a region."""

    space: Space
    start: int
    length: int
    doorbell: bool
    datamatch: int | None


class SharedBytes(Protocol):
    """Guest memory that a client shares: a part of a memfd."""

    offset: int  # in the memfd

    def set_bits(self, offset: int, mask: int) -> int | None:
        """Set bits of a byte, atomically; return the old byte, or None where the client took the memory away."""

    def send(self, over: int) -> None:
        """Send the memfd through a unix socket, without waiting: EINVAL."""


@dataclass(eq=False, slots=True)
class Region:
    """A range that a source answers for. Its listener is notified of accesses, or of writes to a doorbell.

    For a doorbell: datamatch is the only value that rings, if not None; removed is called when the doorbell is gone.
    """

    source: LineSource
    space: Space
    start: int
    length: int
    listener: Listener
    doorbell: bool = False
    datamatch: int | None = None
    removed: Callable[[], None] | None = None
    shared: SharedBytes | None = None
    waiting: int = 0  # accesses that wait for the owner

    def info(self) -> RegionInfo:
        """The region's description."""
        return RegionInfo(self.space, self.start, self.length, self.doorbell, self.datamatch)


@dataclass(frozen=True, slots=True)
class Reserved:
    """A page of memory that no region may overlap, and its owner."""

    start: int
    length: int
    whose: str

    def overlaps(self, region: Region) -> bool:
        """Whether a region overlaps the page."""
        if region.space is not Space.MMIO:
            return False
        return region.start < self.start + self.length and region.start + region.length > self.start


class Access(Pending):
    """A vCPU's access that waits for the region's owner.

    by is the Session, if any, that made the access; the deadline is 0 while that Session's earlier accesses wait.
    """

    def __init__(
        self, number: int, region: Region, vcpu: int, address: int, size: int, write: bool, by: LineSource | None
    ) -> None:
        self.number = number
        self.region = region
        self.vcpu = vcpu
        self.address = address
        self.size = size
        self.write = write
        self.by = by
        self.deadline = 0
        self.answer: Answer = None

    @property
    def crowded(self) -> bool:
        """Whether the region has too many waiting accesses for the vCPU to add another before one ends."""
        return self.region.waiting >= _CROWDED

    def result(self) -> tuple[int, bool]:
        """The value read, or 0 for a write, and whether the owner answered. VmError where the VM was deleted."""
        if isinstance(self.answer, VmError):
            raise self.answer
        if self.answer is None:
            return 0 if self.write else (1 << 8 * self.size) - 1, False
        return self.answer, True


class RegionDevice:
    """A range of the bus: one region, or doorbells that differ by their values."""

    __slots__ = ("regions",)

    def __init__(self, region: Region) -> None:
        self.regions = [region]

    def read(self, address: int, size: int) -> int:
        """Never called: Regions answers."""
        raise NotImplementedError

    def write(self, address: int, size: int, value: int) -> None:
        """Never called: Regions answers."""
        raise NotImplementedError


class _Owner:
    """A source that has regions."""

    __slots__ = ("alarm", "regions", "timed", "waiting")

    def __init__(self) -> None:
        self.regions: list[Region] = []
        # The waiting accesses, by number; and those that have a deadline, in its order.
        self.waiting: dict[int, Access] = {}
        self.timed: dict[int, Access] = {}
        # Rings when an access may be overdue. One alarm per access would wake a thread for each access.
        self.alarm: Alarm | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """A range whose owner did not answer in time: when that was, and until when the range can't be claimed."""

    space: Space
    start: int
    end: int
    at: int
    barred_until: int

    def overlaps(self, region: Region) -> bool:
        """Whether a region overlaps the range."""
        return self.space is region.space and self.start < region.start + region.length and region.start < self.end


class Regions:
    """The regions of a VM."""

    def __init__(self, agenda: Agenda, buses: Mapping[Space, IoBus], *, has_indicators: bool) -> None:
        """has_indicators: Sessions may answer for the guest's memory, in which bits are set."""
        self._agenda = agenda
        self._buses = buses
        self.has_indicators = has_indicators
        self.observer: Observer | None = None
        self._reserved: list[Reserved] = []
        self._last_number = 0
        self._owners: dict[LineSource, _Owner] = {}
        # Per bus, the doorbells that share the range of another.
        self._beside = dict.fromkeys(Space, 0)
        # Per Session, its waiting accesses, in order: those of a string instruction are forwarded together.
        self._strings: dict[LineSource, dict[int, Access]] = {}
        self._losses: list[_Loss] = []
        self.access_ns = ACCESS_NS

    def owned_by(self, source: LineSource) -> list[Region]:
        """A source's regions, by space and address."""
        owner = self._owners.get(source)
        return sorted(owner.regions, key=lambda region: (region.space, region.start)) if owner is not None else []

    @property
    def count(self) -> int:
        """The number of regions."""
        return sum(len(owner.regions) for owner in list(self._owners.values()))

    def count_of(self, source: LineSource) -> int:
        """The number of a source's regions."""
        owner = self._owners.get(source)
        return len(owner.regions) if owner is not None else 0

    # Registration.

    def check(
        self, space: int, start: int, length: int, doorbell: bool, datamatch: int | None, is_shared: bool
    ) -> None:
        """Refuse an invalid region: EINVAL."""
        if space not in self._buses:
            names = {Space.PIO: "ports", Space.MMIO: "devices in memory", Space.MEMORY: "the guest's memory"}
            spaces = ", ".join(f"{int(bus)} is {names[bus]}" for bus in self._buses)
            raise invalid(f"address space {space} is invalid; {spaces}")
        if doorbell and space == Space.MEMORY:
            raise invalid("the guest's memory has no doorbells: leave doorbell out")
        if space == Space.MEMORY and not is_shared and not self.has_indicators:
            raise invalid("no Session answers for this VM's memory: share it as a memfd")
        limit = LIMITS[Space(space)]
        if not (0 <= start < limit and 0 < length <= limit - start):
            raise invalid(f"a range of {length} bytes at {start:#x}; use 1 or more, within 0 to {limit - 1:#x}")
        if datamatch is not None:
            if not doorbell:
                raise invalid("datamatch is for doorbells: set doorbell, or leave datamatch out")
            if length not in MATCHED_LENGTHS or datamatch >> 8 * length:
                raise invalid(f"datamatch {datamatch:#x} does not fit into {length} bytes: use 1, 2, 4 or 8 bytes")

    def register(self, region: Region) -> None:
        """Claim a range: EEXIST where a part is claimed, EBUSY where its owners were too slow, ENOSPC."""
        for page in self._reserved:
            if page.overlaps(region):
                raise VmError(errno.EEXIST, f"the page at {page.start:#x} is {page.whose}")
        if self._losses and not region.doorbell:
            self._check_losses(region)
        bus = self._buses[region.space]
        if len(bus) + self._beside[region.space] >= MAX_DEVICES:
            raise VmError(errno.ENOSPC, f"there are {MAX_DEVICES} devices on the bus, the most that are allowed")
        beside = bus.device_at(region.start, region.length)
        if isinstance(beside, RegionDevice) and _differ(region, beside.regions):
            beside.regions.append(region)
            self._beside[region.space] += 1
        else:
            bus.register(region.start, region.length, RegionDevice(region))
        self._owners.setdefault(region.source, _Owner()).regions.append(region)

    def check_free(self, page: Reserved) -> None:
        """Before a page is reserved: EEXIST where a region overlaps it."""
        if any(page.overlaps(region) for owner in self._owners.values() for region in owner.regions):
            raise VmError(errno.EEXIST, f"part of the page at {page.start:#x}, {page.whose}, is a region")

    def reserve(self, page: Reserved) -> None:
        """Prevent claims of a page that is on no bus."""
        self._reserved.append(page)

    def shared_from(self, address: int) -> Region | None:
        """The first shared part of the guest's memory that ends above an address."""
        regions = (region for owner in self._owners.values() for region in owner.regions)
        shared = [each for each in regions if each.shared is not None and each.start + each.length > address]
        return min(shared, key=lambda region: region.start, default=None)

    def _check_losses(self, region: Region) -> None:
        now = self._agenda.deadlines.now()
        until = max((loss.barred_until for loss in self._losses if loss.overlaps(region)), default=0)
        if until > now:
            raise VmError(
                errno.EBUSY,
                f"the owner of {region.start:#x} did not answer in time, again: the range can't be claimed for"
                f" {(until - now) / 1e9:.1f} s",
            )

    def _remember_loss(self, region: Region) -> None:
        now, period = self._agenda.deadlines.now(), BARRED_PERIODS * self.access_ns
        recent = [loss for loss in self._losses if now - loss.at < period]
        losses = [loss for loss in recent if not loss.overlaps(region)]
        barred_until = now + period if len(losses) < len(recent) else 0
        losses.append(_Loss(region.space, region.start, region.start + region.length, now, barred_until))
        self._losses = losses[-MAX_LOSSES:]

    def unregister(self, source: LineSource, space: int, start: int, datamatch: int | None) -> None:
        """Remove a region or doorbell: ENOENT if the source has none there."""
        owner = self._owners.get(source)
        for region in owner.regions if owner is not None else ():
            if (region.space, region.start, region.datamatch) == (space, start, datamatch):
                self._remove(region)
                return
        what = "region" if datamatch is None else f"doorbell of value {datamatch:#x}"
        raise VmError(errno.ENOENT, f"the Session has no {what} at {start:#x}")

    def drop(self, source: LineSource) -> None:
        """Remove all regions of a source; accesses that wait for the source stay unanswered."""
        owner = self._owners.get(source)
        if owner is None:
            return
        for region in list(owner.regions):
            self._remove(region)
        del self._owners[source]
        if owner.alarm is not None:
            self._agenda.deadlines.set(owner.alarm, None)
            owner.alarm.forget()

    def end(self, error: VmError) -> None:
        """The VM is deleted: end all accesses with an error."""
        for source, owner in list(self._owners.items()):
            for region in owner.regions:
                self._finish_all(region, error)
            self.drop(source)

    def _remove(self, region: Region) -> None:
        bus = self._buses[region.space]
        device = bus.device_at(region.start, region.length)
        assert isinstance(device, RegionDevice)
        device.regions.remove(region)
        if device.regions:
            self._beside[region.space] -= 1
        else:
            bus.unregister(region.start)
        self._owners[region.source].regions.remove(region)
        self._finish_all(region, None)
        if region.removed is not None:
            self._agenda.notify((region.removed,))

    def _finish_all(self, region: Region, answer: Answer) -> None:
        if region.waiting:
            waiting = self._owners[region.source].waiting
            for access in [access for access in waiting.values() if access.region is region]:
                self._finish(access, answer)

    # Accesses.

    def read(self, device: RegionDevice, vcpu: int, address: int, size: int, by: LineSource | None) -> Access | None:
        """A vCPU's read, which waits for the region's owner; None for a doorbell, which can't be read."""
        region = device.regions[0]
        return None if region.doorbell else self._forward(region, vcpu, address, size, None, by)

    def write(
        self, device: RegionDevice, vcpu: int, address: int, size: int, value: int, by: LineSource | None
    ) -> Access | bool:
        """A vCPU's write, which waits for the region's owner; for doorbells, whether any rang."""
        for region in device.regions:
            if not region.doorbell:
                return self._forward(region, vcpu, address, size, value, by)
            if region.datamatch is None or (region.datamatch == value and region.length == size):
                self._trace(region, True, address, size, value, vcpu)
                self._agenda.notify((region.listener,), Doorbell(region.space, address, size, value))
                return True
        return False

    def _forward(
        self,
        region: Region,
        vcpu: int,
        address: int,
        size: int,
        value: int | None,
        by: LineSource | None,
        reads: bool = False,
    ) -> Access:
        source = region.source
        if region.waiting >= MAX_REGION_ACCESSES:
            raise VmError(errno.ENOSPC, f"{MAX_REGION_ACCESSES} accesses wait for the region's owner, the most allowed")
        if source is by:
            raise VmError(
                errno.EDEADLK, f"this Session itself answers for {address:#x}: access it from another Session"
            )
        self._last_number += 1
        access = Access(self._last_number, region, vcpu, address, size, value is not None and not reads, by)
        self._owners[source].waiting[access.number] = access
        region.waiting += 1
        if by is None:
            self._begin(access)
        else:
            string = self._strings.setdefault(by, {})
            string[access.number] = access
            if len(string) == 1:
                self._begin(access)
        if value is not None and not reads:
            self._trace(region, True, address, size, value, vcpu)
        self._agenda.notify(
            (region.listener,),
            RegionAccess(access.number, vcpu, region.space, address, size, value is not None, value or 0),
        )
        return access

    def set_bits(self, device: RegionDevice, address: int, mask: int) -> Access:
        """Ask the owner of the guest's memory to set bits in a byte; the answer is the old byte."""
        return self._forward(device.regions[0], 0, address, 1, mask, None, reads=True)

    def complete(self, source: LineSource, number: int, value: int | None) -> bool:
        """Take an owner's answer, None for unanswered. Returns whether the access still waited. EINVAL: too large."""
        owner = self._owners.get(source)
        access = owner.waiting.get(number) if owner is not None else None
        if access is None:
            return False
        if value is not None and not access.write and value >> 8 * access.size:
            raise invalid(f"value {value:#x} does not fit into the {access.size} bytes that are read")
        self._finish(access, 0 if access.write and value is not None else value)
        return True

    def _finish(self, access: Access, answer: Answer) -> None:
        region = access.region
        region.waiting -= 1
        owner = self._owners[region.source]
        del owner.waiting[access.number]
        timed = owner.timed.pop(access.number, None)
        if access.by is not None:
            string = self._strings[access.by]
            del string[access.number]
            if not string:
                del self._strings[access.by]
            elif timed is not None:
                self._begin(next(iter(string.values())))
        access.answer = answer
        if calls := access.end():
            self._agenda.notify(calls)
        is_read = not access.write and region.space is not Space.MEMORY
        if self.observer is not None and is_read and not isinstance(answer, VmError):
            self._trace(region, False, access.address, access.size, access.result()[0], access.vcpu)

    def _trace(self, region: Region, write: bool, address: int, size: int, value: int, vcpu: int) -> None:
        observer = self.observer
        if observer is not None:
            trace = observer.kvm_pio if region.space is Space.PIO else observer.kvm_mmio
            trace(write, address, size, value, vcpu)

    # Time.

    def _begin(self, access: Access) -> None:
        """Start an access's time.

        The time starts when the access is forwarded, however many others wait for the owner. If earlier accesses of the
        same Session wait, it starts when the one before is answered, as if the access were forwarded only then.
        """
        owner, source = self._owners[access.region.source], access.region.source
        access.deadline = self._agenda.deadlines.now() + self.access_ns
        owner.timed[access.number] = access
        if owner.alarm is None:
            self._look_later(source, owner, access.deadline)

    def _look_later(self, source: LineSource, owner: _Owner, deadline: int) -> None:
        owner.alarm = Alarm(0, lambda: self._time_out(source), self._agenda.share, timeout=True)
        self._agenda.deadlines.set(owner.alarm, deadline)

    def _time_out(self, source: LineSource) -> None:
        with suppress(VmError), self._agenda:
            self._check_overdue(source)

    def _check_overdue(self, source: LineSource) -> None:
        """Drop the regions of an owner that has not answered in time; or check again at the next deadline."""
        owner = self._owners.get(source)
        if owner is None:  # the source has just closed
            return
        owner.alarm = None
        if not owner.timed:
            return
        first = next(iter(owner.timed.values()))
        if first.deadline > self._agenda.deadlines.now():
            self._look_later(source, owner, first.deadline)
            return
        self._remember_loss(first.region)
        self.drop(source)
        self._agenda.notify((first.region.listener,), RegionsLost(first.region.space, first.address))


def _differ(region: Region, others: list[Region]) -> bool:
    """Whether a doorbell's value differs from all others of its range. KVM: eventfd.c ioeventfd_check_collision."""
    return region.datamatch is not None and all(
        other.datamatch is not None and other.datamatch != region.datamatch for other in others
    )
