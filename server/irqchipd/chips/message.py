"""An interrupt message between MSIs, the IOAPIC and local APICs (Intel SDM vol. 3, 11.6 and 11.11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

BROADCAST: Final = 0xFF  # the xAPIC destination that means every local APIC
X2APIC_BROADCAST: Final = 0xFFFF_FFFF  # the same for an x2APIC


class DeliveryMode:
    """Bits 10:8 of an ICR, an LVT, a redirection entry and an MSI's data."""

    FIXED: Final = 0
    LOWEST_PRIORITY: Final = 1
    SMI: Final = 2
    REMOTE_READ: Final = 3
    NMI: Final = 4
    INIT: Final = 5
    STARTUP: Final = 6
    EXTINT: Final = 7


class Shorthand:
    """Bits 19:18 of an ICR."""

    NONE: Final = 0
    SELF: Final = 1
    ALL_INCLUDING_SELF: Final = 2
    ALL_EXCLUDING_SELF: Final = 3


@dataclass(frozen=True, slots=True)
class Message:
    """A vector or signal, its delivery mode and its destination. KVM: struct kvm_lapic_irq."""

    vector: int
    delivery_mode: int
    destination: int
    logical: bool
    level_triggered: bool
    # For an IPI: bit 14 of the ICR. All other messages assert.
    asserted: bool = True
    shorthand: int = Shorthand.NONE
    # For an MSI: bit 3 of its address, which asks for lowest priority in any delivery mode.
    redirection_hint: bool = False

    @property
    def lowest_priority(self) -> bool:
        """Whether the message goes to one of several destinations. KVM: lapic.h kvm_lowest_prio_delivery."""
        return self.redirection_hint or self.delivery_mode == DeliveryMode.LOWEST_PRIORITY


# The same few registers are decoded again and again, so these functions cache their results.


@lru_cache(maxsize=4096)
def from_redirection(entry: int) -> Message:
    """The message that a redirection entry sends. KVM: ioapic.c ioapic_service."""
    return Message(
        vector=entry & 0xFF,
        delivery_mode=entry >> 8 & 7,
        destination=entry >> 56,
        logical=bool(entry & 1 << 11),
        level_triggered=bool(entry & 1 << 15),
    )


@lru_cache(maxsize=4096)
def from_msi(address: int, data: int) -> Message:
    """The message of an MSI. KVM: irq_comm.c kvm_set_msi_irq; neither 0xFEE nor the vector is checked.

    If APIC IDs have 32 bits, bits 63:40 of the address are the destination's upper bits.
    """
    return Message(
        vector=data & 0xFF,
        delivery_mode=data >> 8 & 7,
        destination=address >> 12 & 0xFF | address >> 40 << 8,
        logical=bool(address & 1 << 2),
        level_triggered=bool(data & 1 << 15),
        redirection_hint=bool(address & 1 << 3),
    )


@lru_cache(maxsize=4096)
def from_icr(low: int, high: int) -> Message:
    """The message that a write of the interrupt command register sends. KVM: lapic.c kvm_icr_to_lapic_irq."""
    return Message(
        vector=low & 0xFF,
        delivery_mode=low >> 8 & 7,
        destination=high >> 24,
        logical=bool(low & 1 << 11),
        level_triggered=bool(low & 1 << 15),
        asserted=bool(low & 1 << 14),
        shorthand=low >> 18 & 3,
    )


@lru_cache(maxsize=4096)
def from_x2apic_icr(low: int, high: int) -> Message:
    """The message that a write of an x2APIC's interrupt command register sends: its destination has 32 bits."""
    return replace(from_icr(low, 0), destination=high)


@lru_cache(maxsize=4096)
def from_lvt(entry: int) -> Message:
    """The message that an LVT entry sends to its own CPU. KVM: lapic.c kvm_apic_local_deliver."""
    return Message(
        vector=entry & 0xFF,
        delivery_mode=entry >> 8 & 7,
        destination=0,
        logical=False,
        level_triggered=bool(entry & 1 << 15),
        shorthand=Shorthand.SELF,
    )
