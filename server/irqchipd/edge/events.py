"""What Sessions are sent about events: messages, and records (irqchip/records.py)."""

from __future__ import annotations

from typing import Final

from irqchip.records import ACCESS, DOORBELL, EVENT, NUMBERS
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import signal_to
from irqchipd.vm.events import (
    Doorbell,
    Event,
    GsiAcknowledged,
    GsiMasked,
    GsiResampled,
    InterruptPending,
    IoapicEoi,
    RegionAccess,
    RegionsLost,
    VcpuSignal,
    VmReset,
)
from irqchipd.vm.regions import Space
from irqchipd.vm.vcpu_state import Signal

_READS: Final[dict[int, int]] = {Space.PIO: NUMBERS["pio_read"], Space.MMIO: NUMBERS["mmio_read"]}
_WRITES: Final[dict[int, int]] = {Space.PIO: NUMBERS["pio_write"], Space.MMIO: NUMBERS["mmio_write"]}


def event_to(event: Event, count: int = 1) -> pb.Event:
    """The message of an event; count is how many it stands for."""
    match event:
        case InterruptPending(vcpu):
            return pb.Event(interrupt_pending=pb.InterruptPending(vcpu=vcpu))
        case VcpuSignal(vcpu, delivery_mode, vector, ignored):
            signal = signal_to(Signal(delivery_mode, vector))
            return pb.Event(vcpu_signal=pb.VcpuSignal(vcpu=vcpu, signal=signal, ignored=ignored))
        case GsiAcknowledged(gsi):
            return pb.Event(gsi_acknowledged=pb.GsiAcknowledged(gsi=gsi, count=count))
        case GsiMasked(gsi, masked):
            return pb.Event(gsi_masked=pb.GsiMasked(gsi=gsi, masked=masked))
        case GsiResampled(gsi):
            return pb.Event(gsi_resampled=pb.GsiResampled(gsi=gsi, count=count))
        case IoapicEoi(vcpu, vector):
            return pb.Event(ioapic_eoi=pb.IoapicEoi(vcpu=vcpu, vector=vector))
        case RegionAccess(access, vcpu, space, address, size, write, value):
            return pb.Event(
                region_access=pb.RegionAccess(
                    access=access,
                    vcpu=vcpu,
                    space=pb.AddressSpace.ValueType(space),
                    address=address,
                    size=size,
                    write=write,
                    data=value,
                )
            )
        case Doorbell(space, address, size, value):
            where = pb.AddressSpace.ValueType(space)
            return pb.Event(doorbell=pb.Doorbell(space=where, address=address, size=size, data=value, count=count))
        case RegionsLost(space, address):
            return pb.Event(regions_lost=pb.RegionsLost(space=pb.AddressSpace.ValueType(space), address=address))
        case VmReset(reason):
            return pb.Event(vm_reset=pb.VmReset(reason=pb.ResetReason.ValueType(reason)))


def event_message(event: pb.Event) -> bytes:
    """The packet of a message."""
    return pb.SessionResponse(event=event).SerializeToString()


def event_record(event: RegionAccess | Doorbell, count: int = 1) -> bytes:
    """The packet about a region that was registered by a record."""
    if isinstance(event, Doorbell):
        number = _WRITES[event.space]
        return EVENT.pack(0, DOORBELL, count, number, event.size, 0, event.address, event.value)
    number = (_WRITES if event.write else _READS)[event.space]
    return EVENT.pack(0, ACCESS, event.access, number, event.size, event.vcpu, event.address, event.value)
