"""A virtual machine's interrupt controller: the only place where its state changes.

Every public method may be called from any thread. Each is one turn: it takes the VM's lock, checks, changes, works out
whom to tell, lets go of the lock, and tells them.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self, TypeVar

from irqchipd.chips import i8254, i8259
from irqchipd.chips import ioapic as ioapic_chip
from irqchipd.chips import lapic as lapic_chip
from irqchipd.chips.i8254 import Pit, PitState
from irqchipd.chips.i8259 import I8259, PicPair
from irqchipd.chips.ioapic import Ioapic, IoapicState
from irqchipd.chips.lapic import Lapic, LapicRegisters
from irqchipd.chips.lapic_timer import KHZ
from irqchipd.chips.message import DeliveryMode
from irqchipd.observe.observer import Observer, combine
from irqchipd.vm import saving
from irqchipd.vm.board import Board
from irqchipd.vm.clock import SCHEDULER, Alarm, Clock, RealClock, VirtualClock
from irqchipd.vm.cpu import Cpu, Halt, MpState, Outcome, Signal, Taken
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import GsiResampled, InterruptPending, Listener
from irqchipd.vm.routing import MAX_GSIS, MSI_VALID_DEVID, ChipId, PinRoute, Route, check_routes
from irqchipd.vm.snapshot import (
    CLOCK_REAL,
    CLOCK_VIRTUAL,
    IRQCHIP_FULL,
    IRQCHIP_NONE,
    IRQCHIP_SPLIT,
    VmState,
)
from irqchipd.vm.sources import PIT, RESAMPLERS, SHARED, LineSource

MAX_VCPU_ID = 254  # the xAPIC IDs that can be addressed: 255 is the broadcast
MAX_VCPUS = MAX_VCPU_ID + 1
MAX_PORT = 0xFFFF
MAX_ADDRESS = (1 << 64) - 1
PIO_SIZES = (1, 2, 4)
MMIO_SIZES = (1, 2, 4, 8)
MAX_TSC_KHZ = 100_000_000
MAX_TIME = 1 << 62  # nanoseconds, of a virtual clock
MAX_EXPIRATIONS = 10_000  # of timers, in one turn
SPLIT_IRQCHIP = 121  # KVM_CAP_SPLIT_IRQCHIP
PIT_SPEAKER_DUMMY = 1  # KVM_PIT_SPEAKER_DUMMY


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a virtual clock is, how far short it stopped, and when the next timer is due, if one runs; nanoseconds."""

    now: int
    remaining: int
    next_timer: int | None


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A line source of a Session, or of one that is to resume it."""

    client: str
    number: int
    asserted: list[int]
    dropped_events: int
    detached: bool


@dataclass(frozen=True, slots=True)
class Description:
    """What there is to say of a VM at one moment."""

    name: str
    irqchip_mode: str  # "none", "full" or "split"
    pit: bool
    vcpus: list[int]
    sources: list[SourceInfo]
    asserted: list[int]  # the GSIs that source 0 drives high
    virtual: bool
    now: int
    next_timer: int | None
    tsc_khz: int


class _Turn:
    """A VM's lock, held for one operation; what the operation left is done under it, and told without it."""

    __slots__ = ("_vm",)

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def __enter__(self) -> None:
        vm = self._vm
        vm._lock.acquire()
        if vm._deleted:
            vm._lock.release()
            raise VmError(errno.ENOENT, f"VM {vm.name!r} has been deleted")

    def __exit__(self, *_: object) -> None:
        vm = self._vm
        if not vm._board.unsettled:
            vm._lock.release()
            return
        try:
            outbox = vm._settle()
        finally:
            vm._lock.release()
        for tell in outbox:
            tell()


