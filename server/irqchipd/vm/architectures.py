"""The architectures that a VM can have. This is the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.lapic_timer import KHZ
from irqchipd.vm.arm64.capabilities import capabilities as arm64_capabilities
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.clock import Clock, Deadlines
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import Vm
from irqchipd.vm.s390.capabilities import CAPABILITIES as S390_CAPABILITIES
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.snapshot import ARM64, S390, X86, VmState
from irqchipd.vm.x86.capabilities import CAPABILITIES
from irqchipd.vm.x86.machine import X86Vm


@dataclass(frozen=True, slots=True)
class Limits:
    """The daemon's limits for every VM: vCPUs, and the nanoseconds that a region's owner has for an access."""

    max_vcpus: int
    access_ns: int
    deadlines: Deadlines


@dataclass(frozen=True, slots=True)
class Gic:
    """The GIC of an arm64 VM's host: its version, its number of list registers, and of priority bits."""

    version: int = 0
    list_registers: int = 0
    priority_bits: int = 0


_USUAL_GIC: Final = Gic()


@dataclass(frozen=True, slots=True)
class Properties:
    """What a client may choose for a new VM, besides its clock; 0 is an architecture's usual value."""

    tsc_khz: int = 0  # x86
    gic: Gic = _USUAL_GIC  # arm64


@dataclass(frozen=True, slots=True)
class Architecture:
    """How an architecture's VMs are made, and what KVM_CHECK_EXTENSION answers."""

    name: str
    make: Callable[[str, Clock, Limits, Properties], Vm]
    restore: Callable[[str, VmState, Limits], Vm]
    capabilities: Callable[[Gic], Mapping[int, int]]


def _check_no_gic(properties: Properties) -> None:
    if properties.gic != _USUAL_GIC:
        raise invalid("gic is for arm64 VMs: choose that architecture, or leave gic out")


def _check_no_tsc(properties: Properties) -> None:
    if properties.tsc_khz:
        raise invalid("tsc_khz is for x86 VMs: choose that architecture, or leave tsc_khz out")


def _make_x86(name: str, clock: Clock, limits: Limits, properties: Properties) -> Vm:
    _check_no_gic(properties)
    tsc_khz = properties.tsc_khz or KHZ
    return X86Vm(name, limits.max_vcpus, clock, tsc_khz, limits.access_ns, limits.deadlines)


def _make_arm64(name: str, clock: Clock, limits: Limits, properties: Properties) -> Vm:
    _check_no_tsc(properties)
    gic = properties.gic
    return Arm64Vm(
        name,
        limits.max_vcpus,
        clock,
        gic.version,
        gic.list_registers,
        gic.priority_bits,
        limits.access_ns,
        limits.deadlines,
    )


def _restore_arm64(name: str, state: VmState, limits: Limits) -> Vm:
    return Arm64Vm.restored(name, limits.max_vcpus, state, limits.access_ns, limits.deadlines)


def _arm64_capabilities(gic: Gic) -> Mapping[int, int]:
    return arm64_capabilities(gic.version)


def _restore_x86(name: str, state: VmState, limits: Limits) -> Vm:
    return X86Vm.restored(name, limits.max_vcpus, state, limits.access_ns, limits.deadlines)


def _make_s390(name: str, clock: Clock, limits: Limits, properties: Properties) -> Vm:
    _check_no_gic(properties)
    _check_no_tsc(properties)
    return S390Vm(name, limits.max_vcpus, clock, limits.access_ns, limits.deadlines)


def _restore_s390(name: str, state: VmState, limits: Limits) -> Vm:
    return S390Vm.restored(name, limits.max_vcpus, state, limits.access_ns, limits.deadlines)


ARCHITECTURES: Final[dict[int, Architecture]] = {
    X86: Architecture("x86", _make_x86, _restore_x86, lambda _: CAPABILITIES),
    ARM64: Architecture("arm64", _make_arm64, _restore_arm64, _arm64_capabilities),
    S390: Architecture("s390", _make_s390, _restore_s390, lambda _: S390_CAPABILITIES),
}


def architecture(number: int) -> Architecture:
    """The architecture of the contract's number; 0 is x86. EINVAL for an invalid number."""
    found = ARCHITECTURES.get(number or X86)
    if found is None:
        names = ", ".join(f"{number} {known.name}" for number, known in ARCHITECTURES.items())
        raise invalid(f"architecture {number} is invalid; there are {names}")
    return found


def check_extension(number: int, gic: Gic, capability: int) -> int:
    """KVM_CHECK_EXTENSION on /dev/kvm of an architecture's host: a capability's value, or 0.

    EINVAL for a capability that only a VM answers for. KVM: arm.c kvm_vm_ioctl_check_extension, KVM_CAP_MSI_DEVID.
    """
    value = architecture(number).capabilities(gic).get(capability, 0)
    if value < 0:
        raise VmError(-value, f"only a VM answers for capability {capability}: ask for it on a VM")
    return value
