"""The catalogue of operations: `session.run([ops.irq_line(4, True), ops.pio_read(0, 0x20)])`.

Each function here describes a call, and does nothing else. A Session executes calls in batches; the methods of a Vm, a
Vcpu and a Line make the same calls one by one. A function raises InvalidArgument for a number that its field cannot
hold. In this package, an operation's request, result and record are described here alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from google.protobuf.message import Message

from irqchip.records import CLAIMED, FAULT, INTERRUPT, IS_DOORBELL, SIGNAL, TIMEOUT, UNANSWERED, WITHOUT_STATUS
from irqchip.v1 import irqchip_pb2 as pb

from . import _ops_s390
from ._call import Call, Decoder, RecordCall, seconds
from ._checked import checked, checked_and_kept
from ._errors import TimedOut, protocol_error
from ._model import (
    Access,
    Advance,
    Claim,
    Interrupt,
    InterruptSource,
    MpState,
    MsrAccess,
    Route,
    Signal,
    SignalKind,
    Space,
    SysregAccess,
    VcpuEvents,
    Wake,
    route_from_proto,
)
from ._ops_s390 import *  # noqa: F403

if TYPE_CHECKING:  # Imported by the operations on a chip's state alone: most programs have no use for it.
    from ._state import Chip, IoapicState, LapicState, PicState, PitState

# And each function under @_operation or @_repeated.
__all__ = ["Call", *_ops_s390.__all__]

P = ParamSpec("P")
T = TypeVar("T")


def _operation(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Enters an operation into the catalogue."""
    __all__.append(make.__name__)
    return checked(make)


