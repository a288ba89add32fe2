"""A virtual machine's interrupt controller: the only place where its state changes.

Every public method may be called from any thread. Each is one turn: it takes the VM's lock, checks, changes, works out
whom to tell, lets go of the lock, and tells them.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from irqchipd.chips import i8259
from irqchipd.chips import ioapic as ioapic_chip
from irqchipd.chips import lapic as lapic_chip
from irqchipd.chips.i8259 import I8259, PicPair
from irqchipd.chips.ioapic import Ioapic, IoapicState
from irqchipd.chips.lapic import Lapic, LapicRegisters
from irqchipd.observe.observer import Observer, combine
from irqchipd.vm.board import Board, Cpu
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.routing import MAX_GSIS, MSI_VALID_DEVID, ChipId, Route, check_routes

MAX_VCPU_ID = 254  # the xAPIC IDs that can be addressed: 255 is the broadcast
MAX_VCPUS = MAX_VCPU_ID + 1
MAX_PORT = 0xFFFF
MAX_ADDRESS = (1 << 64) - 1
PIO_SIZES = (1, 2, 4)
MMIO_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class InterruptPending:
    """A vCPU has something to acknowledge now."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class VcpuSignal:
    """A vCPU was sent an NMI, SMI, INIT or start-up; vector is a start-up's page."""

    vcpu: int
    delivery_mode: int
    vector: int


Event = InterruptPending | VcpuSignal
Listener = Callable[[Event], None]


class LineSource:
    """Something that drives lines: source 0 is shared by all, every other is one Session's.

    Its fields are for others to read, except dropped_events, which its Session counts.
    """

    __slots__ = ("asserted", "client", "closed", "dropped_events", "number", "on_deleted")

    def __init__(self, number: int, client: str, on_deleted: Callable[[], None] | None = None) -> None:
        self.number = number
        self.client = client
        self.on_deleted = on_deleted
        # The GSIs that it drives high.
        self.asserted: set[int] = set()
        self.dropped_events = 0
        self.closed = False


class _Turn:
    """A VM's lock, held for one operation; whom to tell is worked out under it, and told without it."""

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
        board = vm._board
        outbox = vm._settle() if board.touched or board.signals else ()
        vm._lock.release()
        for listener, event in outbox:
            listener(event)


