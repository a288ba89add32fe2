"""What calls return and events are: frozen dataclasses, made from the messages of irqchip.v1."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from irqchip.v1 import irqchip_pb2 as pb

from ._state import Chip


class InterruptSource(IntEnum):
    """Where a vCPU's interrupt comes from."""

    ANY = 0  # In a request: the PIC first, where the local APIC accepts it (LINT0 unmasked, ExtINT), then the LAPIC.
    PIC = 1
    LAPIC = 2


class SignalKind(IntEnum):
    """What a vCPU is sent that does not go through its local APIC's IRR."""

    NMI = 1
    SMI = 2
    INIT = 3
    SIPI = 4


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An open Session."""

    client: str  # What the client calls itself.
    source: int  # Its line source, 1 or more.
    asserted_gsis: tuple[int, ...]  # The GSIs it drives high now, ascending.
    dropped_events: int  # Events it did not read in time.

    @classmethod
    def from_proto(cls, message: pb.SessionInfo) -> Self:
        return cls(message.client, message.source, tuple(message.asserted_gsis), message.dropped_events)


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A VM."""

    name: str
    irqchip: bool  # Whether create_irqchip has been done.
    vcpus: tuple[int, ...]  # The ids of its vCPUs, in order of creation.
    sessions: tuple[SessionInfo, ...]  # In order of opening.
    asserted_gsis: tuple[int, ...] = ()  # What line source 0, which all unary callers share, drives high, ascending.

    @classmethod
    def from_proto(cls, message: pb.VmInfo) -> Self:
        sessions = tuple(SessionInfo.from_proto(session) for session in message.sessions)
        return cls(message.name, message.irqchip, tuple(message.vcpus), sessions, tuple(message.asserted_gsis))


@dataclass(frozen=True, slots=True)
class Access:
    """A guest's read. Where no device claims the address, it is the vCPU process's to emulate."""

    claimed: bool
    data: int  # Zero-extended; 0 where unclaimed.


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt that a vCPU has accepted."""

    vector: int
    source: InterruptSource  # PIC or LAPIC.


@dataclass(frozen=True, slots=True)
class PinRoute:
    """A GSI leads to a pin of a chip."""

    gsi: int
    chip: Chip
    pin: int  # 0 to 7 of a PIC, 0 to 23 of the IOAPIC.
    flags: int = 0

    def to_proto(self) -> pb.RoutingEntry:
        pin = pb.IrqchipPin(chip_id=self.chip, pin=self.pin)
        return pb.RoutingEntry(gsi=self.gsi, irqchip=pin, flags=self.flags)


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """A GSI sends a message to local APICs."""

    gsi: int
    address: int
    data: int
    flags: int = 0  # 1: KVM_MSI_VALID_DEVID.

    def to_proto(self) -> pb.RoutingEntry:
        return pb.RoutingEntry(gsi=self.gsi, msi=pb.Msi(address=self.address, data=self.data), flags=self.flags)


Route = PinRoute | MsiRoute


def route_from_proto(message: pb.RoutingEntry) -> Route:
    if message.WhichOneof("destination") == "msi":
        return MsiRoute(message.gsi, message.msi.address, message.msi.data, message.flags)
    return PinRoute(message.gsi, Chip(message.irqchip.chip_id), message.irqchip.pin, message.flags)


@dataclass(frozen=True, slots=True)
class InterruptPending:
    """A vCPU has an interrupt to take. An unread one stands for any number: acknowledge until there is none left."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class VcpuSignal:
    """A vCPU was sent something other than an interrupt."""

    vcpu: int
    kind: SignalKind
    vector: int  # Of a SIPI, the start page (the start address is vector << 12); otherwise 0.


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """Events were lost here, because they were not read in time."""

    count: int


Event = InterruptPending | VcpuSignal | EventsDropped


def event_from_proto(message: pb.Event) -> Event | None:
    """None for a kind of event that this version does not know, and so did not subscribe to."""
    match message.WhichOneof("event"):
        case "interrupt_pending":
            return InterruptPending(message.interrupt_pending.vcpu)
        case "vcpu_signal":
            signal = message.vcpu_signal
            return VcpuSignal(signal.vcpu, SignalKind(signal.kind), signal.vector)
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
