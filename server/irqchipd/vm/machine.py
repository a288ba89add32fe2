"""A virtual machine's interrupt controller: the only place where its state changes.

Every public method may be called from any thread. Each is one turn of the agenda: it takes the VM's lock, checks and
changes; the lock is released, and listeners are notified.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, Self, TypeVar

from irqchipd.chips import i8254_state, i8259, lapic_registers
from irqchipd.chips import ioapic as ioapic_chip
from irqchipd.chips.i8254 import Pit
from irqchipd.chips.i8254_state import PitState
from irqchipd.chips.i8259 import I8259, PicPair
from irqchipd.chips.ioapic import Ioapic, IoapicState
from irqchipd.chips.lapic_registers import LapicRegisters
from irqchipd.chips.lapic_timer import KHZ
from irqchipd.observe.observer import Observer, combine
from irqchipd.vm import saving
from irqchipd.vm.accesses import Accesses
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.capabilities import MAX_VCPU_ID as MAX_VCPU_ID
from irqchipd.vm.capabilities import MAX_VCPUS as MAX_VCPUS
from irqchipd.vm.capabilities import Cap
from irqchipd.vm.clock import Clock, Deadlines, RealClock, VirtualClock
from irqchipd.vm.errors import VmError, deleted, invalid
from irqchipd.vm.events import VmReset
from irqchipd.vm.regions import ACCESS_NS, REGION_BYTES, RegionInfo
from irqchipd.vm.routing import ChipId, MsiRoute, PinRoute, Route, check_routes
from irqchipd.vm.snapshot import CLOCK_REAL, CLOCK_VIRTUAL, IRQCHIP_FULL, IRQCHIP_NONE, IRQCHIP_SPLIT, VmState
from irqchipd.vm.sources import LineSource, bits_of, gsis_of, reach_for

SPLIT_IRQCHIP: Final = Cap.SPLIT_IRQCHIP
PIT_SPEAKER_DUMMY: Final = 1  # KVM_PIT_SPEAKER_DUMMY
_SAVED_MODES: Final = {"none": IRQCHIP_NONE, "full": IRQCHIP_FULL, "split": IRQCHIP_SPLIT}


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
class Description:
    """A description of a VM at one moment."""

    name: str
    irqchip_mode: str  # "none", "full" or "split"
    pit: bool
    vcpus: list[int]
    sources: list[SourceInfo]
    next_source: int | None  # the serial of the last source, if there are more
    source_count: int
    asserted: list[int]  # the GSIs that source 0 drives high
    virtual: bool
    now: int
    next_timer: int | None
    lateness: int  # of the next timer, nanoseconds
    tsc_khz: int


class Vm(Accesses):
    """One VM's irqchip and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(
        self,
        name: str,
        max_vcpus: int = MAX_VCPUS,
        clock: Clock | None = None,
        tsc_khz: int = KHZ,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> None:
        deadlines = deadlines if deadlines is not None else Deadlines()
        super().__init__(Agenda(name, clock if clock is not None else RealClock(deadlines), deadlines), tsc_khz)
        self._board.regions.access_ns = access_ns
        self._max_vcpus = max_vcpus
        self._observers: dict[Observer, Callable[[], None] | None] = {}

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EEXIST with an irqchip, or a region at its addresses; EINVAL once a vCPU exists."""
        with self._turn:
            if self._board.has_irqchip:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip already: use that one")
            if self._cpus:
                raise invalid(f"VM {self.name!r} has vCPUs; the irqchip must be created before them")
            self._board.regions.check_apic_page()
            self._board.add_irqchip()

    def create_pit(self, flags: int = PIT_SPEAKER_DUMMY) -> None:
        """KVM_CREATE_PIT2: EEXIST with a PIT, or where its ports are claimed; ENOENT without a PIC."""
        with self._turn:
            if self._board.pit is not None:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a PIT already: use that one")
            if self._board.pic is None:
                raise VmError(errno.ENOENT, f"a PIT needs PICs to interrupt: {self._no_irqchip().message}")
            self._board.add_pit(bool(flags & PIT_SPEAKER_DUMMY))

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU: EEXIST where the id is taken, EINVAL where it is out of range or the VM is full."""
        with self._turn:
            board = self._board
            ids = board.max_vcpu_ids or MAX_VCPU_ID + 1
            if not 0 <= vcpu < ids:
                raise invalid(f"vCPU id {vcpu} is out of range: use 0 to {ids - 1}")
            if len(self._cpus) >= self._max_vcpus:
                raise invalid(f"VM {self.name!r} has {self._max_vcpus} vCPUs, the most that are allowed")
            if vcpu in self._cpus:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a vCPU {vcpu} already: choose another id")
            board.max_vcpu_ids = ids
            cpu = self._cpus[vcpu] = board.add_cpu(vcpu)
            cpu.listeners = self._listeners.get(vcpu, ())
            cpu.priorities_changed()  # the PIC may have an interrupt already

    def reset(self, reason: int = 0) -> None:
        """RESET: chips, local APICs and run states as they were made; time, routing and what sources drive stay.

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
            for cpu in self._board.cpus:
                if cpu.halt is not None:
                    cpu.end_halt(cpu.halt, gone)
                if cpu.copy is not None:
                    cpu.copy.withdraw()
                    cpu.copy = None
            self._board.regions.end(gone)
            self.agenda.delete()
            holders = [source.on_deleted for source in self._sources.values()] + list(self._observers.values())
        for on_deleted in holders:
            if on_deleted is not None:
                on_deleted()

    # Routing.

    def set_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the table, or EINVAL and keep it."""
        with self._turn:
            if not self._board.has_irqchip:
                raise invalid(f"VM {self.name!r} has no irqchip to route to")
            check_routes(routes)
            if self._board.apics.split is not None and any(isinstance(route, PinRoute) for route in routes):
                raise invalid(f"VM {self.name!r} has a split irqchip: its GSIs lead to MSIs only")
            for route in routes:
                if isinstance(route, MsiRoute) and not self._board.apics.can_send(route.address):
                    raise invalid(f"GSI {route.gsi} leads to address {route.address:#x}, whose bits 39:32 must be 0")
            self._board.set_routes(tuple(routes))

    def routing(self) -> Sequence[Route]:
        """The routing table as it was set."""
        with self._turn:
            if not self._board.has_irqchip:
                raise self._no_irqchip()
            return self._board.routes

    # State.

    def get_irqchip(self, chip_id: int) -> I8259 | IoapicState:
        """KVM_GET_IRQCHIP; EINVAL for an invalid chip."""
        with self._turn:
            pic, ioapic = self._irqchip()
            match chip_id:
                case ChipId.PIC_PRIMARY:
                    return pic.primary.copy()
                case ChipId.PIC_SECONDARY:
                    return pic.secondary.copy()
                case ChipId.IOAPIC:
                    return ioapic.state()
                case _:
                    raise _no_chip(chip_id)

    def set_irqchip(self, chip_id: int, state: I8259 | IoapicState | bytes) -> None:
        """KVM_SET_IRQCHIP, from a state or the kernel's struct; EINVAL for a wrong length or kind."""
        with self._turn:
            pic, ioapic = self._irqchip()
            match chip_id:
                case ChipId.PIC_PRIMARY:
                    pic.restore(pic.primary, _state_of(I8259, i8259.STATE_SIZE, state))
                case ChipId.PIC_SECONDARY:
                    pic.restore(pic.secondary, _state_of(I8259, i8259.STATE_SIZE, state))
                case ChipId.IOAPIC:
                    ioapic.restore(_state_of(IoapicState, ioapic_chip.STATE_SIZE, state))
                    pic.update()  # KVM: irq.c kvm_vm_ioctl_set_irqchip, whichever chip it was
                case _:
                    raise _no_chip(chip_id)

    def get_lapic(self, vcpu: int) -> LapicRegisters:
        """KVM_GET_LAPIC; EINVAL where the vCPU has no local APIC."""
        with self._turn:
            registers = self._lapic(vcpu).registers()
            if self._lapic(vcpu).x2apic and self._board.apics.x2apic_format:
                registers.id = vcpu
            return registers

    def set_lapic(self, vcpu: int, state: LapicRegisters | bytes) -> None:
        """KVM_SET_LAPIC, from registers or the kernel's struct; EINVAL for a wrong length, too."""
        with self._turn:
            cpu = self._cpu(vcpu)
            lapic = self._lapic(vcpu)
            registers = _state_of(LapicRegisters, lapic_registers.STATE_SIZE, state)
            if lapic.x2apic and self._board.apics.x2apic_format and registers.id != lapic.apic_id:
                # KVM: lapic.c kvm_apic_state_fixup
                raise invalid(f"APIC ID {registers.id:#x} is not that of vCPU {vcpu}'s x2APIC, {lapic.apic_id:#x}")
            lapic.restore(registers)
            cpu.publish()
            if self._board.ioapic is not None:
                self._board.ioapic.retrack_rtc(cpu.index)

    def get_pit(self) -> PitState:
        """KVM_GET_PIT2; ENXIO without a PIT."""
        with self._turn:
            return self._pit().state()

    def set_pit(self, state: PitState | bytes) -> None:
        """KVM_SET_PIT2, from a state or the kernel's struct; EINVAL for a wrong length, too.

        With the older struct kvm_pit_state, which has no flags, this is KVM_SET_PIT.
        """
        with self._turn:
            pit = self._pit()
            if isinstance(state, bytes) and len(state) == i8254_state.CHANNELS_SIZE:
                state += pit.state().pack()[i8254_state.CHANNELS_SIZE :]
            pit.restore(_state_of(PitState, i8254_state.STATE_SIZE, state))

    def set_pit_reinject(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL; ENXIO without a PIT."""
        with self._turn:
            pit = self._pit()
            if pit.reinject != reinject:
                pit.set_reinject(reinject)
                self._board.notices.changed()

    # All of it.

    def save(self) -> VmState:
        """The whole state, of which Registry.restore makes a VM."""
        with self._turn:
            board = self._board
            board.wake_timers()
            return VmState(
                clock=CLOCK_VIRTUAL if self.agenda.clock.virtual else CLOCK_REAL,
                now_ns=self.agenda.clock.now(),
                tsc_khz=board.tsc_khz,
                irqchip_mode=_SAVED_MODES[self._irqchip_mode],
                reserved_gsis=board.apics.split or 0,
                routing=tuple(board.routes),
                chips=saving.save_chips(board),
                pit=board.pit.save(speaker=board.speaker) if board.pit is not None else None,
                vcpus=tuple(cpu.save() for cpu in board.cpus),
                mapped_vcpus=board.apics.mapped,
                sources=tuple(saving.save_source(source) for source in self._sources.values()),
                asserted_gsis=tuple(gsis_of(self._shared_source.asserted)),
                **saving.save_capabilities(board),
            )

    @classmethod
    def restored(
        cls,
        name: str,
        max_vcpus: int,
        state: VmState,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> Self:
        """A VM from a snapshot: EINVAL where no VM can have this state. Its clock goes on from there."""
        saving.check_state(state, max_vcpus)
        deadlines = deadlines if deadlines is not None else Deadlines()
        clock: Clock = RealClock(deadlines, state.now_ns)
        if state.clock == CLOCK_VIRTUAL:
            clock = VirtualClock(state.now_ns)
        vm = cls(name, max_vcpus, clock, state.tsc_khz, access_ns, deadlines)
        vm._shared_source.asserted = bits_of(state.asserted_gsis)
        for saved in state.sources:
            source = vm._sources[saved.source] = vm._numbered(LineSource(saved.source, saved.client))
            saving.restore_source(source, saved)
            vm._sources_bytes.charge(source, reach_for(source.asserted.bit_length() - 1), len(source.resampled))
        with vm._turn:
            saving.restore_board(vm._board, state, vm._sources.values())
            vm._cpus = {cpu.id: cpu for cpu in vm._board.cpus}
        return vm

    # About the VM.

    def describe(self, sources_after: int = 0, room: int | None = None, *, one_at_least: bool = False) -> Description:
        """Describe the VM, and the line sources with serials above sources_after that fit into a room of bytes.

        The bytes are about a message's; without a room all sources fit.
        """
        with self._turn:
            board = self._board
            board.wake_timers()
            infos, last = self._describe_sources(sources_after, room, one_at_least)
            now, next_timer = self.agenda.clock.now(), self.agenda.alarms.earliest()
            late = 0 if next_timer is None or self.agenda.clock.virtual else max(now - next_timer, 0)
            return Description(
                name=self.name,
                irqchip_mode=self._irqchip_mode,
                pit=board.pit is not None,
                vcpus=list(self._cpus),
                sources=infos,
                next_source=last,
                source_count=len(self._sources),
                asserted=gsis_of(self._shared_source.asserted),
                virtual=self.agenda.clock.virtual,
                now=now,
                next_timer=next_timer,
                lateness=late,
                tsc_khz=board.tsc_khz,
            )

    def _describe_sources(
        self, after: int, room: int | None, one_at_least: bool
    ) -> tuple[list[SourceInfo], int | None]:
        """The sources with serials above one, and the serial of the last where there are more."""
        regions = self._board.regions
        infos: list[SourceInfo] = []
        last = after
        for source in self._sources.values():
            if source.serial <= after:
                continue
            if room is not None:
                room -= source.description_bytes + REGION_BYTES * regions.count_of(source)
                if room < 0 and (infos or not one_at_least):
                    return infos, last
            infos.append(
                SourceInfo(
                    source.client,
                    source.number,
                    gsis_of(source.asserted),
                    source.dropped_events,
                    source.detached,
                    sorted(source.resampled),
                    [region.info() for region in regions.owned_by(source)],
                )
            )
            last = source.serial
        return infos, None

    def attach(self, observer: Observer, on_deleted: Callable[[], None] | None = None) -> None:
        """Report everything to an observer from now on; on_deleted is as in open_source."""
        with self._turn:
            self._observers[observer] = on_deleted
            self._board.observe(combine(list(self._observers)))

    def detach(self, observer: Observer) -> None:
        """Undo attach."""
        with self.agenda.lock:
            del self._observers[observer]
            self._board.observe(combine(list(self._observers)))

    @property
    def _irqchip_mode(self) -> str:
        return "full" if self._board.pic is not None else "split" if self._board.has_irqchip else "none"

    # Checks.

    def _irqchip(self) -> tuple[PicPair, Ioapic]:
        board = self._board
        if board.pic is None or board.ioapic is None:
            raise self._no_irqchip()
        return board.pic, board.ioapic

    def _pit(self) -> Pit:
        pit = self._board.pit
        if pit is None:
            if self._board.pic is None:
                raise VmError(errno.ENXIO, f"there is no PIT: {self._no_irqchip().message}")
            raise VmError(errno.ENXIO, f"VM {self.name!r} has no PIT; create it first")
        return pit


def _no_chip(chip_id: int) -> VmError:
    return invalid(f"chip {chip_id} is invalid; 0 and 1 are the PICs, 2 the IOAPIC")


class _Unpackable(Protocol):
    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


_S = TypeVar("_S", bound=_Unpackable)


def _state_of(kind: type[_S], size: int, state: object) -> _S:
    """A chip's state, unpacked if need be."""
    if isinstance(state, bytes):
        if len(state) != size:
            raise invalid(f"the state is {len(state)} bytes long; this chip's has {size}: give all of them")
        return kind.unpack(state)
    if not isinstance(state, kind):
        raise invalid("the state is another kind of chip's")
    return state