class Vm:
    """One VM's irqchip and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(self, name: str, max_vcpus: int = MAX_VCPUS, clock: Clock | None = None, tsc_khz: int = KHZ) -> None:
        if not 1 <= tsc_khz <= MAX_TSC_KHZ:
            raise invalid(f"a TSC of {tsc_khz} kHz; 1 to {MAX_TSC_KHZ} are allowed")
        self.name = name
        self._max_vcpus = max_vcpus
        self._lock = threading.Lock()
        self._turn = _Turn(self)
        self._deleted = False
        self._clock = clock if clock is not None else RealClock()
        self._board = Board(self._clock, tsc_khz)
        self._next_wake: int | None = None
        self._cpus: dict[int, Cpu] = {}
        self._shared_source = LineSource(SHARED)
        self._sources: dict[int, LineSource] = {}
        self._observers: dict[Observer, Callable[[], None] | None] = {}

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EEXIST where there is one, EINVAL once a vCPU exists; it is done whole or not at all."""
        with self._turn:
            if self._board.has_irqchip:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip")
            if self._cpus:
                raise invalid(f"VM {self.name!r} has vCPUs; the irqchip must be created before them")
            self._board.add_irqchip()

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP. KVM: x86.c kvm_vm_ioctl_enable_cap."""
        with self._turn:
            if flags or len(args) > 4:
                raise invalid(f"flags {flags:#x} and {len(args)} args; no flag and at most 4 args are allowed")
            if capability != SPLIT_IRQCHIP:
                raise invalid(f"capability {capability} can't be enabled; {SPLIT_IRQCHIP}, the split irqchip, can")
            reserved = args[0] if args else 0
            if reserved > MAX_GSIS:
                raise invalid(f"{reserved} GSIs for the VMM's IOAPIC; at most {MAX_GSIS} are allowed")
            if self._board.has_irqchip or self._cpus:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip or vCPUs; it is too late to split it")
            self._board.split = reserved

    def create_pit(self, flags: int = PIT_SPEAKER_DUMMY) -> None:
        """KVM_CREATE_PIT2: EEXIST where there is one, or where its ports are claimed; ENOENT without a PIC."""
        with self._turn:
            if self._board.pit is not None:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a PIT")
            if self._board.pic is None:
                raise VmError(errno.ENOENT, f"VM {self.name!r} has no PIC for a PIT to interrupt; create the irqchip")
            self._board.add_pit(bool(flags & PIT_SPEAKER_DUMMY))

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU: EEXIST where the id is taken, EINVAL where it is out of range or the VM is full."""
        with self._turn:
            if not 0 <= vcpu <= MAX_VCPU_ID:
                raise invalid(f"vCPU id {vcpu} is out of range: 0 to {MAX_VCPU_ID}")
            if len(self._cpus) >= self._max_vcpus:
                raise invalid(f"VM {self.name!r} has {self._max_vcpus} vCPUs, the most that are allowed")
            if vcpu in self._cpus:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a vCPU {vcpu}")
            cpu = self._cpus[vcpu] = self._board.add_cpu(vcpu)
            cpu.watchers = len(self._board.listeners.get(vcpu, ()))
            cpu.priorities_changed()  # the PIC may be asking already

    def reset(self) -> None:
        """RESET: chips, local APICs and run states as they were made; time, routing and what sources drive stay."""
        with self._turn:
            self._board.reset()

    def delete(self) -> None:
        """The VM is no more; who waits in a HLT, the holders of its line sources and its observers are told."""
        gone = VmError(errno.ENOENT, f"VM {self.name!r} has been deleted")
        with self._turn:
            for cpu in self._board.cpus:
                if cpu.halt is not None:
                    self._board.finish_halt(cpu.halt, gone)
            self._deleted = True
            holders = [source.on_deleted for source in self._sources.values()] + list(self._observers.values())
        for on_deleted in holders:
            if on_deleted is not None:
                on_deleted()

    # Time.

    def advance(self, nanoseconds: int) -> Advance:
        """Move a virtual clock, and do what comes due in order; EINVAL for a real one.

        It stops short after MAX_EXPIRATIONS.
        """
        with self._turn:
            clock, board = self._clock, self._board
            if not isinstance(clock, VirtualClock):
                raise invalid(f"the clock of VM {self.name!r} is real; only a virtual one can be advanced")
            if not 0 <= nanoseconds <= MAX_TIME - clock.time:
                raise invalid(f"{nanoseconds} ns from {clock.time} ns on; a clock goes to 2^62 ns")
            end = clock.time + nanoseconds
            for _ in range(MAX_EXPIRATIONS):
                due = board.alarms.earliest()
                if due is None or due > end:
                    clock.time = end
                    break
                clock.time = max(clock.time, due)
                self._ring_one(clock.time)
            return Advance(clock.time, end - clock.time, board.alarms.earliest())

    def _ring_one(self, now: int) -> bool:
        """Do what is due first, if anything is."""
        alarm = self._board.alarms.pop_due(now)
        if alarm is None:
            return False
        alarm.ring()
        # Before the next: a HLT that this ends takes its vector now.
        self._board.settle()
        return True

    def _ring(self) -> None:
        """A real clock says that something is due; called from its thread."""
        with suppress(VmError), self._turn:
            self._next_wake = None
            self._board.unsettled = True
            now = self._clock.now()
            for _ in range(MAX_EXPIRATIONS):
                if not self._ring_one(now):
                    break

    def _settle(self) -> list[Callable[[], None]]:
        """What to call without the lock, now that an operation is done and nothing is left of it."""
        board = self._board
        board.settle()
        wake = None if self._deleted else board.alarms.earliest()
        if wake != self._next_wake:
            self._next_wake = wake
            self._clock.wake(self._ring, wake)
        return board.take_outbox()

    # Lines.

    def irq_line(self, gsi: int, level: bool, source: LineSource | None = None) -> int:
        """KVM_IRQ_LINE_STATUS from a line source, by default the shared one: its status, -1 for a GSI with no route.

        A GSI that the source resamples is raised from the source of all who do; lowering it is EINVAL.
        """
        with self._turn:
            if not self._board.has_irqchip:
                raise self._no_irqchip()
            if source is None:
                source = self._shared_source
            elif source.closed:
                raise VmError(errno.ENOENT, f"line source {source.number} has been closed")
            if source.resampled and gsi in source.resampled:
                if not level:
                    raise invalid(f"GSI {gsi} is resampled: it falls by itself when it is acknowledged")
                return self._board.set_irq(gsi, 1, 1 << RESAMPLERS, line_status=False)
            if not level:
                source.asserted.discard(gsi)
            elif gsi < MAX_GSIS:
                source.asserted.add(gsi)
            return self._board.set_irq(gsi, 1 if level else 0, 1 << source.number)

    def open_source(
        self,
        client: str,
        on_deleted: Callable[[], None] | None = None,
        *,
        resampled: Sequence[int] = (),
        listener: Listener | None = None,
        resume: bool = False,
    ) -> LineSource:
        """A new line source, or the one that a restored VM kept for a client: ENOENT where it kept none.

        on_deleted is called, from any thread, when the VM is deleted under it; listener hears of the GSIs that the
        source resamples, for which EINVAL without a full irqchip.
        """
        with self._turn:
            if resampled and self._board.pic is None:
                raise invalid(f"VM {self.name!r} has no PIC and IOAPIC, whose interrupts could be resampled")
            source = self._detached(client) if resume else self._new_source(client)
            source.on_deleted, source.listener, source.detached = on_deleted, listener, False
            for gsi, count in source.resampled.items():
                if count and listener is not None:
                    self._board.post(listener, GsiResampled(gsi, count))
                source.resampled[gsi] = 0
            for gsi in resampled:
                if gsi not in source.resampled:
                    source.resampled[gsi] = 0
                    self._board.notices.resample(gsi, source)
            return source

    def _detached(self, client: str) -> LineSource:
        for source in self._sources.values():
            if source.detached and source.client == client:
                return source
        raise VmError(errno.ENOENT, f"VM {self.name!r} keeps no line source for a client {client!r}")

    def _new_source(self, client: str) -> LineSource:
        number = SHARED + 1
        while number in self._sources or number in (PIT, RESAMPLERS):
            number += 1
        source = self._sources[number] = LineSource(number, client)
        return source

    def close_source(self, source: LineSource) -> None:
        """A line source is no more: its levels drop. Closing one twice, or of a deleted VM, does nothing."""
        with suppress(VmError), self._turn:
            if self._sources.get(source.number) is source:
                del self._sources[source.number]
                source.closed = True
                source.asserted.clear()
                self._board.drop_source(1 << source.number)
                for gsi in source.resampled:
                    self._board.notices.stop_resampling(gsi, source)
                source.resampled.clear()

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: how many local APICs took it, or -1; EINVAL without an irqchip or for an unknown flag."""
        with self._turn:
            if not self._board.has_irqchip:
                raise invalid(f"VM {self.name!r} has no irqchip to signal an MSI to")
            if flags & ~MSI_VALID_DEVID:
                raise invalid(f"flags {flags:#x} of an MSI; 0 or {MSI_VALID_DEVID} are allowed")
            return self._board.signal_msi(address & 0xFFFF_FFFF, data)

    def set_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the table, or EINVAL and keep it."""
        with self._turn:
            if not self._board.has_irqchip:
                raise invalid(f"VM {self.name!r} has no irqchip to route to")
            check_routes(routes)
            if self._board.split is not None and any(isinstance(route, PinRoute) for route in routes):
                raise invalid(f"VM {self.name!r} has a split irqchip: its GSIs lead to MSIs only")
            self._board.set_routes(tuple(routes))

    def routing(self) -> Sequence[Route]:
        """The routing table as it was set."""
        with self._turn:
            if not self._board.has_irqchip:
                raise self._no_irqchip()
            return self._board.routes

    # Guest accesses. A result of None, or False, is an address that nothing claims.

    def pio_read(self, vcpu: int, port: int, size: int) -> int | None:
        """A vCPU's IN of 1, 2 or 4 bytes."""
        with self._turn:
            if size not in PIO_SIZES or port > MAX_PORT:
                raise _bad_access(PIO_SIZES, MAX_PORT, size, port)
            self._enter(vcpu)
            board = self._board
            device = board.pio.find(port, size)
            if device is None:
                return None
            value = device.read(port, size)
            if board.observer is not None:
                board.observer.kvm_pio(False, port, size, value)
            return value

    def pio_write(self, vcpu: int, port: int, size: int, value: int) -> bool:
        """A vCPU's OUT of 1, 2 or 4 bytes."""
        with self._turn:
            if size not in PIO_SIZES or port > MAX_PORT or value >> 8 * size:
                raise _bad_access(PIO_SIZES, MAX_PORT, size, port, value)
            self._enter(vcpu)
            board = self._board
            device = board.pio.find(port, size)
            if device is None:
                return False
            if board.observer is not None:
                board.observer.kvm_pio(True, port, size, value)
            device.write(port, size, value)
            return True

    def mmio_read(self, vcpu: int, address: int, size: int) -> int | None:
        """A vCPU's load of 1, 2, 4 or 8 bytes."""
        with self._turn:
            if size not in MMIO_SIZES or address > MAX_ADDRESS:
                raise _bad_access(MMIO_SIZES, MAX_ADDRESS, size, address)
            board = self._board
            device = board.find_mmio(self._enter(vcpu), address, size)
            if device is None:
                return None
            value = device.read(address, size)
            if board.observer is not None:
                board.observer.kvm_mmio(False, address, size, value)
            return value

    def mmio_write(self, vcpu: int, address: int, size: int, value: int) -> bool:
        """A vCPU's store of 1, 2, 4 or 8 bytes."""
        with self._turn:
            if size not in MMIO_SIZES or address > MAX_ADDRESS or value >> 8 * size:
                raise _bad_access(MMIO_SIZES, MAX_ADDRESS, size, address, value)
            board = self._board
            device = board.find_mmio(self._enter(vcpu), address, size)
            if device is None:
                return False
            if board.observer is not None:
                board.observer.kvm_mmio(True, address, size, value)
            device.write(address, size, value)
            return True

    def msr_read(self, vcpu: int, msr: int) -> int | None:
        """A vCPU's RDMSR: the value, FAULT, or None for a register that is not the local APIC's."""
        with self._turn:
            self._enter(vcpu)
            return self._lapic(vcpu, errno.ENXIO).read_msr(msr)

    def msr_write(self, vcpu: int, msr: int, value: int) -> int | None:
        """A vCPU's WRMSR: 0, FAULT, or None for a register that is not the local APIC's."""
        with self._turn:
            if value >> 64:
                raise invalid(f"value {value:#x} does not fit into a model-specific register, which has 64 bits")
            self._enter(vcpu)
            return self._lapic(vcpu, errno.ENXIO).write_msr(msr, value)

    # The CPU side.

    def ack_interrupt(self, vcpu: int, pic: bool = True, lapic: bool = True) -> Taken | None:
        """INTA: accept what the vCPU would take now, and return the vector and whether the PIC gave it, or None."""
        with self._turn:
            cpu = self._enter(vcpu)
            self._lapic(vcpu, errno.ENXIO)
            return cpu.take_interrupt(pic, lapic)

    def take_signal(self, vcpu: int) -> Signal | None:
        """Take an INIT, start-up, SMI or NMI that waits for the vCPU, in this order, or None."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            return self._cpu(vcpu).take_signal()

    def interrupt(self, vcpu: int, vector: int) -> None:
        """KVM_INTERRUPT: the PIC of a VMM with a split irqchip interrupts. KVM: x86.c kvm_vcpu_ioctl_interrupt."""
        with self._turn:
            cpu = self._cpu(vcpu)
            if not 0 <= vector <= 0xFF:
                raise invalid(f"vector {vector} is out of range: 0 to 255")
            self._lapic(vcpu, errno.ENXIO)
            if self._board.pic is not None:
                raise VmError(errno.ENXIO, f"VM {self.name!r} has its PIC here; drive its lines instead")
            if cpu.external_vector is not None:
                raise VmError(errno.EEXIST, f"vCPU {vcpu} has not taken vector {cpu.external_vector} yet")
            cpu.external_vector = vector
            cpu.priorities_changed()

    def nmi(self, vcpu: int) -> None:
        """KVM_NMI."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            self._cpu(vcpu).signal(DeliveryMode.NMI, 0)

    def get_mp_state(self, vcpu: int) -> MpState:
        """KVM_GET_MP_STATE."""
        with self._turn:
            return self._cpu(vcpu).mp_state

    def set_mp_state(self, vcpu: int, state: int) -> None:
        """KVM_SET_MP_STATE: EINVAL for what is no MpState, and without a local APIC for any but RUNNABLE."""
        with self._turn:
            cpu = self._cpu(vcpu)
            if state not in set(MpState):
                raise invalid(f"run state {state} is none; there are {', '.join(f'{s} {s.name}' for s in MpState)}")
            if cpu.lapic is None and state != MpState.RUNNABLE:
                raise invalid(f"vCPU {vcpu} has no local APIC, and can only be runnable")
            cpu.mp_state = MpState(state)
            if state == MpState.SIPI_RECEIVED:
                # KVM: x86.c kvm_arch_vcpu_ioctl_set_mpstate
                cpu.mp_state = MpState.INIT_RECEIVED
                cpu.signal(DeliveryMode.STARTUP, 0)
            self._board.touch(cpu)

    def halt(
        self, vcpu: int, done: Callable[[Outcome], None], interrupts_masked: bool = False, timeout_ns: int = 0
    ) -> Halt:
        """HLT: done is called once, from any thread and maybe before this returns, with what the vCPU takes.

        Or with None after a time of the machine's clock, or an error when the VM is deleted. ENXIO where the vCPU has
        no local APIC, EBUSY while it halts.
        """
        with self._turn:
            cpu = self._cpu(vcpu)
            self._lapic(vcpu, errno.ENXIO)
            if cpu.halt is not None:
                raise VmError(errno.EBUSY, f"vCPU {vcpu} of VM {self.name!r} halts already")
            halt = Halt(cpu, done, interrupts_masked)
            if cpu.start_halt(halt) and timeout_ns:
                halt.alarm = Alarm(0, partial(self._time_out, halt))
                SCHEDULER.set(halt.alarm, time.monotonic_ns() + timeout_ns)
            return halt

    def _time_out(self, halt: Halt) -> None:
        with suppress(VmError), self._turn:
            if not halt.finished:
                self._board.finish_halt(halt, None)

    def abandon(self, halt: Halt) -> None:
        """Who halted is gone: the HLT is cancelled, or what it took is given back; done need not be called any more."""
        with suppress(VmError), self._turn:
            outcome, halt.outcome = halt.outcome, None
            if not halt.finished:
                halt.finish(None)
            elif isinstance(outcome, Signal | tuple):
                halt.cpu.give_back(outcome)

    def subscribe(self, vcpus: Sequence[int], listener: Listener, gsis: Sequence[int] = ()) -> None:
        """Tell a listener, from any thread, what happens to some vCPUs, and at once where they have an interrupt.

        And of some GSIs that they were acknowledged, or masked.
        """
        with self._turn:
            board = self._board
            for vcpu in vcpus:
                board.listeners.setdefault(vcpu, []).append(listener)
                cpu = self._cpus.get(vcpu)
                if cpu is not None:
                    cpu.watchers += 1
                    cpu.ready = cpu.has_interrupt()
                    if cpu.ready:
                        board.post(listener, InterruptPending(vcpu))
            for gsi in gsis:
                board.notices.subscribe(gsi, listener)

    def unsubscribe(self, vcpus: Sequence[int], listener: Listener, gsis: Sequence[int] = ()) -> None:
        """The reverse of subscribe."""
        with self._lock:
            board = self._board
            for vcpu in vcpus:
                listeners = board.listeners[vcpu]
                listeners.remove(listener)
                if not listeners:
                    del board.listeners[vcpu]
                if (cpu := self._cpus.get(vcpu)) is not None:
                    cpu.watchers -= 1
            for gsi in gsis:
                board.notices.unsubscribe(gsi, listener)

    # State.

    def get_irqchip(self, chip_id: int) -> I8259 | IoapicState:
        """KVM_GET_IRQCHIP; EINVAL for a chip that is none."""
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
        """KVM_SET_IRQCHIP, from a state or the kernel's struct; EINVAL where it is of the wrong length or kind."""
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
            self._cpu(vcpu)
            return self._lapic(vcpu).registers()

    def set_lapic(self, vcpu: int, state: LapicRegisters | bytes) -> None:
        """KVM_SET_LAPIC, from registers or the kernel's struct; EINVAL also where it is of the wrong length."""
        with self._turn:
            cpu = self._cpu(vcpu)
            lapic = self._lapic(vcpu)
            lapic.restore(_state_of(LapicRegisters, lapic_chip.STATE_SIZE, state))
            if self._board.ioapic is not None:
                self._board.ioapic.retrack_rtc(cpu.index)

    def get_pit(self) -> PitState:
        """KVM_GET_PIT2; ENXIO without a PIT."""
        with self._turn:
            return self._pit().state()

    def set_pit(self, state: PitState | bytes) -> None:
        """KVM_SET_PIT2, from a state or the kernel's struct; EINVAL also where it is of the wrong length."""
        with self._turn:
            self._pit().restore(_state_of(PitState, i8254.STATE_SIZE, state))

    def set_pit_reinject(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL; ENXIO without a PIT."""
        with self._turn:
            pit = self._pit()
            if pit.reinject != reinject:
                pit.set_reinject(reinject)
                self._board.notices.changed()

    # All of it.

    def save(self) -> VmState:
        """All that there is to it; Registry.restore makes a VM of it."""
        with self._turn:
            board = self._board
            mode = IRQCHIP_SPLIT if board.split is not None else IRQCHIP_NONE if board.pic is None else IRQCHIP_FULL
            return VmState(
                clock=CLOCK_VIRTUAL if self._clock.virtual else CLOCK_REAL,
                now_ns=self._clock.now(),
                tsc_khz=board.tsc_khz,
                irqchip_mode=mode,
                reserved_gsis=board.split or 0,
                routing=tuple(board.routes),
                chips=saving.save_chips(board),
                pit=saving.save_pit(board),
                vcpus=tuple(saving.save_cpu(board, cpu) for cpu in board.cpus),
                mapped_vcpus=board.apics.mapped,
                sources=tuple(saving.save_source(source) for source in self._sources.values()),
                asserted_gsis=tuple(sorted(self._shared_source.asserted)),
            )

    @classmethod
    def restored(cls, name: str, max_vcpus: int, state: VmState) -> Self:
        """A VM from what was saved of one: EINVAL where none can have had this state. Its clock goes on from there."""
        saving.check_state(state, max_vcpus)
        virtual = state.clock == CLOCK_VIRTUAL
        vm = cls(name, max_vcpus, (VirtualClock if virtual else RealClock)(state.now_ns), state.tsc_khz)
        vm._shared_source.asserted.update(state.asserted_gsis)
        for saved in state.sources:
            source = vm._sources[saved.source] = LineSource(saved.source, saved.client)
            source.detached = True
            source.asserted.update(saved.asserted_gsis)
            source.resampled.update(saved.resampled_gsis)
        with vm._turn:
            saving.restore_board(vm._board, state, vm._sources.values())
            vm._cpus = {cpu.id: cpu for cpu in vm._board.cpus}
        return vm

    # About the VM.

    def describe(self) -> Description:
        """All there is to say of it."""
        with self._turn:
            board = self._board
            return Description(
                name=self.name,
                irqchip_mode="full" if board.pic is not None else "none" if board.split is None else "split",
                pit=board.pit is not None,
                vcpus=list(self._cpus),
                sources=[
                    SourceInfo(
                        source.client, source.number, sorted(source.asserted), source.dropped_events, source.detached
                    )
                    for source in self._sources.values()
                ],
                asserted=sorted(self._shared_source.asserted),
                virtual=self._clock.virtual,
                now=self._clock.now(),
                next_timer=board.alarms.earliest(),
                tsc_khz=board.tsc_khz,
            )

    def attach(self, observer: Observer, on_deleted: Callable[[], None] | None = None) -> None:
        """Tell an observer of everything from now on; on_deleted as in open_source."""
        with self._turn:
            self._observers[observer] = on_deleted
            self._board.observe(combine(list(self._observers)))

    def detach(self, observer: Observer) -> None:
        """The reverse of attach."""
        with self._lock:
            del self._observers[observer]
            self._board.observe(combine(list(self._observers)))

    # Checks.

    def _irqchip(self) -> tuple[PicPair, Ioapic]:
        board = self._board
        if board.pic is None or board.ioapic is None:
            raise self._no_irqchip()
        return board.pic, board.ioapic

    def _pit(self) -> Pit:
        pit = self._board.pit
        if pit is None:
            raise VmError(errno.ENXIO, f"VM {self.name!r} has no PIT; create it first")
        return pit

    def _no_irqchip(self) -> VmError:
        return VmError(errno.ENXIO, f"VM {self.name!r} has no irqchip; create it first")

    def _cpu(self, vcpu: int) -> Cpu:
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _no_vcpu(self, vcpu: int) -> VmError:
        return VmError(errno.ENOENT, f"VM {self.name!r} has no vCPU {vcpu}")

    def _enter(self, vcpu: int) -> Cpu:
        """The vCPU enters its guest, which is when it learns what it has to report at EOI."""
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        self._board.enter(cpu)
        return cpu

    def _lapic(self, vcpu: int, number: int = errno.EINVAL) -> Lapic:
        lapic = self._cpu(vcpu).lapic
        if lapic is None:
            raise VmError(number, f"vCPU {vcpu} of VM {self.name!r} has no local APIC: it came before the irqchip")
        return lapic


def _bad_access(sizes: Sequence[int], limit: int, size: int, address: int, value: int = 0) -> VmError:
    """What is wrong with an access."""
    if size not in sizes:
        return invalid(f"an access of {size} bytes; the sizes are {', '.join(map(str, sizes))}")
    if address > limit:
        return invalid(f"address {address:#x} is out of range: 0 to {limit:#x}")
    return invalid(f"value {value:#x} does not fit into {size} bytes")


def _no_chip(chip_id: int) -> VmError:
    return invalid(f"chip {chip_id} is none; 0 and 1 are the PICs, 2 the IOAPIC")


class _Unpackable(Protocol):
    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


_S = TypeVar("_S", bound=_Unpackable)


def _state_of(kind: type[_S], size: int, state: object) -> _S:
    """A chip's state, unpacked if need be."""
    if isinstance(state, bytes):
        if len(state) != size:
            raise invalid(f"the state is {len(state)} bytes long; this chip's has {size}")
        return kind.unpack(state)
    if not isinstance(state, kind):
        raise invalid("the state is of another kind of chip")
    return state
