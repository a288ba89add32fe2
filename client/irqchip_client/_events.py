"""What streams tell: a Session's events, and a Watch's."""

from __future__ import annotations

from dataclasses import dataclass

from irqchip.records import ACCESS, DOORBELL, EVENT, NUMBERS
from irqchip.v1 import irqchip_pb2 as pb

from ._model import ResetReason, SignalKind, Space


@dataclass(frozen=True, slots=True)
class InterruptPending:
    """A vCPU has an interrupt to take. An unread one stands for any number: acknowledge until there is none left."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class VcpuSignal:
    """A vCPU was sent something other than an interrupt. It waits until it is taken: by take_signal(), or a halt.

    An NMI or SMI to a vCPU that waits for INIT or SIPI stays until that has started; an INIT loses what waits.
    """

    vcpu: int
    kind: SignalKind
    vector: int  # Of a SIPI, the start page (the start address is vector << 12); otherwise 0.
    ignored: bool = False  # Of a SIPI: the vCPU did not wait for one, and does not take it.


@dataclass(frozen=True, slots=True)
class GsiAcknowledged:
    """The guest ended a GSI's interrupt: the kernel's ack notifiers. Unread ones add up."""

    gsi: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class GsiMasked:
    """The mask bit of a pin that a GSI leads to has changed: the kernel's mask notifiers. The last unread counts."""

    gsi: int
    masked: bool


@dataclass(frozen=True, slots=True)
class GsiResampled:
    """A GSI that the Session resamples was acknowledged, and has fallen: raise it if the device still asks.

    KVM's resamplefd. Unread ones add up.
    """

    gsi: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    """With a split irqchip, a vCPU ended an interrupt of the VMM's IOAPIC. An unread one stands for any number."""

    vcpu: int
    vector: int


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """Events were lost here, because they were not read in time."""

    count: int


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """A vCPU accesses a region of the Session's, and waits: complete_access() answers, by this number."""

    access: int
    vcpu: int
    space: Space
    address: int
    size: int  # Bytes.
    write: bool
    data: int = 0  # What is written.


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A vCPU wrote to a doorbell of the Session's. The same write may be told once, with how often it was made."""

    space: Space
    address: int
    size: int  # Bytes.
    data: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class RegionsLost:
    """The Session did not answer an access in time, to this address first: its regions went. Register them again."""

    space: Space
    address: int


@dataclass(frozen=True, slots=True)
class VmReset:
    """The VM was reset: whoever has a part of it resets that. Of unread ones the last counts.

    It comes in order with RegionAccesses: those behind it are of the guest that has begun anew.
    """

    reason: ResetReason = ResetReason.UNSPECIFIED


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
    | EventsDropped
)


def event_from_proto(message: pb.Event) -> Event | None:
    """None for a kind of event that this version does not know, and so did not subscribe to."""
    match message.WhichOneof("event"):
        case "interrupt_pending":
            return InterruptPending(message.interrupt_pending.vcpu)
        case "vcpu_signal":
            sent = message.vcpu_signal
            return VcpuSignal(sent.vcpu, SignalKind(sent.signal.kind), sent.signal.vector, sent.ignored)
        case "gsi_acknowledged":
            return GsiAcknowledged(message.gsi_acknowledged.gsi, message.gsi_acknowledged.count)
        case "gsi_masked":
            return GsiMasked(message.gsi_masked.gsi, message.gsi_masked.masked)
        case "gsi_resampled":
            return GsiResampled(message.gsi_resampled.gsi, message.gsi_resampled.count)
        case "ioapic_eoi":
            return IoapicEoi(message.ioapic_eoi.vcpu, message.ioapic_eoi.vector)
        case "region_access":
            told = message.region_access
            space = Space(told.space)
            return RegionAccess(told.access, told.vcpu, space, told.address, told.size, told.write, told.data)
        case "doorbell":
            rung = message.doorbell
            return Doorbell(Space(rung.space), rung.address, rung.size, rung.data, rung.count)
        case "regions_lost":
            return RegionsLost(Space(message.regions_lost.space), message.regions_lost.address)
        case "vm_reset":
            return VmReset(_reset_reason(message.vm_reset.reason))
        case "events_dropped":
            return EventsDropped(message.events_dropped.count)
    return None


def _reset_reason(reason: int) -> ResetReason:
    """A reason that this version does not know is none: the reset must not go unheard."""
    try:
        return ResetReason(reason)
    except ValueError:
        return ResetReason.UNSPECIFIED


_OPERATIONS = {
    NUMBERS["pio_read"]: (Space.PIO, False),
    NUMBERS["pio_write"]: (Space.PIO, True),
    NUMBERS["mmio_read"]: (Space.MMIO, False),
    NUMBERS["mmio_write"]: (Space.MMIO, True),
}


def event_from_record(packet: bytes) -> Event | None:
    """As event_from_proto, of the port's short form."""
    _, kind, serial, operation, size, vcpu, address, data = EVENT.unpack(packet)
    space, write = _OPERATIONS[operation]
    if kind == ACCESS:
        return RegionAccess(serial, vcpu, space, address, size, write, data)
    return Doorbell(space, address, size, data, serial) if kind == DOORBELL else None


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A passage of a tracepoint."""

    time_ns: int  # Of the daemon's monotonic clock.
    tracepoint: str  # The kernel's name, for example "kvm_pic_set_irq".
    fields: dict[str, int]  # What it recorded, in the kernel's order: numbers of 64 bits, without a sign.


def trace_from_proto(message: pb.WatchResponse) -> TraceEvent | EventsDropped:
    if message.WhichOneof("message") == "dropped":
        return EventsDropped(message.dropped.count)
    event = message.event
    return TraceEvent(event.time_ns, event.tracepoint, {field.name: field.value for field in event.fields})
