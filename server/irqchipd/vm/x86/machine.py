"""An x86 VM: PICs, IOAPIC, PIT and local APICs."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, Self, TypeVar

from irqchipd.chips import i8254_state, i8259, lapic_registers
from irqchipd.chips import ioapic as ioapic_chip
from irqchipd.chips.i8254 import Pit
from irqchipd.chips.i8254_state import PitState
from irqchipd.chips.i8259 import I8259, PicPair
from irqchipd.chips.ioapic import Ioapic, IoapicState
from irqchipd.chips.lapic_registers import LapicRegisters
from irqchipd.chips.lapic_timer import KHZ
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Clock, Deadlines, RealClock
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import MAX_VCPUS, Description
from irqchipd.vm.regions import ACCESS_NS
from irqchipd.vm.routing import MsiRoute, PinRoute, Route, check_routes
from irqchipd.vm.saving import clock_of
from irqchipd.vm.snapshot import IRQCHIP_FULL, IRQCHIP_NONE, IRQCHIP_SPLIT, X86, VmState
from irqchipd.vm.x86 import saving
from irqchipd.vm.x86.board import APIC_PAGE, PcBoard
from irqchipd.vm.x86.capabilities import CAPABILITIES, Cap
from irqchipd.vm.x86.capabilities import MAX_VCPU_ID as MAX_VCPU_ID
from irqchipd.vm.x86.routing import PINS, ChipId
from irqchipd.vm.x86.vcpus import X86Vcpus

MAX_TSC_KHZ: Final = 100_000_000
SPLIT_IRQCHIP: Final = Cap.SPLIT_IRQCHIP
PIT_SPEAKER_DUMMY: Final = 1  # KVM_PIT_SPEAKER_DUMMY
_SAVED_MODES: Final = {"none": IRQCHIP_NONE, "full": IRQCHIP_FULL, "split": IRQCHIP_SPLIT}


class X86Vm(X86Vcpus):
    """One x86 VM's irqchip and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(
        self,
        name: str,
        max_vcpus: int = MAX_VCPUS,
        clock: Clock | None = None,
        tsc_khz: int = KHZ,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> None:
        if not 1 <= tsc_khz <= MAX_TSC_KHZ:
            raise invalid(f"a TSC frequency of {tsc_khz} kHz is out of range: use 1 to {MAX_TSC_KHZ} kHz")
        deadlines = deadlines if deadlines is not None else Deadlines()
        agenda = Agenda(name, clock if clock is not None else RealClock(deadlines), deadlines)
        super().__init__(agenda, PcBoard(agenda, tsc_khz), max_vcpus)
        self._pc.regions.access_ns = access_ns

    @property
    def architecture(self) -> int:
        return X86

    @property
    def _irqchip_mode(self) -> str:
        return "full" if self._pc.pic is not None else "split" if self._pc.has_irqchip else "none"

    def check_extension(self, capability: int) -> int:
        return CAPABILITIES.get(capability, 0)

    def unsupported(self, operation: str) -> VmError:
        # KVM: x86.c kvm_arch_vm_ioctl
        return VmError(errno.ENOTTY, f"VM {self.name!r} is an x86 VM, and {operation} is for other architectures")

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EEXIST with an irqchip, or a region at its addresses; EINVAL once a vCPU exists."""
        with self._turn:
            if self._pc.has_irqchip:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip already: use that one")
            if self._cpus:
                raise invalid(f"VM {self.name!r} has vCPUs; the irqchip must be created before them")
            self._pc.regions.check_free(APIC_PAGE)
            self._pc.add_irqchip()

    def create_pit(self, flags: int = PIT_SPEAKER_DUMMY) -> None:
        """KVM_CREATE_PIT2: EEXIST with a PIT, or where its ports are claimed; ENOENT without a PIC."""
        with self._turn:
            if self._pc.pit is not None:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a PIT already: use that one")
            if self._pc.pic is None:
                raise VmError(errno.ENOENT, f"a PIT needs PICs to interrupt: {self._no_irqchip().message}")
            self._pc.add_pit(bool(flags & PIT_SPEAKER_DUMMY))

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU: EEXIST where the id is taken, EINVAL where it is out of range or the VM is full."""
        with self._turn:
            board = self._pc
            ids = board.max_vcpu_ids or MAX_VCPU_ID + 1
            if not 0 <= vcpu < ids:
                raise invalid(f"vCPU id {vcpu} is out of range: use 0 to {ids - 1}")
            if len(self._cpus) >= self._max_vcpus:
                raise invalid(f"VM {self.name!r} has {self._max_vcpus} vCPUs, the most that are allowed")
            if vcpu in self._cpus:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a vCPU {vcpu} already: choose another id")
            board.max_vcpu_ids = ids
            self.add_vcpu(board.add_cpu(vcpu))

    # Routing.

    def _check_routes(self, routes: Sequence[Route]) -> None:
        apics = self._pc.apics
        if not self._pc.has_irqchip:
            raise invalid(f"VM {self.name!r} has no irqchip to route to")
        check_routes(routes, PINS)
        if apics.split is not None and any(isinstance(route, PinRoute) for route in routes):
            raise invalid(f"VM {self.name!r} has a split irqchip: its GSIs lead to MSIs only")
        for route in routes:
            if isinstance(route, MsiRoute) and not apics.can_send(route.address):
                raise invalid(f"GSI {route.gsi} leads to address {route.address:#x}, whose bits 39:32 must be 0")

    def _check_msi_address(self, address: int) -> None:
        if not self._pc.apics.can_send(address):
            raise invalid(f"address {address:#x} of an MSI, whose bits 39:32 must be 0: APIC IDs have 32 bits")

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
                    pic.update()  # KVM: irq.c kvm_vm_ioctl_set_irqchip, for any chip
                case _:
                    raise _no_chip(chip_id)

    def get_lapic(self, vcpu: int) -> LapicRegisters:
        """KVM_GET_LAPIC; EINVAL where the vCPU has no local APIC."""
        with self._turn:
            registers = self._lapic(vcpu).registers()
            if self._lapic(vcpu).x2apic and self._pc.apics.x2apic_format:
                registers.id = vcpu
            return registers

    def set_lapic(self, vcpu: int, state: LapicRegisters | bytes) -> None:
        """KVM_SET_LAPIC, from registers or the kernel's struct; EINVAL for a wrong length, too."""
        with self._turn:
            cpu = self._cpu(vcpu)
            lapic = self._lapic(vcpu)
            registers = _state_of(LapicRegisters, lapic_registers.STATE_SIZE, state)
            if lapic.x2apic and self._pc.apics.x2apic_format and registers.id != lapic.apic_id:
                # KVM: lapic.c kvm_apic_state_fixup
                raise invalid(f"APIC ID {registers.id:#x} is not the ID of vCPU {vcpu}'s x2APIC, {lapic.apic_id:#x}")
            lapic.restore(registers)
            cpu.publish()
            if self._pc.ioapic is not None:
                self._pc.ioapic.retrack_rtc(cpu.index)

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
                self._pc.pins.changed()

    # All of it.

    def _save(self, **common: Any) -> VmState:
        board = self._pc
        return VmState(
            architecture=X86,
            tsc_khz=board.tsc_khz,
            irqchip_mode=_SAVED_MODES[self._irqchip_mode],
            reserved_gsis=board.apics.split or 0,
            chips=saving.save_chips(board),
            pit=board.pit.save(speaker=board.speaker) if board.pit is not None else None,
            vcpus=tuple(cpu.save() for cpu in board.cpus),
            mapped_vcpus=board.apics.mapped,
            **saving.save_capabilities(board),
            **common,
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
        """A VM from a snapshot: EINVAL where no VM can have this state. Its clock continues from the saved time."""
        saving.check_state(state, max_vcpus)
        deadlines = deadlines if deadlines is not None else Deadlines()
        clock = clock_of(state, deadlines)
        vm = cls(name, max_vcpus, clock, state.tsc_khz, access_ns, deadlines)
        with vm._turn:
            saving.restore_board(vm._pc, state)
            vm._resume_sources(state)
            saving.finish_board(vm._pc, state)
            vm._cpus = dict(vm._pc.cpu_of)
        return vm

    # About the VM.

    def describe(self, sources_after: int = 0, room: int | None = None, *, one_at_least: bool = False) -> Description:
        description = super().describe(sources_after, room, one_at_least=one_at_least)
        return replace(description, pit=self._pc.pit is not None, tsc_khz=self._pc.tsc_khz)

    # Checks.

    def _irqchip(self) -> tuple[PicPair, Ioapic]:
        board = self._pc
        if board.pic is None or board.ioapic is None:
            raise self._no_irqchip()
        return board.pic, board.ioapic

    def _pit(self) -> Pit:
        pit = self._pc.pit
        if pit is None:
            if self._pc.pic is None:
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
    """A chip's state, unpacked if it is bytes."""
    if isinstance(state, bytes):
        if len(state) != size:
            raise invalid(f"the state has {len(state)} bytes; this chip's has {size}")
        return kind.unpack(state)
    if not isinstance(state, kind):
        raise invalid("the state is another kind of chip's")
    return state
