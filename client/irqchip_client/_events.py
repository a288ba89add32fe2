"""What streams tell: a Session's events, and a Watch's."""

from dataclasses import dataclass

from irqchip.v1 import irqchip_pb2 as pb

from ._model import SignalKind


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


Event = InterruptPending | VcpuSignal | GsiAcknowledged | GsiMasked | GsiResampled | IoapicEoi | EventsDropped


def event_from_proto(message: pb.Event) -> Event | None:
    """None for a kind of event that this version does not know, and so did not subscribe to."""
    match message.WhichOneof("event"):
        case "interrupt_pending":
            return InterruptPending(message.interrupt_pending.vcpu)
        case "vcpu_signal":
            signal = message.vcpu_signal
            return VcpuSignal(signal.vcpu, SignalKind(signal.kind), signal.vector, signal.ignored)
        case "gsi_acknowledged":
            return GsiAcknowledged(message.gsi_acknowledged.gsi, message.gsi_acknowledged.count)
        case "gsi_masked":
            return GsiMasked(message.gsi_masked.gsi, message.gsi_masked.masked)
        case "gsi_resampled":
            return GsiResampled(message.gsi_resampled.gsi, message.gsi_resampled.count)
        case "ioapic_eoi":
            return IoapicEoi(message.ioapic_eoi.vcpu, message.ioapic_eoi.vector)
        case "events_dropped":
            return EventsDropped(message.events_dropped.count)
    return None


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A passage of a tracepoint."""

    time_ns: int  # Of the daemon's monotonic clock.
    tracepoint: str  # The kernel's name, for example "kvm_pic_set_irq".
    fields: dict[str, int]  # What it recorded, in the kernel's order.


def trace_from_proto(message: pb.WatchResponse) -> TraceEvent | EventsDropped:
    if message.WhichOneof("message") == "dropped":
        return EventsDropped(message.dropped.count)
    event = message.event
    return TraceEvent(event.time_ns, event.tracepoint, {field.name: field.value for field in event.fields})
