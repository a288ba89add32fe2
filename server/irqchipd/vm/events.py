"""The events of which a VM notifies its listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InterruptPending:
    """A vCPU has something to acknowledge now."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class VcpuSignal:
    """A vCPU was sent an NMI, SMI, INIT or start-up; vector is a start-up's page.

    A vCPU that did not wait for a start-up ignores it.
    """

    vcpu: int
    delivery_mode: int
    vector: int
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class GsiAcknowledged:
    """A GSI's interrupt was ended: the kernel's ack notifiers."""

    gsi: int


@dataclass(frozen=True, slots=True)
class GsiMasked:
    """The mask bit of a pin that a GSI leads to has changed: the kernel's mask notifiers."""

    gsi: int
    masked: bool


@dataclass(frozen=True, slots=True)
class GsiResampled:
    """A GSI the listener resamples was acknowledged and went low `count` times."""

    gsi: int
    count: int


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    """With a split irqchip, a vCPU ended an interrupt of the VMM's IOAPIC: KVM_EXIT_IOAPIC_EOI."""

    vcpu: int
    vector: int


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """A vCPU accesses a region of the listener, and waits for the answer to the access of this number."""

    access: int
    vcpu: int
    space: int
    address: int
    size: int
    write: bool
    value: int


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A vCPU wrote to a doorbell."""

    space: int
    address: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class RegionsLost:
    """The listener did not answer an access in time, and has lost all its regions."""

    space: int
    address: int


@dataclass(frozen=True, slots=True)
class VmReset:
    """The VM was reset; reason is the contract's ResetReason."""

    reason: int


Event = (
    InterruptPending
    | VcpuSignal
    | GsiAcknowledged
    | GsiMasked
    | GsiResampled
    | IoapicEoi
    | RegionAccess
    | Doorbell
    | RegionsLost
    | VmReset
)
# Called from any thread, without the VM's lock.
Listener = Callable[[Event], None]
