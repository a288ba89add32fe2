"""A virtual machine's interrupt controller: the only place where its state changes. Architectures derive from it.

Every public method may be called from any thread. Each is one turn of the agenda: it takes the VM's lock, checks and
changes; the lock is released, and listeners are notified.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from irqchipd.observe.observer import Observer
from irqchipd.observe.recorder import combine
from irqchipd.vm import saving
from irqchipd.vm.accesses import Accesses
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.board import Board, Probes, RawProbes
from irqchipd.vm.counting import Counting, InterruptCounts, InterruptInfo, copy_of
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.errors import VmError, deleted
from irqchipd.vm.events import VmReset
from irqchipd.vm.regions import REGION_BYTES, RegionInfo
from irqchipd.vm.routing import Route
from irqchipd.vm.snapshot import CLOCK_REAL, CLOCK_VIRTUAL, VmState
from irqchipd.vm.sources import LineSource, bits_of, numbers_of, reach_for
from irqchipd.vm.vcpu_state import MpState

MOST_DESCRIBED: Final = 64  # devices in a Description, which has to fit into a message

MAX_VCPUS: Final = 288  # a snapshot of more would not fit into a message: tests/service/test_snapshot_messages.py


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A description of a line source: a Session's, or one that a Session is to resume."""

    client: str
    number: int
    asserted: list[int]
    dropped_events: int
    detached: bool
    resampled: list[int] = field(default_factory=list)
    regions: list[RegionInfo] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GicInfo:
    """A description of an arm64 VM's GIC, and of its host's."""

    version: int  # 0 before there is one
    initialised: bool
    interrupts: int  # 0 before the number is set
    host_version: int
    list_registers: int
    priority_bits: int


@dataclass(frozen=True, slots=True)
class Description:
    """A description of a VM at one moment."""

    name: str
    architecture: int
    irqchip_mode: str  # "none", "full" or "split"
    vcpus: list[int]
    sources: list[SourceInfo]
    next_source: int | None  # the serial of the last source, if there are more
    source_count: int
    asserted: list[int]  # the GSIs that source 0 drives high
    virtual: bool
    now: int
    next_timer: int | None
    lateness: int  # of the next timer, nanoseconds
    devices: list[int] = field(default_factory=list)  # their types, by their numbers
    pit: bool = False
    tsc_khz: int = 0
    gic: GicInfo | None = None


T = TypeVar("T")


