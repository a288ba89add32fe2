"""Between the contract's messages and the core's values. Bad values of a message are EINVAL."""

from __future__ import annotations

from collections.abc import Iterable

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.ioapic import PINS, IoapicState
from irqchipd.chips.lapic import VECTORS, LapicRegisters
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.errors import invalid
from irqchipd.vm.machine import Event, InterruptPending, Vm
from irqchipd.vm.routing import MsiRoute, PinRoute, Route

_PIC_FIELDS = I8259.__slots__
_LAPIC_WORDS = tuple(
    field.name
    for field in pb.LapicState.DESCRIPTOR.fields
    if not field.is_repeated and field.name not in ("ppr", "timer_current_count")
)
_LAPIC_MAPS = ("isr", "tmr", "irr")

_SIGNALS = {
    DeliveryMode.NMI: pb.SIGNAL_KIND_NMI,
    DeliveryMode.SMI: pb.SIGNAL_KIND_SMI,
    DeliveryMode.INIT: pb.SIGNAL_KIND_INIT,
    DeliveryMode.STARTUP: pb.SIGNAL_KIND_SIPI,
}


# Routing.


def routes_from(entries: Iterable[pb.RoutingEntry]) -> list[Route]:
    """The routes that a message asks for; whether they are good is the VM's to say."""
    return [_route_from(entry) for entry in entries]


def _route_from(entry: pb.RoutingEntry) -> Route:
    match entry.WhichOneof("destination"):
        case "irqchip":
            return PinRoute(entry.gsi, entry.irqchip.chip_id, entry.irqchip.pin, entry.flags)
        case "msi":
            return MsiRoute(entry.gsi, entry.msi.address, entry.msi.data, entry.flags)
        case _:
            raise invalid(f"the routing entry of GSI {entry.gsi} has no destination: an irqchip pin or an MSI")


def routes_to(routes: Iterable[Route]) -> list[pb.RoutingEntry]:
    """The reverse of routes_from."""
    return [_route_to(route) for route in routes]


def _route_to(route: Route) -> pb.RoutingEntry:
    if isinstance(route, PinRoute):
        pin = pb.IrqchipPin(chip_id=route.chip, pin=route.pin)
        return pb.RoutingEntry(gsi=route.gsi, irqchip=pin, flags=route.flags)
    msi = pb.Msi(address=route.address, data=route.data)
    return pb.RoutingEntry(gsi=route.gsi, msi=msi, flags=route.flags)


# Chip states.


def irqchip_from(request: pb.SetIrqchipRequest) -> I8259 | IoapicState | bytes:
    """The state that a message carries."""
    match request.WhichOneof("state"):
        case "pic":
            return _pic_from(request.pic)
        case "ioapic":
            return _ioapic_from(request.ioapic)
        case "kvm_struct":
            return request.kvm_struct
        case _:
            raise invalid("there is no state: set pic, ioapic or kvm_struct")


def _pic_from(state: pb.PicState) -> I8259:
    values = [getattr(state, name) for name in _PIC_FIELDS]
    for name, value in zip(_PIC_FIELDS, values, strict=True):
        if value > 0xFF:
            raise invalid(f"{name} is {value:#x}; a PIC's fields are 8 bits wide")
    return I8259(*values)


def _ioapic_from(state: pb.IoapicState) -> IoapicState:
    entries = tuple(state.redirection_entries)
    if len(entries) != PINS:
        raise invalid(f"there are {len(entries)} redirection entries; the IOAPIC has {PINS}")
    return IoapicState(state.base_address, state.ioregsel, state.id, state.irr, redirection=entries)


def irqchip_to(state: I8259 | IoapicState, response: pb.GetIrqchipResponse) -> None:
    """The reverse of irqchip_from, with the kernel's struct."""
    response.kvm_struct = state.pack()
    if isinstance(state, I8259):
        for name in _PIC_FIELDS:
            setattr(response.pic, name, getattr(state, name))
        response.pic.SetInParent()
    else:
        response.ioapic.base_address = state.base_address
        response.ioapic.ioregsel = state.ioregsel
        response.ioapic.id = state.id
        response.ioapic.irr = state.irr
        response.ioapic.redirection_entries.extend(state.redirection)


def lapic_from(request: pb.SetLapicRequest) -> LapicRegisters | bytes:
    """The registers that a message carries."""
    match request.WhichOneof("state"):
        case "lapic":
            registers = LapicRegisters()
            for name in _LAPIC_WORDS:
                setattr(registers, name, getattr(request.lapic, name))
            for name in _LAPIC_MAPS:
                setattr(registers, name, _bits(name, getattr(request.lapic, name)))
            return registers
        case "kvm_struct":
            return request.kvm_struct
        case _:
            raise invalid("there is no state: set lapic or kvm_struct")


def _bits(name: str, vectors: Iterable[int]) -> int:
    bits = 0
    for vector in vectors:
        if vector >= VECTORS:
            raise invalid(f"{name} has vector {vector}; vectors are 0 to {VECTORS - 1}")
        bits |= 1 << vector
    return bits


def lapic_to(registers: LapicRegisters, response: pb.GetLapicResponse) -> None:
    """The reverse of lapic_from, with the kernel's struct."""
    response.kvm_struct = registers.pack()
    for name in _LAPIC_WORDS:
        setattr(response.lapic, name, getattr(registers, name))
    response.lapic.ppr = registers.ppr
    for name in _LAPIC_MAPS:
        bits = getattr(registers, name)
        getattr(response.lapic, name).extend(vector for vector in range(bits.bit_length()) if bits >> vector & 1)


# Events and descriptions.


def event_to(event: Event) -> pb.Event:
    """What a Session is told."""
    if isinstance(event, InterruptPending):
        return pb.Event(interrupt_pending=pb.InterruptPending(vcpu=event.vcpu))
    signal = pb.VcpuSignal(vcpu=event.vcpu, kind=_SIGNALS[event.delivery_mode], vector=event.vector)
    return pb.Event(vcpu_signal=signal)


def vm_to(vm: Vm) -> pb.VmInfo:
    """A VM's description."""
    sessions = [
        pb.SessionInfo(client=client, source=number, asserted_gsis=asserted, dropped_events=dropped)
        for client, number, asserted, dropped in vm.sources()
    ]
    return pb.VmInfo(
        name=vm.name, irqchip=vm.has_irqchip(), vcpus=vm.vcpus(), sessions=sessions, asserted_gsis=vm.asserted()
    )