def _repeated(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Enters an operation that a client makes again and again with the same arguments: its calls are kept."""
    __all__.append(make.__name__)
    return checked_and_kept(make)


# Results: of a response message, and of a record's three fields (flags or reason, status, value).

_LEVELS = {False: 0, True: 1}
_CLAIMS = {claim.value: claim for claim in Claim}


def _nothing(_response: Message) -> None:
    return None


@lru_cache(1024)
def _access_of(flags: int, _status: int, value: int) -> Access:
    """A read's result, which is kept: most reads of a register return the value of an earlier read."""
    # As Access(), in a third of the time.
    return tuple.__new__(Access, (flags != 0, value, flags > CLAIMED))


@lru_cache(1024)
def _interrupt_of(vector: int, source: int) -> Interrupt:
    """An interrupt, which is made once: a vCPU takes the same ones over and over."""
    return Interrupt(vector, InterruptSource(source))


def _interrupt(message: pb.Interrupt) -> Interrupt:
    return _interrupt_of(message.vector, message.source)


def _signal(message: pb.Signal) -> Signal:
    return Signal(SignalKind(message.kind), message.vector)


_NOTHING = Decoder(_nothing, lambda _flags, _status, _value: None)
_STATUS = Decoder[int](lambda response: response.status, lambda _flags, status, _value: status)
_ACCESS = Decoder[Access](
    lambda response: Access(response.claimed, response.data, response.unanswered),
    _access_of,
)
_CLAIM = Decoder[Claim](
    lambda response: Claim(response.claimed * CLAIMED | response.unanswered * UNANSWERED),
    lambda flags, _status, _value: _CLAIMS[flags],
)
_COMPLETED = Decoder[bool](lambda response: response.completed, lambda flags, _status, _value: flags == CLAIMED)
_INTERRUPT = Decoder[Interrupt | None](
    lambda response: _interrupt(response.interrupt) if response.HasField("interrupt") else None,
    lambda flags, source, vector: _interrupt_of(vector, source) if flags else None,
)
_MSR = Decoder[MsrAccess](
    lambda response: MsrAccess(response.claimed, response.fault, response.data),
    lambda flags, _status, value: MsrAccess(flags & CLAIMED != 0, flags & FAULT != 0, value),
)
_MSR_WRITTEN = Decoder[MsrAccess](lambda response: MsrAccess(response.claimed, response.fault), _MSR.record)
_SYSREG = Decoder[SysregAccess](
    lambda response: SysregAccess(response.claimed, response.fault, response.data),
    lambda flags, _status, value: SysregAccess(flags & CLAIMED != 0, flags & FAULT != 0, value),
)
_SYSREG_WRITTEN = Decoder[SysregAccess](lambda response: SysregAccess(response.claimed, response.fault), _SYSREG.record)


def _word(value: int) -> int:
    """A value of 32 bits, unchanged. ValueError for any other: a record has more room than the request's field."""
    if not 0 <= value <= 0xFFFF_FFFF:
        raise ValueError(f"{value} is out of range: use 0 to {0xFFFF_FFFF:#x}")
    return value


@_operation
def create_vcpu(vcpu: int) -> Call[None]:
    """KVM_CREATE_VCPU. AlreadyExists if the id is taken, InvalidArgument if it is out of range."""
    return Call("create_vcpu", pb.CreateVcpuRequest(vcpu=vcpu), _nothing)


@_repeated
def irq_line(gsi: int, level: bool, *, without_status: bool = False) -> Call[int]:
    """KVM_IRQ_LINE_STATUS: sets the level that the caller's line source drives on a GSI. NotReady without an irqchip.

    without_status  KVM_IRQ_LINE instead. The two differ for the RTC's GSI 8: an edge is then delivered even if the
                    guest has not ended the last tick, and is not counted as a tick

    The result is the status, summed over the chips that the GSI leads to: -1 masked or ignored; 0 coalesced with an
    interrupt that is still pending; 1 or more the number of deliveries. Lowering a line adds 1 per chip.
    """
    size = WITHOUT_STATUS if without_status else 0
    return RecordCall("irq_line", (size, gsi, 0, level), _STATUS)


@_operation
def irq_lines(changes: Iterable[tuple[int, bool]]) -> Call[list[int]]:
    """Several irq_line in one operation, in order; each is a GSI and its level. If one is refused, none is done.

    This is the fastest way to drive many lines. At most 4096 changes.
    """
    packed = [gsi << 1 | _LEVELS[level] for gsi, level in changes]
    return Call("irq_lines", pb.IrqLinesRequest(changes=packed), lambda response: list(response.statuses))


@_operation
def register_region(
    space: Space, address: int, length: int, *, doorbell: bool = False, datamatch: int | None = None
) -> Call[None]:
    """Claims a range of ports or addresses. Each access is a RegionAccess event, which complete_access() answers.

    doorbell   a write is a Doorbell event, and no vCPU waits: KVM_IOEVENTFD; a read is unclaimed
    datamatch  only a write of this value, and of the range's length, rings; any other write is unclaimed

    AlreadyExists if part of the range is claimed; Busy if it is barred because its owners were too slow;
    InvalidArgument for an invalid range; LimitReached at the VM's limit of regions.
    """
    request = region_request(space, address, length, doorbell, datamatch)
    if datamatch is not None:
        return Call("register_region", request, _nothing)
    fields = (space | IS_DOORBELL if doorbell else space, 0, address, length)
    return RecordCall("register_region", fields, _NOTHING, request=request)


def region_request(
    space: Space, address: int, length: int, doorbell: bool, datamatch: int | None
) -> pb.RegisterRegionRequest:
    return pb.RegisterRegionRequest(
        space=pb.AddressSpace.ValueType(space), address=address, length=length, doorbell=doorbell, datamatch=datamatch
    )


@_operation
def unregister_region(space: Space, address: int, datamatch: int | None = None) -> Call[None]:
    """Gives a region up. Accesses that wait for an answer are completed as unanswered.

    NotFound if the Session has no such region.
    """
    request = pb.UnregisterRegionRequest(space=pb.AddressSpace.ValueType(space), address=address, datamatch=datamatch)
    return Call("unregister_region", request, _nothing)


@_operation
def complete_access(access: int, data: int = 0, *, unanswered: bool = False) -> Call[bool]:
    """Answers a RegionAccess with the data that the vCPU reads. The result is whether the access was still waiting.

    unanswered  the device has no answer, for example because it is broken: the vCPU reads all ones, and its result
                has `unanswered`

    InvalidArgument if the data does not fit the access's size, or comes with `unanswered`. Then the vCPU still waits.
    """
    return RecordCall("complete_access", (int(unanswered), 0, access, data), _COMPLETED)


@_operation
def signal_msi(address: int, data: int, flags: int = 0) -> Call[int]:
    """KVM_SIGNAL_MSI. The result is how many local APICs accepted the MSI, or -1 if it addresses none."""
    return RecordCall("signal_msi", (0, flags, address, _word(data)), _STATUS)


@_operation
def set_gsi_routing(routes: Iterable[Route]) -> Call[None]:
    """KVM_SET_GSI_ROUTING: replaces the table. If KVM refuses it: InvalidArgument, and the old table stays."""
    request = pb.SetGsiRoutingRequest(entries=[route.to_proto() for route in routes])
    return Call("set_gsi_routing", request, _nothing)


@_operation
def get_gsi_routing() -> Call[list[Route]]:
    """The routing table, in the order in which it was set."""
    return Call(
        "get_gsi_routing",
        pb.GetGsiRoutingRequest(),
        lambda response: [route_from_proto(entry) for entry in response.entries],
    )


@_repeated
def pio_read(vcpu: int, port: int, size: int = 1) -> Call[Access]:
    """A vCPU's IN from a port, of 1, 2 or 4 bytes."""
    return RecordCall("pio_read", (size, vcpu, _word(port), 0), _ACCESS)


@_operation
def pio_write(vcpu: int, port: int, data: int, size: int = 1) -> Call[Claim]:
    """A vCPU's OUT to a port, of 1, 2 or 4 bytes. False if no device claims the port."""
    return RecordCall("pio_write", (size, vcpu, _word(port), _word(data)), _CLAIM)


@_repeated
def mmio_read(vcpu: int, address: int, size: int = 4) -> Call[Access]:
    """A vCPU's load from a guest physical address, of 1, 2, 4 or 8 bytes."""
    return RecordCall("mmio_read", (size, vcpu, address, 0), _ACCESS)


@_operation
def mmio_write(vcpu: int, address: int, data: int, size: int = 4) -> Call[Claim]:
    """A vCPU's store to a guest physical address, of 1, 2, 4 or 8 bytes. False if no device claims the address."""
    return RecordCall("mmio_write", (size, vcpu, address, data), _CLAIM)


@_repeated
def ack_interrupt(vcpu: int, source: InterruptSource = InterruptSource.ANY) -> Call[Interrupt | None]:
    """A vCPU's INTA: the vCPU accepts the interrupt that it would take now, or the result is None.

    NotReady if the vCPU has no local APIC.
    """
    return RecordCall("ack_interrupt", (source, vcpu, 0, 0), _INTERRUPT)


@overload
def get_irqchip(chip: Literal[Chip.IOAPIC]) -> Call[IoapicState]: ...
@overload
def get_irqchip(chip: Literal[Chip.PIC_PRIMARY, Chip.PIC_SECONDARY]) -> Call[PicState]: ...
@overload
def get_irqchip(chip: Chip) -> Call[PicState | IoapicState]: ...
@_operation
def get_irqchip(chip: Chip) -> Call[Any]:
    """KVM_GET_IRQCHIP. NotReady without an irqchip."""
    from ._state import Chip, IoapicState, PicState

    state = IoapicState if chip == Chip.IOAPIC else PicState
    request = pb.GetIrqchipRequest(chip_id=chip)
    return Call("get_irqchip", request, lambda response: state.from_kvm_struct(response.kvm_struct))


@_operation
def set_irqchip(chip: Chip, state: PicState | IoapicState | bytes) -> Call[None]:
    """KVM_SET_IRQCHIP, from a state or the kernel's struct. NotReady without an irqchip."""
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_irqchip", pb.SetIrqchipRequest(chip_id=chip, kvm_struct=data), _nothing)


@_operation
def get_lapic(vcpu: int) -> Call[LapicState]:
    """KVM_GET_LAPIC. InvalidArgument if the vCPU has no local APIC."""
    from ._state import LapicState

    request = pb.GetLapicRequest(vcpu=vcpu)
    return Call("get_lapic", request, lambda response: LapicState.from_kvm_struct(response.kvm_struct))


@_operation
def set_lapic(vcpu: int, state: LapicState | bytes) -> Call[None]:
    """KVM_SET_LAPIC, from a state or the kernel's struct. InvalidArgument if the vCPU has no local APIC."""
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_lapic", pb.SetLapicRequest(vcpu=vcpu, kvm_struct=data), _nothing)


@_operation
def advance_clock(nanoseconds: int) -> Call[Advance]:
    """Moves a virtual clock. It stops early after 10,000 expirations: repeat it with `remaining_ns`.

    InvalidArgument if the clock is real.
    """
    return Call("advance_clock", pb.AdvanceClockRequest(nanoseconds=nanoseconds), Advance.from_proto)


@_operation
def get_pit() -> Call[PitState]:
    """KVM_GET_PIT2. NotReady without a PIT."""
    from ._state import PitState

    return Call("get_pit", pb.GetPitRequest(), lambda response: PitState.from_kvm_struct(response.kvm_struct))


@_operation
def set_pit(state: PitState | bytes) -> Call[None]:
    """KVM_SET_PIT2, from a state or the kernel's struct. It reloads the count of every channel.

    With the 72 bytes of struct kvm_pit_state it is KVM_SET_PIT: the flags stay. NotReady without a PIT.
    """
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_pit", pb.SetPitRequest(kvm_struct=data), _nothing)


@_operation
def set_pit_reinject(reinject: bool) -> Call[None]:
    """KVM_REINJECT_CONTROL: whether a tick that cannot be delivered waits or is lost. NotReady without a PIT."""
    return Call("set_pit_reinject", pb.SetPitReinjectRequest(reinject=reinject), _nothing)


@_repeated
def msr_read(vcpu: int, msr: int) -> Call[MsrAccess]:
    """A vCPU's RDMSR. NotReady if the vCPU has no local APIC."""
    return RecordCall("msr_read", (0, vcpu, _word(msr), 0), _MSR)


@_operation
def msr_write(vcpu: int, msr: int, data: int) -> Call[MsrAccess]:
    """A vCPU's WRMSR. NotReady if the vCPU has no local APIC."""
    return RecordCall("msr_write", (0, vcpu, _word(msr), data), _MSR_WRITTEN)


@_operation
def host_msr_read(vcpu: int, msr: int) -> Call[MsrAccess]:
    """KVM_GET_MSRS of one MSR: the host reads, not the guest. NotReady if the vCPU has no local APIC."""
    return Call("msr_read", pb.MsrReadRequest(vcpu=vcpu, msr=msr, host_initiated=True), _MSR.message)


@_operation
def host_msr_write(vcpu: int, msr: int, data: int) -> Call[MsrAccess]:
    """KVM_SET_MSRS of one MSR: the host writes, not the guest.

    IA32_APIC_BASE may change from any mode to any other. Writing IA32_TSC does not change IA32_TSC_ADJUST. NotReady if
    the vCPU has no local APIC.
    """
    request = pb.MsrWriteRequest(vcpu=vcpu, msr=msr, data=data, host_initiated=True)
    return Call("msr_write", request, _MSR_WRITTEN.message)


@_repeated
def sysreg_read(vcpu: int, sysreg: int) -> Call[SysregAccess]:
    """An arm64 vCPU's MRS; irqchip_client.arm64.SYSREGS has the registers."""
    return RecordCall("sysreg_read", (0, vcpu, _word(sysreg), 0), _SYSREG)


@_operation
def sysreg_write(vcpu: int, sysreg: int, data: int) -> Call[SysregAccess]:
    """An arm64 vCPU's MSR of a system register."""
    return RecordCall("sysreg_write", (0, vcpu, _word(sysreg), data), _SYSREG_WRITTEN)


@_operation
def vcpu_init(vcpu: int, features: int = 0, target: int | None = None) -> Call[None]:
    """KVM_ARM_VCPU_INIT: with the preferred target, if no other is given."""
    return Call("vcpu_init", pb.VcpuInitRequest(vcpu=vcpu, features=features, target=target), _nothing)


@_operation
def set_device_attr(
    group: int, attr: int, data: int | bytes, *, device: int | None = None, vcpu: int | None = None
) -> Call[None]:
    """KVM_SET_DEVICE_ATTR on a device or on a vCPU.

    data is the value that addr points to; a number is 8 bytes, least first.
    """
    request = pb.SetDeviceAttrRequest(target=_target(device, vcpu), group=group, attr=attr, data=_bytes(data))
    return Call("set_device_attr", request, _nothing)


@_operation
def get_device_attr(
    group: int, attr: int, data: int | bytes, *, device: int | None = None, vcpu: int | None = None
) -> Call[bytes]:
    """KVM_GET_DEVICE_ATTR on a device or a vCPU. data is the value that addr points to before the call."""
    request = pb.GetDeviceAttrRequest(target=_target(device, vcpu), group=group, attr=attr, data=_bytes(data))
    return Call("get_device_attr", request, lambda response: bytes(response.data))


@_operation
def has_device_attr(group: int, attr: int, *, device: int | None = None, vcpu: int | None = None) -> Call[None]:
    """KVM_HAS_DEVICE_ATTR on a device or a vCPU. NotReady (ENXIO) if there is no such attribute."""
    request = pb.HasDeviceAttrRequest(target=_target(device, vcpu), group=group, attr=attr)
    return Call("has_device_attr", request, _nothing)


def _bytes(data: int | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.to_bytes(8, "little")


def _target(device: int | None, vcpu: int | None) -> pb.AttrTarget:
    if device is not None and vcpu is None:
        return pb.AttrTarget(device=device)
    if device is None and vcpu is not None:
        return pb.AttrTarget(vcpu=vcpu)
    raise ValueError("an attribute is of a device or of a vCPU: give one of them")


@_operation
def set_cpuid(
    vcpu: int,
    *,
    x2apic: bool = True,
    tsc_deadline: bool = True,
    tsc_adjust: bool = True,
    physical_address_bits: int = 52,
) -> Call[None]:
    """KVM_SET_CPUID2: the features of the guest's CPUID that the local APIC depends on. A new vCPU has all.

    InvalidArgument for less than 32 or more than 52 bits; NotReady if the vCPU has no local APIC.
    """
    request = pb.SetCpuidRequest(
        vcpu=vcpu,
        x2apic=x2apic,
        tsc_deadline=tsc_deadline,
        tsc_adjust=tsc_adjust,
        physical_address_bits=physical_address_bits,
    )
    return Call("set_cpuid", request, _nothing)


@_operation
def cr8_read(vcpu: int) -> Call[int]:
    """A vCPU's MOV from CR8: the upper half of TPR. NotReady if the vCPU has no local APIC."""
    return Call("cr8_read", pb.Cr8ReadRequest(vcpu=vcpu), lambda response: int(response.value))


@_operation
def cr8_write(vcpu: int, value: int) -> Call[None]:
    """A vCPU's MOV to CR8. It sets TPR even if the local APIC is disabled.

    InvalidArgument above 15; NotReady if the vCPU has no local APIC.
    """
    return Call("cr8_write", pb.Cr8WriteRequest(vcpu=vcpu, value=value), _nothing)


@_operation
def get_vcpu_events(vcpu: int) -> Call[VcpuEvents]:
    """KVM_GET_VCPU_EVENTS: the events that wait for a vCPU outside of any chip. NotReady without a local APIC."""
    request = pb.GetVcpuEventsRequest(vcpu=vcpu)
    return Call("get_vcpu_events", request, lambda response: VcpuEvents.from_proto(response.events))


@_operation
def set_vcpu_events(vcpu: int, events: VcpuEvents) -> Call[None]:
    """KVM_SET_VCPU_EVENTS. A field that is None keeps its value.

    InvalidArgument for a number above 255; NotReady if the vCPU has no local APIC.
    """
    if not isinstance(events, VcpuEvents):
        raise TypeError("events is no VcpuEvents")
    return Call("set_vcpu_events", pb.SetVcpuEventsRequest(vcpu=vcpu, events=events.to_proto()), _nothing)


@_operation
def interrupt(vcpu: int, vector: int) -> Call[None]:
    """KVM_INTERRUPT: with a split irqchip, the VMM's PIC sends the vCPU an external interrupt.

    AlreadyExists until the vCPU has taken the last one; NotReady if irqchipd holds the PIC, or the vCPU has no local
    APIC.
    """
    return Call("interrupt", pb.InterruptRequest(vcpu=vcpu, vector=vector), _nothing)


@_operation
def nmi(vcpu: int) -> Call[None]:
    """KVM_NMI. NotReady if the vCPU has no local APIC."""
    return Call("nmi", pb.NmiRequest(vcpu=vcpu), _nothing)


@_operation
def get_mp_state(vcpu: int) -> Call[MpState]:
    """KVM_GET_MP_STATE."""
    return Call("get_mp_state", pb.GetMpStateRequest(vcpu=vcpu), lambda response: MpState.from_proto(response.state))


@_operation
def set_mp_state(vcpu: int, state: MpState) -> Call[None]:
    """KVM_SET_MP_STATE. InvalidArgument for any state but RUNNABLE if the vCPU has no local APIC."""
    request = pb.SetMpStateRequest(vcpu=vcpu, state=MpState(state).to_proto())
    return Call("set_mp_state", request, _nothing)


@_operation
def take_signal(vcpu: int) -> Call[Signal | None]:
    """Takes one signal that waits for a vCPU. None if no signal waits.

    The order is INIT, SIPI, an injected NMI, SMI, NMI. While the vCPU waits for INIT or SIPI, it takes no SMI and no
    NMI. An INIT discards them. NotReady if the vCPU has no local APIC.
    """
    return Call(
        "take_signal",
        pb.TakeSignalRequest(vcpu=vcpu),
        lambda response: _signal(response.signal) if response.HasField("signal") else None,
    )


@_operation
def halt(vcpu: int, *, interrupts_masked: bool = False, timeout: float | None = None) -> Call[Wake]:
    """A vCPU's HLT. The answer comes when the vCPU has an interrupt or a signal to take; the result is what it took.

    A halt is the last operation of its batch, and later batches do not wait for it. TimedOut if nothing came within
    `timeout` seconds; Busy while the vCPU halts already; NotReady if the vCPU has no local APIC.
    """
    timeout_ns = 0  # no limit
    if timeout is not None:
        timeout_ns = max(1, round(seconds(timeout) * 1e9))

    def nothing_came() -> TimedOut:
        when = "in time" if timeout is None else f"within {timeout:g} s"
        return TimedOut(errno.ETIMEDOUT, f"nothing for vCPU {vcpu} to take came {when}")

    def from_message(response: pb.HaltResponse) -> Wake:
        match response.WhichOneof("reason"):
            case "interrupt":
                return _interrupt(response.interrupt)
            case "signal":
                return _signal(response.signal)
            case "timeout":
                raise nothing_came()
        raise protocol_error("no reason for a Halt to end")

    def from_record(reason: int, status: int, value: int) -> Wake:
        if reason == INTERRUPT:
            return _interrupt_of(value, status)
        if reason == SIGNAL:
            return Signal(SignalKind(status), value)
        if reason == TIMEOUT:
            raise nothing_came()
        raise protocol_error("no reason for a Halt to end")

    fields = (interrupts_masked, vcpu, 0, timeout_ns)
    return RecordCall("halt", fields, Decoder(from_message, from_record), waits=timeout)
