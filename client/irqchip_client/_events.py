"""The events of a Session and of a Watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from irqchip.records import ACCESS, DOORBELL, EVENT, NUMBERS
from irqchip.v1 import irqchip_pb2 as pb

from ._model import ResetReason, SignalKind, Space


@dataclass(frozen=True, slots=True)
class InterruptPending:
    """A vCPU has an interrupt to take.

    If another interrupt is left when the vCPU has taken one, a further event follows.
    """

    vcpu: int


@dataclass(frozen=True, slots=True)
class VcpuSignal:
    """A vCPU was sent a signal: NMI, SMI, INIT or SIPI. The signal waits for take_signal() or for a halt.

    An NMI or SMI to a vCPU that waits for INIT or SIPI stays until the vCPU has started; an INIT discards both.
    """

    vcpu: int
    kind: SignalKind
    vector: int  # The start page of a SIPI (the start address is vector << 12); otherwise 0.
    ignored: bool = False  # A SIPI that the vCPU does not take, because it did not wait for one.


@dataclass(frozen=True, slots=True)
class GsiAcknowledged:
    """The guest ended a GSI's interrupt `count` times: the kernel's ack notifiers. Unread events merge."""

    gsi: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class GsiMasked:
    """The mask bit of a pin that a GSI leads to has changed: the kernel's mask notifiers. Only the last is kept."""

    gsi: int
    masked: bool


@dataclass(frozen=True, slots=True)
class GsiResampled:
    """A GSI that the Session resamples was acknowledged and went low, `count` times: KVM's resamplefd.

    Raise the GSI again if the device still asserts its line. Unread events merge.
    """

    gsi: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    """With a split irqchip, a vCPU ended an interrupt of the VMM's IOAPIC. One event stands for any number."""

    vcpu: int
    vector: int


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """`count` events were dropped here, because the client did not read them in time."""

    count: int


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """A vCPU accesses a region of the Session. It waits until complete_access() answers the access of this number."""

    access: int
    vcpu: int
    space: Space
    address: int
    size: int  # Bytes.
    write: bool
    data: int = 0  # The value written.


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A vCPU wrote the same value to a doorbell of the Session, `count` times."""

    space: Space
    address: int
    size: int  # Bytes.
    data: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class RegionsLost:
    """The Session lost its regions: it did not answer an access to this address in time. It may register again."""

    space: Space
    address: int


@dataclass(frozen=True, slots=True)
class VmReset:
    """The VM was reset. A process that holds a part of the VM resets that part. Only the last event is kept.

    The event is in order with RegionAccesses: those that follow it are accesses after the reset.
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
    """The event; None for a kind that this version does not know, and so did not subscribe to."""
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
            made = message.region_access
            space = Space(made.space)
            return RegionAccess(made.access, made.vcpu, space, made.address, made.size, made.write, made.data)
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
    """The reason; UNSPECIFIED for one that this version does not know, so that the reset is still reported."""
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
    """As event_from_proto(), for an event in the port's short form."""
    _, kind, serial, operation, size, vcpu, address, data = EVENT.unpack(packet)
    space, write = _OPERATIONS[operation]
    if kind == ACCESS:
        return RegionAccess(serial, vcpu, space, address, size, write, data)
    return Doorbell(space, address, size, data, serial) if kind == DOORBELL else None


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """An event of a tracepoint."""

    time_ns: int  # By the daemon's monotonic clock.
    tracepoint: str  # The kernel's name, for example "kvm_pic_set_irq".
    fields: dict[str, int]  # Its values, in the kernel's order: unsigned numbers of 64 bits.


class Probe(NamedTuple):
    """The value of a probe: a register of a chip, or a line, which has a bit for each line source."""

    width: int  # Bits.
    value: int


@dataclass(frozen=True, slots=True)
class ProbesChanged:
    """The probes that have another value at the end of an operation, as a logic analyser would see them."""

    time_ns: int  # By the daemon's monotonic clock.
    probes: dict[str, Probe]  # By their names, for example "pic0.irr", "lapic0.isr" or "gsi4".
    all: bool = False  # Whether these are all probes; lines that are low are left out.


def trace_from_proto(message: pb.WatchResponse) -> TraceEvent | EventsDropped | ProbesChanged:
    match message.WhichOneof("message"):
        case "dropped":
            return EventsDropped(message.dropped.count)
        case "probes":
            changed = message.probes
            probes = {probe.name: Probe(probe.width, int.from_bytes(probe.value, "little")) for probe in changed.probes}
            return ProbesChanged(changed.time_ns, probes, changed.all)
    event = message.event
    return TraceEvent(event.time_ns, event.tracepoint, {field.name: field.value for field in event.fields})