class Vm(Accesses):
    """One VM's irqchip and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(self, agenda: Agenda, board: Board, max_vcpus: int) -> None:
        super().__init__(agenda, board)
        self._max_vcpus = max_vcpus
        self._counting = Counting(agenda, board, self.detach)
        self._observers: dict[Observer, Callable[[], None] | None] = {}
        self._resting: set[Observer] = set()  # observers that get no reports for now

    # For an architecture to define.

    @property
    def architecture(self) -> int:
        """The contract's number of the architecture."""
        raise NotImplementedError

    @property
    def _irqchip_mode(self) -> str:
        """The kind of irqchip: Description.irqchip_mode."""
        raise NotImplementedError

    @property
    def _device_types(self) -> list[int]:
        """The types of the devices that create_device has made, by their numbers."""
        return []

    def _check_routes(self, routes: Sequence[Route]) -> None:
        """Refuse routes that the VM can't have: EINVAL."""
        raise NotImplementedError

    def _save(self, **common: Any) -> VmState:
        """The state of the chips and the vCPUs, with what all architectures have."""
        raise NotImplementedError

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: a capability's value, or 0."""
        raise NotImplementedError

    def unsupported(self, operation: str) -> VmError:
        """The error of an operation that this architecture's KVM lacks."""
        raise NotImplementedError

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP."""
        raise NotImplementedError

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU."""
        raise NotImplementedError

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP."""
        raise NotImplementedError

    def get_mp_state(self, vcpu: int) -> MpState:
        """KVM_GET_MP_STATE."""
        raise NotImplementedError

    def set_mp_state(self, vcpu: int, state: int) -> None:
        """KVM_SET_MP_STATE: EINVAL for an invalid state."""
        raise NotImplementedError

    # Devices. KVM: virt/kvm/kvm_main.c kvm_ioctl_create_device, kvm_device_ioctl_attr; a vCPU has attributes, too.

    def create_device(self, kind: int, flags: int) -> int:  # noqa: ARG002
        """KVM_CREATE_DEVICE: the device's number; ENODEV for a kind that the VM's host lacks."""
        with self._turn:
            raise VmError(errno.ENODEV, f"VM {self.name!r} can have no device of type {kind}")

    def set_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, data: bytes) -> None:
        """KVM_SET_DEVICE_ATTR on a device or a vCPU; data is what addr points to."""
        raise self._no_attr(device, vcpu, group, attr, data)

    def get_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, data: bytes) -> bytes:
        """KVM_GET_DEVICE_ATTR on a device or a vCPU: the bytes at addr afterwards; data are those before."""
        raise self._no_attr(device, vcpu, group, attr, data)

    def has_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR on a device or a vCPU: ENXIO for an unknown attribute."""
        raise self._no_attr(device, vcpu, group, attr)

    def _no_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, _data: bytes = b"") -> VmError:
        with self._turn:
            if vcpu is None:
                return VmError(errno.EBADF, f"VM {self.name!r} has no device {device}; create it first")
            self._cpu(vcpu)
            return VmError(errno.ENXIO, f"vCPU {vcpu} has no attribute {attr:#x} of group {group}")

    def add_vcpu(self, cpu: Vcpu) -> None:
        """A vCPU was made: listeners may wait for it."""
        self._cpus[cpu.id] = cpu
        cpu.listeners = self._listeners.get(cpu.id, ())
        cpu.priorities_changed()  # there may be an interrupt already

    def reset(self, reason: int = 0) -> None:
        """RESET: chips, local APICs and run states as created; time, routing and the levels that sources drive stay.

        Every line source's listener is notified, with the reason.
        """
        with self._turn:
            self._board.reset()
            for source in self._sources.values():
                if source.listener is not None:
                    self.agenda.notify((source.listener,), VmReset(reason))

    def delete(self) -> None:
        """Delete the VM. Its HLTs end, and the holders of its line sources and its observers are notified."""
        gone = deleted(self.name)
        with self._turn:
            for cpu in self._cpus.values():
                if cpu.halt is not None:
                    cpu.end_halt(cpu.halt, gone)
                cpu.forget_copy()
            self._board.regions.end(gone)
            self._counting.end()
            self.agenda.delete()
            holders = [source.on_deleted for source in self._sources.values()] + list(self._observers.values())
        for on_deleted in holders:
            if on_deleted is not None:
                on_deleted()

    # Routing.

    def set_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the table, or EINVAL and keep it."""
        with self._turn:
            self._check_routes(routes)
            self._board.set_routes(tuple(routes))

    def routing(self) -> Sequence[Route]:
        """The routing table that was set last."""
        with self._turn:
            if not self._board.has_irqchip:
                raise self._no_irqchip()
            return self._board.routes

    # All of it.

    def save(self) -> VmState:
        """The whole state, of which Registry.restore makes a VM."""
        with self._turn:
            return self.saved()

    def saved(self) -> VmState:
        """As save, for a caller that is in a turn already: an observer."""
        board, clock = self._board, self.agenda.clock
        board.wake_timers()
        return self._save(
            clock=CLOCK_VIRTUAL if clock.virtual else CLOCK_REAL,
            now_ns=clock.now(),
            routing=tuple(board.routes),
            sources=tuple(saving.save_source(source) for source in self._sources.values()),
            asserted_gsis=tuple(numbers_of(self._shared_source.asserted)),
        )

    def _resume_sources(self, state: VmState) -> None:
        """Make the line sources of a snapshot, which has been checked."""
        self._shared_source.asserted = bits_of(state.asserted_gsis, self._lines)
        for saved in state.sources:
            source = self._sources[saved.source] = self._numbered(LineSource(saved.source, saved.client))
            saving.restore_source(source, saved)
            reach = reach_for(source.asserted.bit_length() - 1, self._lines)
            self._sources_bytes.charge(source, reach, len(source.resampled))
            for gsi in source.resampled:
                self._board.notices.resample(gsi, source)

    # About the VM.

    def describe(self, sources_after: int = 0, room: int | None = None, *, one_at_least: bool = False) -> Description:
        """Describe the VM, and the line sources with serials above sources_after that fit into a room of bytes.

        The bytes are about those of a message; without a room all sources fit.
        """
        with self._turn:
            board = self._board
            board.wake_timers()
            infos, last = self._describe_sources(sources_after, room, one_at_least)
            now, next_timer = self.agenda.clock.now(), self.agenda.alarms.earliest()
            late = 0 if next_timer is None or self.agenda.clock.virtual else max(now - next_timer, 0)
            return Description(
                name=self.name,
                architecture=self.architecture,
                irqchip_mode=self._irqchip_mode,
                vcpus=list(self._cpus),
                sources=infos,
                next_source=last,
                source_count=len(self._sources),
                asserted=self._numbers(self._shared_source.asserted),
                devices=self._device_types[:MOST_DESCRIBED],
                virtual=self.agenda.clock.virtual,
                now=now,
                next_timer=next_timer,
                lateness=late,
            )

    def _describe_sources(
        self, after: int, room: int | None, one_at_least: bool
    ) -> tuple[list[SourceInfo], int | None]:
        """The sources with serials above a serial, and the serial of the last of them if more follow."""
        regions = self._board.regions
        infos: list[SourceInfo] = []
        last = after
        for source in self._sources.values():
            if source.serial <= after:
                continue
            if room is not None:
                room -= source.description_bytes(self._number_bytes) + REGION_BYTES * regions.count_of(source)
                if room < 0 and (infos or not one_at_least):
                    return infos, last
            infos.append(
                SourceInfo(
                    source.client,
                    source.number,
                    self._numbers(source.asserted),
                    source.dropped_events,
                    source.detached,
                    sorted(source.resampled),
                    [region.info() for region in regions.owned_by(source)],
                )
            )
            last = source.serial
        return infos, None

    @property
    def region_count(self) -> int:
        """The number of regions."""
        return self._board.regions.count

    def interrupts(self) -> InterruptCounts:
        """The interrupts counted so far. Counting begins with the first call, and ends a while after the last."""
        with self._turn:
            counted, began = self._counting.ask()
            if began:
                self._attach(counted, None)
            clients = {number: source.client for number, source in self._sources.items()}
            return InterruptCounts(
                self.agenda.deadlines.now() - counted.since,
                list(self._cpus),
                [
                    InterruptInfo(
                        int(line.kind),
                        line.gsi,
                        line.number,
                        line.level,
                        [clients[number] for number in line.sources if clients.get(number)],
                        dict(line.counts),
                        copy_of(line.accept),
                        copy_of(line.eoi),
                    )
                    for line in counted.lines.values()
                ],
            )

    # For observers, which call the first three in a turn.

    @property
    def routes(self) -> Sequence[Route]:
        """The routing table."""
        return self._board.routes

    def at_the_end(self, work: Callable[[], None]) -> None:
        """Do some work at the end of the turn."""
        self.agenda.defer(work)

    def raw_probes(self) -> list[RawProbes]:
        """See vm/probing.py. The first part is the lines."""
        asserted = [
            (source.number, source.asserted)
            for source in (self._shared_source, *self._sources.values())
            if source.asserted
        ]
        return [(self._board.raw_lines(), asserted), *self._board.raw_probes()]

    def named_probes(self, part: int, raw: RawProbes) -> Probes:
        """See vm/probing.py."""
        if part:
            return self._board.named_probes(part - 1, raw)
        levels, asserted = raw
        lines = self._board.named_lines(levels)
        for number, bits in asserted:
            for line in numbers_of(bits):
                name = self._line_name(line)
                lines[name] = lines.get(name, 0) | 1 << number
        return {name: (-(-sources.bit_length() // 64) * 64, sources) for name, sources in lines.items()}

    def _line_name(self, line: int) -> str:
        """The probe of a line, by its number in a source's bitmap."""
        return f"gsi{line}"

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do some work in a turn of its own."""
        with self._turn:
            return work()

    def attach(self, observer: Observer, on_deleted: Callable[[], None] | None = None) -> None:
        """Report everything to an observer from now on; on_deleted is as in open_source."""
        with self._turn:
            self._attach(observer, on_deleted)

    def _attach(self, observer: Observer, on_deleted: Callable[[], None] | None) -> None:
        self._observers[observer] = on_deleted
        self._observe()

    def rest(self, observer: Observer, rests: bool) -> None:
        """In a turn: stop reports to an observer, so that they cost nothing; or report everything again."""
        if rests:
            self._resting.add(observer)
        else:
            self._resting.discard(observer)
        self._observe()

    def _observe(self) -> None:
        self._board.observe(combine([observer for observer in self._observers if observer not in self._resting]))

    def detach(self, observer: Observer) -> None:
        """Undo attach."""
        with self.agenda.lock:
            del self._observers[observer]
            self._resting.discard(observer)
            self._observe()
