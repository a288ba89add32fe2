"""Between the contract's messages and the core's values. Bad values of a message are EINVAL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.i8254_state import CHANNELS, PitChannel, PitState
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.ioapic import PINS, IoapicState
from irqchipd.chips.lapic import Features
from irqchipd.chips.lapic_registers import VECTORS, LapicRegisters
from irqchipd.chips.message import DeliveryMode
from irqchipd.edge import s390
from irqchipd.vm.counting import InterruptCounts
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import Description, GicInfo
from irqchipd.vm.regions import Region, RegionInfo
from irqchipd.vm.routing import MsiRoute, PinRoute, Route, S390Route
from irqchipd.vm.vcpu_state import Signal, Taken
from irqchipd.vm.x86.vcpu_state import VcpuEvents

_PIC_FIELDS = tuple(field.name for field in fields(I8259))
_PIT_FIELDS = tuple(field.name for field in fields(PitChannel))
_PIT_WIDTHS = {"count": 32, "latched_count": 16}  # bits, where not 8
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
    DeliveryMode.REMOTE_READ: pb.SIGNAL_KIND_UNHALT,
}

_EVENT_FIELDS = tuple(field.name for field in fields(VcpuEvents))
_OPTIONAL_EVENTS = tuple(name for name in _EVENT_FIELDS if name != "interrupt_vector")

# The controllers that give vCPUs interrupts. For x86 the index is 1 for the PIC.
CONTROLLERS: Final = (
    int(pb.INTERRUPT_SOURCE_LAPIC),
    int(pb.INTERRUPT_SOURCE_PIC),
    int(pb.INTERRUPT_SOURCE_IRQ),
    int(pb.INTERRUPT_SOURCE_FIQ),
    int(pb.INTERRUPT_SOURCE_FLIC),
)

_MODES = {"none": pb.IRQCHIP_MODE_NONE, "full": pb.IRQCHIP_MODE_FULL, "split": pb.IRQCHIP_MODE_SPLIT}


# Routing.


def routes_from(entries: Iterable[pb.RoutingEntry]) -> list[Route]:
    """The routes of a message. The VM checks them."""
    return [route_from(entry) for entry in entries]


def route_from(entry: pb.RoutingEntry) -> Route:
    """The route of one entry."""
    match entry.WhichOneof("destination"):
        case "irqchip":
            return PinRoute(entry.gsi, entry.irqchip.chip_id, entry.irqchip.pin, entry.flags)
        case "msi":
            return MsiRoute(entry.gsi, entry.msi.address, entry.msi.data, entry.flags)
        case "s390_adapter":
            return s390.route_from(entry)
        case _:
            raise invalid(f"the routing entry of GSI {entry.gsi} has no destination: a pin, an MSI or an adapter")


def routing_to(routes: Iterable[Route], response: pb.GetGsiRoutingResponse) -> None:
    """The message of some routes."""
    response.entries.extend(route_to(route) for route in routes)


def route_to(route: Route) -> pb.RoutingEntry:
    """The entry of a route."""
    if isinstance(route, PinRoute):
        pin = pb.IrqchipPin(chip_id=route.chip, pin=route.pin)
        return pb.RoutingEntry(gsi=route.gsi, irqchip=pin, flags=route.flags)
    if isinstance(route, S390Route):
        return s390.route_to(route)
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
            raise invalid("the state is missing: set pic, ioapic or kvm_struct")


def set_irqchip_from(request: pb.SetIrqchipRequest) -> tuple[int, I8259 | IoapicState | bytes]:
    """A chip and its state."""
    return request.chip_id, irqchip_from(request)


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
    """The message of a chip's state, with the kernel's struct."""
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
            raise invalid("the state is missing: set lapic or kvm_struct")


def _bits(name: str, vectors: Iterable[int]) -> int:
    bits = 0
    for vector in vectors:
        if vector >= VECTORS:
            raise invalid(f"{name} has vector {vector}; vectors are 0 to {VECTORS - 1}")
        bits |= 1 << vector
    return bits


def lapic_to(registers: LapicRegisters, response: pb.GetLapicResponse) -> None:
    """The message of a local APIC's registers, with the kernel's struct."""
    response.kvm_struct = registers.pack()
    for name in _LAPIC_WORDS:
        setattr(response.lapic, name, getattr(registers, name))
    response.lapic.ppr = registers.ppr
    for name in _LAPIC_MAPS:
        bits = getattr(registers, name)
        getattr(response.lapic, name).extend(vector for vector in range(bits.bit_length()) if bits >> vector & 1)


def pit_from(request: pb.SetPitRequest) -> PitState | bytes:
    """The state that a message carries."""
    match request.WhichOneof("state"):
        case "pit":
            channels = request.pit.channels
            if len(channels) != CHANNELS:
                raise invalid(f"there are {len(channels)} channels; the PIT has {CHANNELS}")
            return PitState(tuple(_pit_channel_from(channel) for channel in channels), request.pit.flags)
        case "kvm_struct":
            return request.kvm_struct
        case _:
            raise invalid("the state is missing: set pit or kvm_struct")


def _pit_channel_from(channel: pb.PitChannel) -> PitChannel:
    values = {name: getattr(channel, name) for name in _PIT_FIELDS}
    for name, value in values.items():
        width = _PIT_WIDTHS.get(name, 8)
        if name != "count_load_time" and value >> width:
            raise invalid(f"{name} is {value:#x}; it has only {width} bits")
    return PitChannel(**values)


def pit_to(state: PitState, response: pb.GetPitResponse) -> None:
    """The message of the PIT's state, with the kernel's struct."""
    response.kvm_struct = state.pack()
    response.pit.flags = state.flags
    for channel in state.channels:
        response.pit.channels.add(**{name: getattr(channel, name) for name in _PIT_FIELDS})


# vCPUs.


def features_from(request: pb.SetCpuidRequest) -> Features:
    """The features that a guest's CPUID has."""
    return Features(request.x2apic, request.tsc_deadline, request.tsc_adjust, request.physical_address_bits)