class Vm:
    """One VM's irqchip and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(self, name: str, max_vcpus: int = MAX_VCPUS) -> None:
        self.name = name
        self._max_vcpus = max_vcpus
        self._lock = threading.Lock()
        self._turn = _Turn(self)
        self._deleted = False
        self._board = Board()
        self._cpus: dict[int, Cpu] = {}
        self._shared_source = LineSource(0, "")
        self._sources: dict[int, LineSource] = {}
        self._listeners: dict[int, list[Listener]] = {}
        self._observers: dict[Observer, Callable[[], None] | None] = {}

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EEXIST where there is one, EINVAL once a vCPU exists; it is done whole or not at all."""
        with self._turn:
            if self._board.pic is not None:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip")
            if self._cpus:
                raise invalid(f"VM {self.name!r} has vCPUs; the irqchip must be created before them")
            self._board.add_irqchip()

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
            cpu.watchers = len(self._listeners.get(vcpu, ()))
            cpu.priorities_changed()  # the PIC may be asking already

    def delete(self) -> None:
        """The VM is no more; the holders of its line sources and its observers are told."""
        with self._turn:
            self._deleted = True
            holders = [source.on_deleted for source in self._sources.values()] + list(self._observers.values())
        for on_deleted in holders:
            if on_deleted is not None:
                on_deleted()

    # Lines.

    def irq_line(self, gsi: int, level: bool, source: LineSource | None = None) -> int:
        """KVM_IRQ_LINE_STATUS from a line source, by default the shared one: its status, -1 for a GSI with no route."""
        with self._turn:
            if self._board.pic is None:
                raise self._no_irqchip()
            if source is None:
                source = self._shared_source
            elif source.closed:
                raise VmError(errno.ENOENT, f"line source {source.number} has been closed")
            if not level:
                source.asserted.discard(gsi)
            elif gsi < MAX_GSIS:
                source.asserted.add(gsi)
            return self._board.set_irq(gsi, 1 if level else 0, 1 << source.number)

    def open_source(self, client: str, on_deleted: Callable[[], None] | None = None) -> LineSource:
        """A new line source; on_deleted is called, from any thread, when the VM is deleted under it."""
        with self._turn:
            number = 1
            while number in self._sources:
                number += 1
            source = self._sources[number] = LineSource(number, client, on_deleted)
            return source

    def close_source(self, source: LineSource) -> None:
        """A line source is no more: its levels drop. Closing one twice, or of a deleted VM, does nothing."""
        with suppress(VmError), self._turn:
            if self._sources.get(source.number) is source:
                del self._sources[source.number]
                source.closed = True
                source.asserted.clear()
                self._board.drop_source(1 << source.number)

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: how many local APICs took it, or -1; EINVAL without an irqchip or for an unknown flag."""
        with self._turn:
            if self._board.pic is None:
                raise invalid(f"VM {self.name!r} has no irqchip to signal an MSI to")
            if flags & ~MSI_VALID_DEVID:
                raise invalid(f"flags {flags:#x} of an MSI; 0 or {MSI_VALID_DEVID} are allowed")
            return self._board.signal_msi(address & 0xFFFF_FFFF, data)

    def set_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the table, or EINVAL and keep it."""
        with self._turn:
            if self._board.pic is None:
                raise invalid(f"VM {self.name!r} has no irqchip to route to")
            check_routes(routes)
            self._board.set_routes(tuple(routes))

    def routing(self) -> Sequence[Route]:
        """The routing table as it was set."""
        with self._turn:
            self._irqchip()
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

    # The CPU side.

    def ack_interrupt(self, vcpu: int, pic: bool = True, lapic: bool = True) -> tuple[int, bool] | None:
        """INTA: accept what the vCPU would take now, and return the vector and whether the PIC gave it, or None.

        The PIC comes first, where the local APIC passes it on. KVM: irq.c kvm_cpu_get_interrupt.
        """
        with self._turn:
            board = self._board
            cpu = self._enter(vcpu)
            chip = self._lapic(vcpu, errno.ENXIO)
            from_pic = pic and cpu.has_extint()
            if from_pic:
                assert board.pic is not None
                vector = board.pic.acknowledge()
            else:
                vector = chip.acknowledge() if lapic else -1
            if cpu.watchers:
                board.touched.add(cpu)
            if vector < 0:
                return None
            if board.observer is not None:
                board.observer.kvm_inj_virq(vcpu, vector)
            return vector, from_pic

    def subscribe(self, vcpus: Sequence[int], listener: Listener) -> None:
        """Tell a listener, from any thread, what happens to some vCPUs, and at once where they have an interrupt."""
        pending = []
        with self._turn:
            for vcpu in vcpus:
                self._listeners.setdefault(vcpu, []).append(listener)
                cpu = self._cpus.get(vcpu)
                if cpu is not None:
                    cpu.watchers += 1
                    cpu.ready = cpu.has_interrupt()
                    if cpu.ready:
                        pending.append(InterruptPending(vcpu))
        for event in pending:
            listener(event)

    def unsubscribe(self, vcpus: Sequence[int], listener: Listener) -> None:
        """The reverse of subscribe."""
        with self._lock:
            for vcpu in vcpus:
                listeners = self._listeners[vcpu]
                listeners.remove(listener)
                if not listeners:
                    del self._listeners[vcpu]
                if (cpu := self._cpus.get(vcpu)) is not None:
                    cpu.watchers -= 1

    def _settle(self) -> list[tuple[Listener, Event]]:
        """Whom to tell what, now that an operation is done: of interrupts, when there come to be some to take."""
        board = self._board
        outbox: list[tuple[Listener, Event]] = []
        for cpu in board.touched:
            was_ready, cpu.ready = cpu.ready, cpu.has_interrupt()
            if cpu.ready and not was_ready:
                outbox.extend((listener, InterruptPending(cpu.id)) for listener in self._listeners.get(cpu.id, ()))
        board.touched.clear()
        for cpu, delivery_mode, vector in board.signals:
            signal = VcpuSignal(cpu.id, delivery_mode, vector)
            outbox.extend((listener, signal) for listener in self._listeners.get(cpu.id, ()))
        board.signals.clear()
        return outbox

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
            assert self._board.ioapic is not None
            self._board.ioapic.retrack_rtc(cpu.index)

    # About the VM.

    def has_irqchip(self) -> bool:
        """Whether there is an irqchip."""
        with self._turn:
            return self._board.pic is not None

    def vcpus(self) -> list[int]:
        """The vCPUs' ids, in order of creation."""
        with self._turn:
            return list(self._cpus)

    def sources(self) -> list[tuple[str, int, list[int], int]]:
        """Of every line source but the shared one: client, number, the GSIs it drives high, how many events it lost."""
        with self._turn:
            return [
                (source.client, source.number, sorted(source.asserted), source.dropped_events)
                for source in self._sources.values()
            ]

    def asserted(self) -> list[int]:
        """The GSIs that the shared source drives high, ascending."""
        with self._turn:
            return sorted(self._shared_source.asserted)

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
        if cpu.scanned != self._board.generation:
            self._board.scan(cpu)
        return cpu

    def _lapic(self, vcpu: int, number: int = errno.EINVAL) -> Lapic:
        lapic = self._cpus[vcpu].lapic
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
