"""Regions: ranges of an I/O bus that line sources answer for, and doorbells.

KVM: virt/kvm/kvm_main.c kvm_io_bus_*, eventfd.c ioeventfd_*. Everything of Regions runs under the lock of the VM.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from irqchipd.chips.lapic_registers import DEFAULT_BASE, WINDOW
from irqchipd.vm.clock import SCHEDULER, Alarm
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Doorbell, Listener, RegionAccess, RegionsLost
from irqchipd.vm.pending import Pending
from irqchipd.vm.sources import LineSource

if TYPE_CHECKING:
    from irqchipd.vm.board import Board
    from irqchipd.vm.bus import IoBus

MAX_DEVICES = 1000  # of a bus, and every doorbell is one; KVM: kvm_host.h NR_IOBUS_DEVS
ACCESS_NS = 2_000_000_000  # nanoseconds that an owner has for an access, of the machine's time
# How many times as long nobody may claim a range whose owners let accesses time out, if it is the second time within as
# long: so a range holds up a vCPU for 2 of 32 parts of its time, whoever claims it over and over. Once is forgiven.
PATIENCE = 30
MAX_LOSSES = 1000  # ranges that are remembered for this; others are forgiven
MAX_WAITING = 1024  # accesses that wait for a region's owner
CROWDED = MAX_WAITING // 2
REGION_BYTES = 40  # of a message that describes one, at the most
MATCHED_LENGTHS = (1, 2, 4, 8)  # bytes of a doorbell that has a value; KVM: eventfd.c kvm_ioeventfd


class Space(IntEnum):
    """An address space."""

    PIO = 1
    MMIO = 2


LIMITS = {Space.PIO: 1 << 16, Space.MMIO: 1 << 64}

# What an access's owner says: what is read, 0 of a write; None where it says nothing; an error where the VM is no more.
Answer = int | VmError | None


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """What there is to say of a region."""

    space: Space
    start: int
    length: int
    doorbell: bool
    datamatch: int | None


@dataclass(eq=False, slots=True)
class Region:
    """A range that a source answers for; its listener hears of the accesses, or writes to a doorbell.

    Of a doorbell: datamatch is the only value that rings, if not None; removed is called when it is gone.
    """

    source: LineSource
    space: Space
    start: int
    length: int
    listener: Listener
    doorbell: bool = False
    datamatch: int | None = None
    removed: Callable[[], None] | None = None
    waiting: int = 0  # how many of its accesses do

    def info(self) -> RegionInfo:
        """What there is to say of it."""
        return RegionInfo(self.space, self.start, self.length, self.doorbell, self.datamatch)


class Access(Pending):
    """A vCPU's access that waits for its owner.

    by is the Session that made it, if one did. Its deadline is 0 while that Session's earlier ones wait.
    """

    __slots__ = ("address", "answer", "by", "deadline", "number", "region", "size", "write")

    def __init__(
        self, number: int, region: Region, address: int, size: int, write: bool, by: LineSource | None
    ) -> None:
        super().__init__()
        self.number = number
        self.region = region
        self.address = address
        self.size = size
        self.write = write
        self.by = by
        self.deadline = 0
        self.answer: Answer = None

    @property
    def crowded(self) -> bool:
        """Whether so many wait beside it that its vCPU should wait before the next: others need the room."""
        return self.region.waiting >= CROWDED

    def result(self) -> tuple[int, bool]:
        """What was read, 0 of a write, and whether it was answered at all. Raises VmError where the VM is no more."""
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

    def claims(self, address: int) -> bool:  # noqa: ARG002 - see Device
        """See Device."""
        return True

    def read(self, address: int, size: int) -> int:
        """See Device: never called, as Regions answers."""
        raise NotImplementedError

    def write(self, address: int, size: int, value: int) -> None:
        """See read."""
        raise NotImplementedError


class _Owner:
    """A source that has regions."""

    __slots__ = ("alarm", "regions", "timed", "waiting")

    def __init__(self) -> None:
        self.regions: list[Region] = []
        # Its accesses that wait, and those of them whose time runs, in the order in which it will be over.
        self.waiting: dict[int, Access] = {}
        self.timed: dict[int, Access] = {}
        # A look at what it has not answered: not one an access, each of which would wake a thread.
        self.alarm: Alarm | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """A range whose owner did not answer an access in time, when, and until when nobody may claim it."""

    space: Space
    start: int
    end: int
    at: int
    barred_until: int

    def overlaps(self, region: Region) -> bool:
        """Whether it has a part of a region."""
        return self.space is region.space and self.start < region.start + region.length and region.start < self.end


class Regions:
    """A VM's."""

    __slots__ = ("_beside", "_board", "_last_number", "_losses", "_owners", "access_ns")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._last_number = 0
        self._owners: dict[LineSource, _Owner] = {}
        # Of each bus, how many doorbells there are beside others of their ranges.
        self._beside = dict.fromkeys(Space, 0)
        self._losses: list[_Loss] = []
        self.access_ns = ACCESS_NS

    def owned_by(self, source: LineSource) -> list[Region]:
        """A source's regions, by space and address."""
        owner = self._owners.get(source)
        return sorted(owner.regions, key=lambda region: (region.space, region.start)) if owner is not None else []

    def count_of(self, source: LineSource) -> int:
        """How many they are."""
        owner = self._owners.get(source)
        return len(owner.regions) if owner is not None else 0

    # Registration.

    def check(self, space: int, start: int, length: int, doorbell: bool, datamatch: int | None) -> None:
        """What is no region is EINVAL."""
        if space not in set(Space):
            raise invalid(f"address space {space} is invalid; 1 is ports, 2 memory")
        limit = LIMITS[Space(space)]
        if not (0 <= start < limit and 0 < length <= limit - start):
            raise invalid(
                f"a range of {length} bytes at {start:#x}; it must have 1 or more, within 0 to {limit - 1:#x}"
            )
        if datamatch is not None:
            if not doorbell:
                raise invalid("datamatch is a doorbell's: set doorbell, or leave datamatch out")
            if length not in MATCHED_LENGTHS or datamatch >> 8 * length:
                raise invalid(f"value {datamatch:#x} in {length} bytes; it has 1, 2, 4 or 8 bytes, and must fit them")

    def register(self, region: Region) -> None:
        """Claim a range: EEXIST where part of it is claimed, EBUSY where its owners were too slow, ENOSPC."""
        if self._board.has_irqchip and _hides_apic(region):
            raise VmError(errno.EEXIST, f"the page at {DEFAULT_BASE:#x} is the local APICs'")
        if self._losses and not region.doorbell:
            self._check_losses(region)
        bus = self._bus(region.space)
        if len(bus) + self._beside[region.space] >= MAX_DEVICES:
            raise VmError(errno.ENOSPC, f"there are {MAX_DEVICES} devices on the bus, the most that are allowed")
        beside = bus.device_at(region.start, region.length)
        if isinstance(beside, RegionDevice) and _differ(region, beside.regions):
            beside.regions.append(region)
            self._beside[region.space] += 1
        else:
            bus.register(region.start, region.length, RegionDevice(region))
        self._owners.setdefault(region.source, _Owner()).regions.append(region)

    def check_apic_page(self) -> None:
        """Before there are local APICs: EEXIST where a region has a part of their page."""
        if any(_hides_apic(region) for owner in self._owners.values() for region in owner.regions):
            raise VmError(errno.EEXIST, f"part of the page at {DEFAULT_BASE:#x}, the local APICs', is a region")

    def _check_losses(self, region: Region) -> None:
        now = time.monotonic_ns()
        until = max((loss.barred_until for loss in self._losses if loss.overlaps(region)), default=0)
        if until > now:
            raise VmError(
                errno.EBUSY,
                f"the owner of {region.start:#x} did not answer in time, again: nobody may claim it for"
                f" {(until - now) / 1e9:.1f} s",
            )

    def _remember_loss(self, region: Region) -> None:
        now, patience = time.monotonic_ns(), PATIENCE * self.access_ns
        recent = [loss for loss in self._losses if now - loss.at < patience]
        losses = [loss for loss in recent if not loss.overlaps(region)]
        barred_until = now + patience if len(losses) < len(recent) else 0
        losses.append(_Loss(region.space, region.start, region.start + region.length, now, barred_until))
        self._losses = losses[-MAX_LOSSES:]

    def unregister(self, source: LineSource, space: int, start: int, datamatch: int | None) -> None:
        """Give a range up: ENOENT where the source has none there."""
        owner = self._owners.get(source)
        for region in owner.regions if owner is not None else ():
            if (region.space, region.start, region.datamatch) == (space, start, datamatch):
                self._remove(region)
                return
        what = "region" if datamatch is None else f"doorbell of value {datamatch:#x}"
        raise VmError(errno.ENOENT, f"the Session has no {what} at {start:#x}")

    def drop(self, source: LineSource) -> None:
        """A source has no regions any more; nothing of them is answered."""
        owner = self._owners.get(source)
        if owner is None:
            return
        for region in list(owner.regions):
            self._remove(region)
        del self._owners[source]
        if owner.alarm is not None:
            SCHEDULER.set(owner.alarm, None)
            owner.alarm.forget()

    def end(self, error: VmError) -> None:
        """The VM is no more."""
        for source, owner in list(self._owners.items()):
            for region in owner.regions:
                self._finish_all(region, error)
            self.drop(source)

    def _remove(self, region: Region) -> None:
        bus = self._bus(region.space)
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
            self._board.call_later(region.removed)

    def _finish_all(self, region: Region, answer: Answer) -> None:
        if region.waiting:
            waiting = self._owners[region.source].waiting
            for access in [access for access in waiting.values() if access.region is region]:
                self._finish(access, answer)

    def _bus(self, space: Space) -> IoBus:
        return self._board.pio if space is Space.PIO else self._board.mmio

    # Accesses.

    def read(self, device: RegionDevice, vcpu: int, address: int, size: int, by: LineSource | None) -> Access | None:
        """A vCPU's read, which waits for the region's owner; None of a doorbell, which has nothing to read."""
        region = device.regions[0]
        return None if region.doorbell else self._forward(region, vcpu, address, size, None, by)

    def write(
        self, device: RegionDevice, vcpu: int, address: int, size: int, value: int, by: LineSource | None
    ) -> Access | bool:
        """A vCPU's write, which waits for the region's owner; of doorbells whether one rang."""
        for region in device.regions:
            if not region.doorbell:
                return self._forward(region, vcpu, address, size, value, by)
            if region.datamatch is None or (region.datamatch == value and region.length == size):
                self._trace(region, True, address, size, value)
                self._board.post(region.listener, Doorbell(region.space, address, size, value))
                return True
        return False

    def _forward(
        self, region: Region, vcpu: int, address: int, size: int, value: int | None, by: LineSource | None
    ) -> Access:
        source = region.source
        if region.waiting >= MAX_WAITING:
            raise VmError(errno.ENOSPC, f"{MAX_WAITING} accesses wait for the region's owner, the most that may")
        if source is by:
            raise VmError(errno.EDEADLK, f"{address:#x} is this Session's own to answer: access it from another")
        self._last_number += 1
        access = Access(self._last_number, region, address, size, value is not None, by)
        self._owners[source].waiting[access.number] = access
        region.waiting += 1
        if by is None:
            self._begin(access)
        else:
            by.accesses[access.number] = access
            if len(by.accesses) == 1:
                self._begin(access)
        if value is not None:
            self._trace(region, True, address, size, value)
        self._board.post(
            region.listener,
            RegionAccess(access.number, vcpu, region.space, address, size, value is not None, value or 0),
        )
        return access

    def complete(self, source: LineSource, number: int, value: int | None) -> bool:
        """An owner's answer, None for none; whether it was still awaited. EINVAL where the value does not fit."""
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
            string = access.by.accesses
            del string[access.number]
            if timed is not None and string:
                self._begin(next(iter(string.values())))
        access.answer = answer
        for call in access.end():
            self._board.call_later(call)
        if not access.write and not isinstance(answer, VmError):
            self._trace(region, False, access.address, access.size, access.result()[0])

    def _trace(self, region: Region, write: bool, address: int, size: int, value: int) -> None:
        observer = self._board.observer
        if observer is not None:
            trace = observer.kvm_pio if region.space is Space.PIO else observer.kvm_mmio
            trace(write, address, size, value)

    # Time.

    def _begin(self, access: Access) -> None:
        """An access's time begins.

        It does so when it is forwarded, whoever else waits for the owner; in a string of accesses, when the one before
        is answered, as if each had been forwarded only then.
        """
        owner, source = self._owners[access.region.source], access.region.source
        access.deadline = time.monotonic_ns() + self.access_ns
        owner.timed[access.number] = access
        if owner.alarm is None:
            self._look_later(source, owner, access.deadline)

    def _look_later(self, source: LineSource, owner: _Owner, deadline: int) -> None:
        owner.alarm = Alarm(0, lambda: self._board.look_at_overdue(source), self._board.clock, timeout=True)
        SCHEDULER.set(owner.alarm, deadline)

    def look_at_overdue(self, source: LineSource) -> None:
        """An owner that has not answered in time has no regions any more. Else look again when it may be so."""
        owner = self._owners.get(source)
        if owner is None:  # it has just left
            return
        owner.alarm = None
        if not owner.timed:
            return
        first = next(iter(owner.timed.values()))
        if first.deadline > time.monotonic_ns():
            self._look_later(source, owner, first.deadline)
            return
        self._remember_loss(first.region)
        self.drop(source)
        self._board.post(first.region.listener, RegionsLost(first.region.space, first.address))


def _hides_apic(region: Region) -> bool:
    """Whether a region has a part of the page where local APICs are, unless their guest moves them."""
    start, end = region.start, region.start + region.length
    return region.space is Space.MMIO and start < DEFAULT_BASE + WINDOW and end > DEFAULT_BASE


def _differ(region: Region, others: list[Region]) -> bool:
    """Whether a doorbell rings by another value than others of its range. KVM: eventfd.c ioeventfd_check_collision."""
    return region.datamatch is not None and all(
        other.datamatch is not None and other.datamatch != region.datamatch for other in others
    )
