"""An s390 VM: its creation, routes, the FLIC's attributes and its vCPUs' interrupts. KVM: arch/s390/kvm/kvm-s390.c."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

from irqchipd.chips.s390.adapters import AdapterRoute, check_route
from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.flic import DEVICE_TYPE, MAX_BUFFER, Group
from irqchipd.chips.s390.irq import (
    IRQ_SIZE,
    Irq,
    Kind,
    delivered_data,
    floating_from_parameters,
    local_from_parameters,
    unpack,
)
from irqchipd.chips.s390.local import MAX_CPUS
from irqchipd.chips.s390.pending import Masks
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Clock, Deadlines, RealClock
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import Vm
from irqchipd.vm.regions import ACCESS_NS
from irqchipd.vm.routing import MAX_GSIS, Route, S390Route
from irqchipd.vm.s390 import saving
from irqchipd.vm.s390.board import S390Board, adapter_route
from irqchipd.vm.s390.capabilities import CAPABILITIES, Cap
from irqchipd.vm.s390.cpu import S390Cpu
from irqchipd.vm.saving import clock_of
from irqchipd.vm.snapshot import S390, VmState
from irqchipd.vm.vcpu_state import MpState

MAX_VALUE: Final = 1 << 20  # bytes of an attribute's value
CREATE_DEVICE_TEST: Final = 1  # KVM_CREATE_DEVICE_TEST
FLIC_NUMBER: Final = 0  # the FLIC is the only device
_WORD: Final = (1 << 64) - 1
_T = TypeVar("_T")


class Reset:
    """The resets of a vCPU: KVM_S390_NORMAL_RESET, KVM_S390_INITIAL_RESET and KVM_S390_CLEAR_RESET."""

    NORMAL: Final = 1
    INITIAL: Final = 2
    CLEAR: Final = 3


class S390Vm(Vm):
    """One s390 VM. Every method fails with ENOENT once the VM is deleted."""

    def __init__(
        self,
        name: str,
        max_vcpus: int = MAX_CPUS,
        clock: Clock | None = None,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> None:
        deadlines = deadlines if deadlines is not None else Deadlines()
        agenda = Agenda(name, clock if clock is not None else RealClock(deadlines), deadlines)
        board = S390Board(agenda)
        super().__init__(agenda, board, min(max_vcpus, MAX_CPUS))
        self._s390 = board
        board.regions.access_ns = access_ns

    @property
    def architecture(self) -> int:
        return S390

    @property
    def _irqchip_mode(self) -> str:
        return "full" if self._s390.created else "none"

    @property
    def _device_types(self) -> list[int]:
        return [DEVICE_TYPE] if self._s390.has_device else []

    def unsupported(self, operation: str) -> VmError:
        # KVM: kvm-s390.c kvm_arch_vm_ioctl
        return VmError(errno.ENOTTY, f"VM {self.name!r} is an s390 VM, and {operation} is for other architectures")

    def check_extension(self, capability: int) -> int:
        return CAPABILITIES.get(capability, 0)

    # Creation.

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP: EBUSY for AIS once a vCPU exists. KVM: kvm_vm_ioctl_enable_cap."""
        with self._turn:
            if flags or len(args) > 4:
                raise invalid(f"flags {flags:#x} and {len(args)} args; no flag and at most 4 args are allowed")
            if capability == Cap.S390_IRQCHIP:
                self._s390.can_create = True
            elif capability == Cap.S390_AIS:
                if self._cpus:
                    raise VmError(errno.EBUSY, f"VM {self.name!r} has vCPUs; AIS must be enabled before them")
                self._s390.flic.ais = True
            else:
                raise invalid(
                    f"capability {capability} can't be enabled: use {Cap.S390_IRQCHIP} (KVM_CAP_S390_IRQCHIP)"
                    f" or {Cap.S390_AIS} (KVM_CAP_S390_AIS)"
                )

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EINVAL until KVM_CAP_S390_IRQCHIP is enabled; it may be called again.

        The dummy routing table of Documentation/virt/kvm/api.rst has no entries. Since Linux 6.11 a VM has the table
        from its creation, and a call keeps the routes that were set since.
        """
        with self._turn:
            if not self._s390.can_create:
                raise invalid(
                    f"VM {self.name!r} can't have an irqchip: enable {Cap.S390_IRQCHIP} (KVM_CAP_S390_IRQCHIP) first"
                )
            self._s390.created = True

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU: EEXIST where the id is taken, EINVAL where it is out of range or the VM is full."""
        with self._turn:
            if not 0 <= vcpu < MAX_CPUS:
                raise invalid(f"vCPU id {vcpu} is out of range: use 0 to {MAX_CPUS - 1}")
            if len(self._cpus) >= self._max_vcpus:
                raise invalid(f"VM {self.name!r} has {self._max_vcpus} vCPUs, the most that are allowed")
            if vcpu in self._cpus:
                raise VmError(errno.EEXIST, f"VM {self.name!r} has a vCPU {vcpu} already: choose another id")
            self.add_vcpu(self._s390.add_cpu(vcpu))

    # Routing, and messages.

    def _check_routes(self, routes: Sequence[Route]) -> None:
        """KVM: irqchip.c setup_routing_entry, interrupt.c kvm_set_routing_entry."""
        if len(routes) > MAX_GSIS:
            raise invalid(f"{len(routes)} routing entries; at most {MAX_GSIS} are allowed")
        led: set[int] = set()
        for route in routes:
            if route.gsi >= MAX_GSIS:
                raise invalid(f"GSI {route.gsi} is out of range: use 0 to {MAX_GSIS - 1}")
            if not isinstance(route, S390Route):
                raise invalid(f"GSI {route.gsi} must lead to an adapter: an s390 VM has no pins and no MSIs")
            if route.flags:
                raise invalid(f"GSI {route.gsi}: flags {route.flags:#x} of an adapter; only 0 is allowed")
            if route.gsi in led:
                raise invalid(f"GSI {route.gsi} leads to two adapters; one entry is allowed")
            led.add(route.gsi)
            self._check_memory(route.gsi, adapter_route(route))

    def _check_memory(self, gsi: int, route: AdapterRoute) -> None:
        self._do(lambda: check_route(route))
        for what, bit in (("summary", route.summary), ("indicator", route.indicator)):
            if self._s390.region_at(bit.address) is None:
                raise VmError(
                    errno.EFAULT,
                    f"GSI {gsi}: the {what}'s address {bit.address:#x} is outside memory: register memory there first",
                )

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:  # noqa: ARG002
        """s390's KVM has no KVM_SIGNAL_MSI."""
        raise self.unsupported("signal_msi")

    # The device.

    def create_device(self, kind: int, flags: int) -> int:
        """KVM_CREATE_DEVICE: ENODEV for another kind, EINVAL for a second FLIC. KVM: flic_create."""
        with self._turn:
            if kind != DEVICE_TYPE:
                raise VmError(errno.ENODEV, f"a device of type {kind} can't be made: use {DEVICE_TYPE}, the FLIC")
            if not flags & CREATE_DEVICE_TEST:
                if self._s390.has_device:
                    raise invalid(f"VM {self.name!r} has a FLIC already: use that one")
                self._s390.has_device = True
            return FLIC_NUMBER

    def set_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, data: bytes) -> None:
        """KVM_SET_DEVICE_ATTR of the FLIC: EINVAL for an unknown group. KVM: flic_set_attr."""
        with self._turn:
            self._check_device(device, vcpu)
            self._do(lambda: self._s390.flic.set(group, attr, data))
            if group not in (Group.ADAPTER_REGISTER, Group.ADAPTER_MODIFY):
                self._s390.floating_changed()

    def get_device_attr(
        self,
        device: int | None,
        vcpu: int | None,
        group: int,
        attr: int,
        data: bytes,  # noqa: ARG002 - attr has its length
    ) -> bytes:
        """KVM_GET_DEVICE_ATTR of the FLIC: EINVAL for an unknown group. KVM: flic_get_attr."""
        with self._turn:
            self._check_device(device, vcpu)
            needed = len(self._s390.flic.floating) * IRQ_SIZE
            if group == Group.GET_ALL_IRQS and MAX_VALUE < needed <= attr <= MAX_BUFFER:  # before the list is made
                raise VmError(
                    errno.E2BIG,
                    f"the interrupts need {needed} bytes, and at most {MAX_VALUE} fit into a message: let vCPUs take"
                    " some, or clear them",
                )
            return self._do(lambda: self._s390.flic.get(group, attr))

    def has_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int) -> None:  # noqa: ARG002
        """KVM_HAS_DEVICE_ATTR of the FLIC: ENXIO for an unknown group. KVM: flic_has_attr."""
        with self._turn:
            self._check_device(device, vcpu)
            if not self._s390.flic.has(group):
                raise VmError(errno.ENXIO, f"the FLIC has no group {group}; it has 1 to 11")

    def _check_device(self, device: int | None, vcpu: int | None) -> None:
        if vcpu is not None:  # KVM: kvm-s390.c kvm_arch_vcpu_ioctl
            self._cpu(vcpu)
            raise VmError(errno.ENOTTY, f"vCPU {vcpu} of VM {self.name!r} has no attributes: an s390 vCPU has none")
        if not self._s390.has_device or device != FLIC_NUMBER:
            raise VmError(errno.EBADF, f"VM {self.name!r} has no device {device}; create it first")

    # Interrupts.

    def s390_interrupt(self, kind: int, parameter: int, parameter64: int, vcpu: int | None = None) -> None:
        """KVM_S390_INTERRUPT, of the VM or of a vCPU. KVM: kvm_s390_inject_vm, s390int_to_s390irq."""
        with self._turn:
            if vcpu is not None:
                self._add_local(self._cpu(vcpu), self._do(lambda: local_from_parameters(kind, parameter, parameter64)))
                return
            irq = self._do(lambda: floating_from_parameters(kind, parameter, parameter64))
            self._do(lambda: self._s390.flic.floating.add(irq))
            if self._s390.observer is not None:
                self._s390.observer.kvm_s390_inject_vm(kind, parameter, parameter64)
            self._s390.floating_changed()

    def s390_irq(self, vcpu: int, irq: bytes) -> None:
        """KVM_S390_IRQ: a vCPU's own interrupt, as struct kvm_s390_irq."""
        with self._turn:
            if len(irq) != IRQ_SIZE:
                raise invalid(f"an interrupt has {len(irq)} bytes; struct kvm_s390_irq has {IRQ_SIZE}")
            self._add_local(self._cpu(vcpu), self._do(lambda: unpack(irq)))

    def _add_local(self, cpu: S390Cpu, irq: Irq) -> None:
        self._do(lambda: cpu.local.add(irq))
        if self._s390.observer is not None:
            self._s390.observer.kvm_s390_inject_vcpu(cpu.id, irq.kind, *delivered_data(irq))
        cpu.priorities_changed()

    def get_irq_state(self, vcpu: int, length: int) -> bytes:
        """KVM_S390_GET_IRQ_STATE: ENOBUFS where the vCPU's own interrupts do not fit into a length."""
        with self._turn:
            cpu = self._cpu(vcpu)
            return self._do(lambda: cpu.local.state(length))

    def set_irq_state(self, vcpu: int, irqs: bytes) -> None:
        """KVM_S390_SET_IRQ_STATE: EBUSY where something is pending."""
        with self._turn:
            cpu = self._cpu(vcpu)
            self._do(lambda: cpu.local.set_state(irqs))
            cpu.priorities_changed()

    # The CPU side.

    def set_masks(self, vcpu: int, masks: Masks) -> None:
        """Set the masks of the guest's PSW and control registers: kvm_run's psw_mask, and KVM_SET_SREGS."""
        with self._turn:
            cpu = self._cpu(vcpu)
            for value in (masks.psw, masks.cr0, masks.cr6, masks.cr14):
                if not 0 <= value <= _WORD:
                    raise invalid(f"mask {value:#x} does not fit into 64 bits")
            cpu.masks = masks
            cpu.priorities_changed()

    def get_masks(self, vcpu: int) -> Masks:
        """The masks, as set_masks set them."""
        with self._turn:
            return self._cpu(vcpu).masks

    def take_irq(self, vcpu: int) -> Irq | None:
        """Take the first interrupt that the vCPU's masks allow, or None.

        The vCPU's process then exchanges the PSW, and sets the new masks. KVM: kvm_s390_deliver_pending_interrupts.
        """
        with self._turn:
            cpu = self._enter(vcpu)
            irq = cpu.take()
            if irq is None:
                return None
            if irq.kind == Kind.SIGP_STOP:
                self._stop(cpu, irq)
            elif self._s390.observer is not None:
                self._s390.observer.kvm_s390_deliver_interrupt(vcpu, irq.kind, *delivered_data(irq))
            self._s390.floating_changed()
            return irq

    def _stop(self, cpu: S390Cpu, irq: Irq) -> None:
        """KVM: intercept.c handle_stop; where the VMM controls run states, the stop pends until the VMM sets one."""
        if self._s390.user_controls:
            cpu.local.add(irq)
        else:
            cpu.local.stopped = True

    def reset_vcpu(self, vcpu: int, kind: int) -> None:
        """KVM_S390_NORMAL_RESET, KVM_S390_INITIAL_RESET or KVM_S390_CLEAR_RESET."""
        with self._turn:
            cpu = self._cpu(vcpu)
            if kind == Reset.NORMAL:
                cpu.clear()
            elif kind in (Reset.INITIAL, Reset.CLEAR):
                cpu.initialise()
            else:
                raise invalid(f"reset {kind} is invalid; 1 is normal, 2 initial, 3 clear")

    def get_mp_state(self, vcpu: int) -> MpState:
        """KVM_GET_MP_STATE. As in KVM, the VMM controls run states from now on."""
        with self._turn:
            cpu = self._cpu(vcpu)
            self._s390.user_controls = True
            return MpState.STOPPED if cpu.local.stopped else MpState.OPERATING

    def set_mp_state(self, vcpu: int, state: int) -> None:
        """KVM_SET_MP_STATE: ENXIO for a state that KVM does not support. KVM: kvm_arch_vcpu_ioctl_set_mpstate.

        The VMM controls run states from now on, even if the state is refused, as in KVM.
        """
        with self._turn:
            cpu = self._cpu(vcpu)
            if state not in (MpState.STOPPED, MpState.OPERATING):
                raise VmError(
                    errno.ENXIO,
                    f"run state {state} is invalid for an s390 vCPU: use {int(MpState.STOPPED)}, stopped, or"
                    f" {int(MpState.OPERATING)}, operating",
                )
            self._s390.user_controls = True
            cpu.local.stopped = state == MpState.STOPPED
            if cpu.local.stopped:
                cpu.local.clear_stop()

    # All of it.

    def _save(self, **common: Any) -> VmState:
        return VmState(architecture=S390, **saving.save(self._s390), **common)

    @classmethod
    def restored(
        cls, name: str, max_vcpus: int, state: VmState, access_ns: int = ACCESS_NS, deadlines: Deadlines | None = None
    ) -> Self:
        """A VM from a snapshot: EINVAL where no VM can have this state. Its clock continues from the saved time."""
        saving.check_state(state, min(max_vcpus, MAX_CPUS))
        deadlines = deadlines if deadlines is not None else Deadlines()
        clock = clock_of(state, deadlines)
        vm = cls(name, max_vcpus, clock, access_ns, deadlines)
        with vm._turn:
            saving.restore_board(vm._s390, state)
            vm._resume_sources(state)
            vm._cpus = dict(vm._s390.cpu_of)
        return vm

    # Checks.

    def _do(self, call: Callable[[], _T]) -> _T:
        """Call a chip; a refusal becomes a VmError."""
        try:
            return call()
        except RefusedError as refused:
            raise VmError(refused.number, refused.message) from None

    def _cpu(self, vcpu: int) -> S390Cpu:
        cpu = self._s390.cpu_of.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _enter(self, vcpu: int) -> S390Cpu:
        """KVM: kvm_arch_vcpu_ioctl_run; a stopped vCPU starts, unless the VMM controls run states: EINVAL."""
        cpu = self._cpu(vcpu)
        if cpu.local.stopped:
            if self._s390.user_controls:
                raise invalid(f"vCPU {vcpu} of VM {self.name!r} is stopped: set its run state to operating first")
            cpu.local.stopped = False
        return cpu

    def _check_halt(self, vcpu: int) -> None:
        cpu = self._enter(vcpu)
        if cpu.waits_for_ever:
            raise VmError(
                errno.EOPNOTSUPP,
                f"vCPU {vcpu} of VM {self.name!r} is in a disabled wait: its PSW enables no interrupt; set its masks",
            )
