"""Capabilities, by their numbers in <linux/kvm.h>: what KVM_CHECK_EXTENSION answers, and KVM_ENABLE_CAP changes."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import QUIRKS
from irqchipd.chips.lapic_timer import MAX_BUS_NS
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import MAX_VCPUS, Vm
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.x86.board import APIC_PAGE, PcBoard
from irqchipd.vm.x86.cpu import Cpu

MAX_VCPU_ID: Final = 4095  # KVM_MAX_VCPU_IDS less one; only xAPIC IDs up to 254 can be addressed


class Cap:
    """The capabilities that can be enabled."""

    DISABLE_QUIRKS: Final = 116
    SPLIT_IRQCHIP: Final = 121
    MAX_VCPU_ID: Final = 128
    X2APIC_API: Final = 129
    DISABLE_QUIRKS2: Final = 213
    X86_APIC_BUS_CYCLES_NS: Final = 237


# Flags of X2APIC_API: APIC IDs have 32 bits in GET_LAPIC, SET_LAPIC and MSIs; and FFh is an ID, not all x2APICs.
X2APIC_32BIT_IDS: Final = 1 << 0
X2APIC_NO_BROADCAST_QUIRK: Final = 1 << 1
X2APIC_API: Final = X2APIC_32BIT_IDS | X2APIC_NO_BROADCAST_QUIRK

CAPABILITIES: Final = {
    0: 1,  # KVM_CAP_IRQCHIP
    1: 1,  # KVM_CAP_HLT
    9: MAX_VCPUS,  # KVM_CAP_NR_VCPUS
    11: 1,  # KVM_CAP_PIT
    14: 1,  # KVM_CAP_MP_STATE
    22: 1,  # KVM_CAP_USER_NMI
    24: 1,  # KVM_CAP_REINJECT_CONTROL
    25: MAX_GSIS,  # KVM_CAP_IRQ_ROUTING
    26: 1,  # KVM_CAP_IRQ_INJECT_STATUS
    32: 1,  # KVM_CAP_IRQFD: over the port
    33: 1,  # KVM_CAP_PIT2
    34: 1,  # KVM_CAP_SET_BOOT_CPU_ID
    35: 1,  # KVM_CAP_PIT_STATE2
    36: 1,  # KVM_CAP_IOEVENTFD: doorbells; with eventfds over the port
    41: 1,  # KVM_CAP_VCPU_EVENTS
    61: 1,  # KVM_CAP_GET_TSC_KHZ
    66: MAX_VCPUS,  # KVM_CAP_MAX_VCPUS
    72: 1,  # KVM_CAP_TSC_DEADLINE_TIMER
    77: 1,  # KVM_CAP_SIGNAL_MSI
    82: 1,  # KVM_CAP_IRQFD_RESAMPLE: over the port; elsewhere resampled GSIs
    97: 1,  # KVM_CAP_IOAPIC_POLARITY_IGNORED
    98: 1,  # KVM_CAP_ENABLE_CAP_VM
    Cap.DISABLE_QUIRKS: 1,
    Cap.SPLIT_IRQCHIP: 1,
    Cap.MAX_VCPU_ID: MAX_VCPU_ID + 1,  # one more than the highest
    Cap.X2APIC_API: X2APIC_API,
    Cap.DISABLE_QUIRKS2: QUIRKS,
    Cap.X86_APIC_BUS_CYCLES_NS: 1,
}


class Capabilities(Vm):
    """The operations that change what a VM can do. KVM: x86.c kvm_vm_ioctl_enable_cap."""

    def __init__(self, agenda: Agenda, board: PcBoard, max_vcpus: int) -> None:
        super().__init__(agenda, board, max_vcpus)
        self._pc = board

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP."""
        with self._turn:
            if flags or len(args) > 4:
                raise invalid(f"flags {flags:#x} and {len(args)} args; no flag and at most 4 args are allowed")
            argument = args[0] if args else 0
            match capability:
                case Cap.DISABLE_QUIRKS:  # unknown quirks are ignored
                    self._pc.apics.quirks &= ~argument
                case Cap.SPLIT_IRQCHIP:
                    self._split_irqchip(argument)
                case Cap.MAX_VCPU_ID:
                    self._limit_vcpu_ids(argument)
                case Cap.X2APIC_API:
                    self._enable_x2apic_api(argument)
                case Cap.DISABLE_QUIRKS2:
                    if argument & ~QUIRKS:
                        raise invalid(f"quirks {argument:#x} are invalid; use a subset of {QUIRKS:#x}")
                    self._pc.apics.quirks &= ~argument
                case Cap.X86_APIC_BUS_CYCLES_NS:
                    self._set_apic_bus(argument)
                case _:
                    numbers = ", ".join(str(number) for name, number in vars(Cap).items() if name.isupper())
                    raise invalid(f"capability {capability} can't be enabled: use one of {numbers}")

    def _split_irqchip(self, reserved: int) -> None:
        board = self._pc
        if reserved > MAX_GSIS:
            raise invalid(f"{reserved} GSIs for the VMM's IOAPIC; at most {MAX_GSIS} are allowed")
        if board.has_irqchip or self._cpus:
            raise VmError(errno.EEXIST, f"VM {self.name!r} has an irqchip or vCPUs: split the irqchip first")
        board.regions.check_free(APIC_PAGE)
        board.split_irqchip(reserved & 0xFF)  # KVM: kvm_host.h nr_reserved_ioapic_pins, a u8: 4096 becomes 0

    def _limit_vcpu_ids(self, count: int) -> None:
        """Limit the number of vCPU ids, once. The first vCPU also fixes the limit."""
        board = self._pc
        if count > MAX_VCPU_ID + 1:
            raise invalid(f"{count} vCPU ids; at most {MAX_VCPU_ID + 1} are allowed")
        if board.boot_vcpu > count:
            raise invalid(f"{count} vCPU ids are too few for the boot CPU's id, {board.boot_vcpu}")
        if board.max_vcpu_ids not in (0, count):
            raise invalid(f"VM {self.name!r} has {board.max_vcpu_ids} vCPU ids; the number can't be changed again")
        board.max_vcpu_ids = count

    def _enable_x2apic_api(self, flags: int) -> None:
        if flags & ~X2APIC_API:
            raise invalid(f"flags {flags:#x} of the x2APIC API are invalid; use a subset of {X2APIC_API:#x}")
        self._pc.enable_x2apic_api(
            ids=bool(flags & X2APIC_32BIT_IDS), no_broadcast_quirk=bool(flags & X2APIC_NO_BROADCAST_QUIRK)
        )

    def _set_apic_bus(self, nanoseconds: int) -> None:
        if not 1 <= nanoseconds <= MAX_BUS_NS:
            raise invalid(f"a cycle of {nanoseconds} ns of the APIC timers' bus is invalid; use 1 to {MAX_BUS_NS}")
        if not self._pc.has_irqchip:
            raise VmError(errno.ENXIO, f"VM {self.name!r} has no irqchip, and so no APIC timers; create it first")
        if self._cpus:
            raise invalid(f"VM {self.name!r} has vCPUs; the bus must be set before them")
        self._pc.apic_bus_ns = nanoseconds

    def set_boot_vcpu(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID: EBUSY once a vCPU exists, EINVAL where no vCPU can have the id."""
        with self._turn:
            board = self._pc
            if self._cpus:
                raise VmError(errno.EBUSY, f"VM {self.name!r} has vCPUs; the boot CPU must be chosen before them")
            limit = board.max_vcpu_ids or MAX_VCPU_ID + 1
            if not 0 <= vcpu <= limit:  # KVM: x86.c kvm_arch_vm_ioctl allows one id too many
                raise invalid(f"vCPU {vcpu} can't be the boot CPU: ids are 0 to {limit - 1}")
            board.boot_vcpu = vcpu

    # Checks.

    def _cpu(self, vcpu: int) -> Cpu:
        cpu = self._pc.cpu_of.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _enter(self, vcpu: int) -> Cpu:
        cpu = self._pc.cpu_of.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        if cpu.scanned != self._pc.apics.scans:
            cpu.enter()
        return cpu

    def _lapic(self, vcpu: int, number: int = errno.EINVAL) -> Lapic:
        lapic = self._cpu(vcpu).lapic
        if lapic is None:
            raise VmError(number, f"vCPU {vcpu} of VM {self.name!r} has no local APIC: it is older than the irqchip")
        return lapic

    def _no_irqchip(self) -> VmError:
        if self._pc.apics.split is not None:
            return VmError(errno.ENXIO, f"VM {self.name!r} has a split irqchip: its PICs, IOAPIC and PIT are the VMM's")
        if self._cpus:
            too_late = "it must be created before the vCPUs: make a new VM"
            return VmError(errno.ENXIO, f"VM {self.name!r} has no irqchip; {too_late}")
        return VmError(errno.ENXIO, f"VM {self.name!r} has no irqchip; create it first")