def vcpu_events_from(request: pb.SetVcpuEventsRequest) -> VcpuEvents:
    """A vCPU's events. A field that the message leaves out is None."""
    events: Any = request.events
    given = {name: getattr(events, name) for name in _OPTIONAL_EVENTS if events.HasField(name)}
    return VcpuEvents(interrupt_vector=events.interrupt_vector, **given)


def set_vcpu_events_from(request: pb.SetVcpuEventsRequest) -> tuple[int, VcpuEvents]:
    """A vCPU and its events."""
    return request.vcpu, vcpu_events_from(request)


def vcpu_events_to(events: VcpuEvents, response: pb.GetVcpuEventsResponse) -> None:
    """The message of a vCPU's events."""
    response.events.CopyFrom(pb.VcpuEvents(**{name: getattr(events, name) for name in _EVENT_FIELDS}))


# Devices' attributes.

Target = tuple[int | None, int | None]  # a device, or a vCPU


def attr_from(request: Any) -> tuple[Target, int, int]:
    """An attribute: its device or vCPU, its group and its number."""
    match request.target.WhichOneof("target"):
        case "device":
            return (request.target.device, None), request.group, request.attr
        case "vcpu":
            return (None, request.target.vcpu), request.group, request.attr
        case _:
            raise invalid("the target is missing: set device or vcpu")


def attr_with_data_from(request: Any) -> tuple[Target, int, int, bytes]:
    """An attribute, and the bytes at its address."""
    return *attr_from(request), request.data


def vcpu_init_from(request: pb.VcpuInitRequest) -> tuple[int, int | None, int]:
    """The initialisation of a vCPU: the vCPU, its target and its features."""
    return request.vcpu, request.target if request.HasField("target") else None, request.features


# Interrupts and signals that vCPUs take, and regions.


def interrupt_to(taken: Taken) -> pb.Interrupt:
    """An interrupt that has been taken: its vector and its controller."""
    vector, controller = taken
    return pb.Interrupt(vector=vector, source=pb.InterruptSource.ValueType(CONTROLLERS[controller]))


def signal_to(signal: Signal) -> pb.Signal:
    """A signal that has been taken."""
    return pb.Signal(kind=_SIGNALS[signal.delivery_mode], vector=signal.vector)


def outcome_to(outcome: Taken | Signal | VmError | None) -> pb.HaltResponse:
    """The message of a halt's outcome. Raises the error that ended the halt."""
    if isinstance(outcome, VmError):
        raise outcome
    if outcome is None:
        return pb.HaltResponse(timeout=pb.HaltTimeout())
    if isinstance(outcome, Signal):
        return pb.HaltResponse(signal=signal_to(outcome))
    return pb.HaltResponse(interrupt=interrupt_to(outcome))


def region_from(request: pb.RegisterRegionRequest) -> tuple[int, int, int, bool, int | None, bool, bool, int]:
    """A region to register: space, address, length, doorbell, datamatch, eventfd, memfd and offset."""
    return (
        request.space,
        request.address,
        request.length,
        request.doorbell,
        request.datamatch if request.HasField("datamatch") else None,
        request.eventfd,
        request.memfd,
        request.offset,
    )


def unregistered_from(request: pb.UnregisterRegionRequest) -> tuple[int, int, int | None]:
    """A region to give up: space, address and datamatch."""
    return request.space, request.address, request.datamatch if request.HasField("datamatch") else None


def memory_to(region: Region, response: pb.GetMemoryResponse) -> None:
    """The part of the guest's memory that a memfd holds."""
    response.address, response.length = region.start, region.length
    response.offset = 0 if region.shared is None else region.shared.offset


# Descriptions.


def _region_to(region: RegionInfo) -> pb.RegionInfo:
    return pb.RegionInfo(
        space=pb.AddressSpace.ValueType(region.space),
        address=region.start,
        length=region.length,
        doorbell=region.doorbell,
        datamatch=region.datamatch,
    )


def vm_to(vm: Description) -> pb.VmInfo:
    """A VM's description, with its Sessions."""
    sessions = [
        pb.SessionInfo(
            client=source.client,
            source=source.number,
            asserted_gsis=source.asserted,
            dropped_events=source.dropped_events,
            detached=source.detached,
            resampled_gsis=source.resampled,
            regions=map(_region_to, source.regions),
        )
        for source in vm.sources
    ]
    mode = _MODES[vm.irqchip_mode]
    return pb.VmInfo(
        name=vm.name,
        architecture=pb.Architecture.ValueType(vm.architecture),
        irqchip=mode == pb.IRQCHIP_MODE_FULL,
        vcpus=vm.vcpus,
        sessions=sessions,
        asserted_gsis=vm.asserted,
        irqchip_mode=mode,
        pit=vm.pit,
        asynchronous_interrupts=mode != pb.IRQCHIP_MODE_NONE,
        halt_in_kernel=mode != pb.IRQCHIP_MODE_NONE,
        clock=pb.CLOCK_KIND_VIRTUAL if vm.virtual else pb.CLOCK_KIND_REAL,
        now_ns=vm.now,
        next_timer_ns=vm.next_timer,
        tsc_khz=vm.tsc_khz,
        session_count=vm.source_count,
        lateness_ns=vm.lateness,
        gic=None if vm.gic is None else _gic_to(vm.gic),
        devices=vm.devices,
    )


def _gic_to(gic: GicInfo) -> pb.GicInfo:
    host = pb.GicProperties(
        version=gic.host_version, list_registers=gic.list_registers, priority_bits=gic.priority_bits
    )
    return pb.GicInfo(version=gic.version, initialised=gic.initialised, interrupts=gic.interrupts, host=host)


def interrupts_to(counts: InterruptCounts, response: pb.GetInterruptsResponse) -> None:
    """The response about a VM's interrupts."""
    response.counted_ns = counts.nanoseconds
    response.vcpus.extend(counts.vcpus)
    for one in counts.interrupts:
        response.interrupts.add(
            kind=pb.InterruptKind.ValueType(one.kind),
            gsi=one.gsi if one.gsi >= 0 else None,
            number=one.number,
            level=one.level,
            clients=one.sources,
            counts=one.counts,
            accept=pb.Latency(buckets=one.accept.buckets, sum_ns=one.accept.sum),
            eoi=pb.Latency(buckets=one.eoi.buckets, sum_ns=one.eoi.sum),
        )
