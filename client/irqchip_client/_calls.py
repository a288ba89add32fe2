"""Every call of irqchip.v1 that is not a stream, described once and without I/O."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from google.protobuf.message import Message

from irqchip.records import CLAIMED, FAULT, INTERRUPT, IS_DOORBELL, SIGNAL, TIMEOUT, UNANSWERED, WITHOUT_STATUS
from irqchip.v1 import irqchip_pb2 as pb

from ._call import Call, RecordCall, check_name
from ._call import checked as _checked
from ._call import checked_access as _checked_access
from ._call import seconds as _seconds
from ._errors import InvalidArgument, TimedOut, protocol_error
from ._model import (
    Access,
    Advance,
    Claim,
    Interrupt,
    InterruptSource,
    MpState,
    MsrAccess,
    ResetReason,
    Route,
    Signal,
    SignalKind,
    Space,
    VcpuEvents,
    VmSnapshot,
    Wake,
    route_from_proto,
)

if TYPE_CHECKING:  # Loaded by who asks for a chip's state.
    from ._state import Chip, IoapicState, LapicState, PicState, PitState

KVM_CAP_SPLIT_IRQCHIP = 121  # <linux/kvm.h>
KVM_PIT_SPEAKER_DUMMY = 1


def _nothing(_response: Message) -> None:
    return None


# VMs and the daemon: not in a Session. What comes in pages, _pages puts together.


@_checked
def create_vm(name: str, virtual_clock: bool = False, tsc_khz: int = 0) -> Call[str]:
    check_name("VM", name)
    clock = pb.CLOCK_KIND_VIRTUAL if virtual_clock else pb.CLOCK_KIND_REAL
    return Call("create_vm", pb.CreateVmRequest(vm=name, clock=clock, tsc_khz=tsc_khz), _made_vm)


def delete_vm() -> Call[None]:
    return Call("delete_vm", pb.DeleteVmRequest(), _nothing)


def list_vms(page_token: str = "") -> Call[pb.ListVmsResponse]:
    return Call("list_vms", pb.ListVmsRequest(page_token=page_token), lambda page: page)


def get_vm(page_token: str = "") -> Call[pb.GetVmResponse]:
    return Call("get_vm", pb.GetVmRequest(page_token=page_token), lambda page: page)


@_checked
def reset_vm(reason: ResetReason) -> Call[None]:
    request = pb.ResetVmRequest(reason=pb.ResetReason.ValueType(ResetReason(reason)))
    return Call("reset_vm", request, _nothing)


def save_vm() -> Call[VmSnapshot]:
    return Call("save_vm", pb.SaveVmRequest(), lambda response: VmSnapshot.from_proto(response.snapshot))


@_checked
def restore_vm(snapshot: VmSnapshot, name: str = "") -> Call[str]:
    if not isinstance(snapshot, VmSnapshot):
        raise TypeError(
            f"it is of type {type(snapshot).__name__}, and no VmSnapshot, which VmSnapshot.from_bytes() makes of bytes"
        )
    check_name("VM", name)
    return Call("restore_vm", pb.RestoreVmRequest(vm=name, snapshot=snapshot.to_proto()), _made_vm)


@_checked
def check_extension(capability: int) -> Call[int]:
    return Call(
        "check_extension",
        pb.CheckExtensionRequest(capability=capability),
        lambda response: int(response.value),
    )


@_checked
def enable_cap(capability: int, args: Iterable[int]) -> Call[None]:
    return Call("enable_cap", pb.EnableCapRequest(capability=capability, args=args), _nothing)


@_checked
def set_boot_cpu_id(vcpu: int) -> Call[None]:
    return Call("set_boot_cpu_id", pb.SetBootCpuIdRequest(vcpu=vcpu), _nothing)


def create_irqchip() -> Call[None]:
    return Call("create_irqchip", pb.CreateIrqchipRequest(), _nothing)


@_checked
def create_pit(speaker: bool) -> Call[None]:
    return Call("create_pit", pb.CreatePitRequest(flags=KVM_PIT_SPEAKER_DUMMY * speaker), _nothing)


def watch_request(vm: str, tracepoints: Iterable[str]) -> pb.WatchRequest:
    """What opens a Watch. Raises InvalidArgument for names that are none."""
    from ._arguments import what_is_wrong

    check_name("VM", vm)
    if wrong := what_is_wrong("watch", {"tracepoints": tracepoints}):
        raise InvalidArgument(errno.EINVAL, f"watch: {wrong}")
    names = list(tracepoints)
    for name in names:
        check_name("tracepoint", name)
    try:
        return pb.WatchRequest(vm=vm, tracepoints=names)
    except ValueError as error:
        raise InvalidArgument(errno.EINVAL, f"watch: tracepoints: {error!s:.200}") from None


# Operations: what irqchip_client.ops shows.


@_checked
def create_vcpu(vcpu: int) -> Call[None]:
    """KVM_CREATE_VCPU. AlreadyExists where the id is taken, InvalidArgument where it is out of range."""
    return Call("create_vcpu", pb.CreateVcpuRequest(vcpu=vcpu), _nothing)


@_checked_access
def irq_line(gsi: int, level: bool, *, without_status: bool = False) -> Call[int]:
    """KVM_IRQ_LINE_STATUS: the level that the caller's source drives on a GSI. NotReady without an irqchip.

    without_status  KVM_IRQ_LINE, which the counting of the RTC's ticks, on GSI 8, lets through and misses

    The status, summed over the chips the GSI is routed to: -1 masked or ignored, 0 coalesced with one still
    pending, 1 or more delivered to so many. Lowering a line gives 1 a chip.
    """
    size = WITHOUT_STATUS if without_status else 0
    return RecordCall("irq_line", (size, gsi, 0, level), _irq_line, _status, _status_record)


@_checked
def irq_lines(changes: Iterable[tuple[int, bool]]) -> Call[list[int]]:
    """Many irq_line in one, each a GSI and its level: all are done, in order, or where one is refused none.

    The fastest way to drive lines: of a batch of 256 changes it saves most of the time. At most 4096.
    """
    packed = [gsi << 1 | bool(level) for gsi, level in changes]
    return Call("irq_lines", pb.IrqLinesRequest(changes=packed), lambda response: list(response.statuses))


@_checked
def irqfd(gsi: int, flags: int = 0) -> Call[None]:
    return Call("irqfd", pb.IrqfdRequest(gsi=gsi, flags=flags), _nothing)


@_checked
def register_region(
    space: Space, address: int, length: int, *, doorbell: bool = False, datamatch: int | None = None
) -> Call[None]:
    """The Session answers for a range of ports or addresses: it gets a RegionAccess, and complete_access() answers.

    doorbell   it is told of writes by a Doorbell, and no vCPU waits: KVM_IOEVENTFD; reads are unclaimed
    datamatch  only writes of this value, and of the range's length, ring; others are unclaimed

    AlreadyExists where part of the range is claimed; InvalidArgument; LimitReached.
    """
    if datamatch is not None:
        return Call("register_region", _register_region(space, doorbell, address, length, datamatch), _nothing)
    fields = (space | IS_DOORBELL if doorbell else space, 0, address, length)
    return RecordCall("register_region", fields, _register_region_record, _nothing, _nothing_record)


@_checked
def register_ioeventfd(space: Space, address: int, length: int, datamatch: int | None = None) -> Call[None]:
    request = _register_region(space, True, address, length, datamatch)
    request.eventfd = True
    return Call("register_region", request, _nothing)


@_checked
def unregister_region(space: Space, address: int, datamatch: int | None = None) -> Call[None]:
    """The reverse; what of it waits for an answer is completed as unanswered. NotFound where the Session has none."""
    request = pb.UnregisterRegionRequest(space=_space(space), address=address, datamatch=datamatch)
    return Call("unregister_region", request, _nothing)


@_checked
def complete_access(access: int, data: int = 0, *, unanswered: bool = False) -> Call[bool]:
    """The answer to a RegionAccess, with what is read. Whether the access was still waiting for it.

    unanswered  there is no answer, as the device is broken say: the vCPU reads all ones, and is told so

    InvalidArgument where the data does not fit the access's size, or is unanswered: the vCPU still waits.
    """
    fields = (int(unanswered), 0, access, data)
    return RecordCall("complete_access", fields, _complete_access, _completed, _completed_record)


@_checked
def signal_msi(address: int, data: int, flags: int = 0) -> Call[int]:
    """KVM_SIGNAL_MSI. How many local APICs accepted it; -1: nobody was addressed."""
    return RecordCall("signal_msi", (0, flags, address, _word(data)), _signal_msi, _status, _status_record)


@_checked
def set_gsi_routing(routes: Iterable[Route]) -> Call[None]:
    """KVM_SET_GSI_ROUTING: replaces the whole table. InvalidArgument, and the old table stays, where KVM refuses it."""
    request = pb.SetGsiRoutingRequest(entries=[route.to_proto() for route in routes])
    return Call("set_gsi_routing", request, _nothing)


def get_gsi_routing() -> Call[list[Route]]:
    """The routing table, in the order in which it was set."""
    return Call(
        "get_gsi_routing",
        pb.GetGsiRoutingRequest(),
        lambda response: [route_from_proto(entry) for entry in response.entries],
    )


@_checked_access
def pio_read(vcpu: int, port: int, size: int = 1) -> Call[Access]:
    """A vCPU's IN from a port, of 1, 2 or 4 bytes."""
    return RecordCall("pio_read", (size, vcpu, _word(port), 0), _pio_read, _access, _access_record)


@_checked
def pio_write(vcpu: int, port: int, data: int, size: int = 1) -> Call[Claim]:
    """A vCPU's OUT to a port, of 1, 2 or 4 bytes. False where no device claims it."""
    return RecordCall("pio_write", (size, vcpu, _word(port), _word(data)), _pio_write, _claimed, _claimed_record)


@_checked_access
def mmio_read(vcpu: int, address: int, size: int = 4) -> Call[Access]:
    """A vCPU's load from a guest physical address, of 1, 2, 4 or 8 bytes."""
    return RecordCall("mmio_read", (size, vcpu, address, 0), _mmio_read, _access, _access_record)


@_checked
def mmio_write(vcpu: int, address: int, data: int, size: int = 4) -> Call[Claim]:
    """A vCPU's store to a guest physical address, of 1, 2, 4 or 8 bytes. False where no device claims it."""
    return RecordCall("mmio_write", (size, vcpu, address, data), _mmio_write, _claimed, _claimed_record)


@_checked_access
def ack_interrupt(vcpu: int, source: InterruptSource = InterruptSource.ANY) -> Call[Interrupt | None]:
    """A vCPU's INTA: it accepts the interrupt that it would take now. None where there is none.

    NotReady where the vCPU has no local APIC.
    """
    return RecordCall("ack_interrupt", (source, vcpu, 0, 0), _ack_interrupt, _interrupt, _interrupt_record)


@overload
def get_irqchip(chip: Literal[Chip.IOAPIC]) -> Call[IoapicState]: ...
@overload
def get_irqchip(chip: Literal[Chip.PIC_PRIMARY, Chip.PIC_SECONDARY]) -> Call[PicState]: ...
@overload
def get_irqchip(chip: Chip) -> Call[PicState | IoapicState]: ...
@_checked
def get_irqchip(chip: Chip) -> Call[Any]:
    """KVM_GET_IRQCHIP. NotReady without an irqchip."""
    from ._state import Chip, IoapicState, PicState

    state = IoapicState if chip == Chip.IOAPIC else PicState
    request = pb.GetIrqchipRequest(chip_id=chip)
    return Call("get_irqchip", request, lambda response: state.from_kvm_struct(response.kvm_struct))


@_checked
def set_irqchip(chip: Chip, state: PicState | IoapicState | bytes) -> Call[None]:
    """KVM_SET_IRQCHIP, from a state or the kernel's struct. It takes what the kernel takes. NotReady without one."""
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_irqchip", pb.SetIrqchipRequest(chip_id=chip, kvm_struct=data), _nothing)


@_checked
def get_lapic(vcpu: int) -> Call[LapicState]:
    """KVM_GET_LAPIC. InvalidArgument where the vCPU has no local APIC."""
    from ._state import LapicState

    request = pb.GetLapicRequest(vcpu=vcpu)
    return Call("get_lapic", request, lambda response: LapicState.from_kvm_struct(response.kvm_struct))


@_checked
def set_lapic(vcpu: int, state: LapicState | bytes) -> Call[None]:
    """KVM_SET_LAPIC, from a state or the kernel's struct. InvalidArgument where the vCPU has no local APIC."""
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_lapic", pb.SetLapicRequest(vcpu=vcpu, kvm_struct=data), _nothing)


@_checked
def advance_clock(nanoseconds: int) -> Call[Advance]:
    """Moves a virtual clock. It stops short after 10,000 expirations: go on with what remains.

    InvalidArgument where the clock is real.
    """
    return Call("advance_clock", pb.AdvanceClockRequest(nanoseconds=nanoseconds), Advance.from_proto)


def get_pit() -> Call[PitState]:
    """KVM_GET_PIT2. NotReady without a PIT."""
    from ._state import PitState

    return Call("get_pit", pb.GetPitRequest(), lambda response: PitState.from_kvm_struct(response.kvm_struct))


@_checked
def set_pit(state: PitState | bytes) -> Call[None]:
    """KVM_SET_PIT2, from a state or the kernel's struct: every channel's count is loaded anew. NotReady without one.

    Of the 72 bytes of struct kvm_pit_state it is KVM_SET_PIT: the flags stay.
    """
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_pit", pb.SetPitRequest(kvm_struct=data), _nothing)


@_checked
def set_pit_reinject(reinject: bool) -> Call[None]:
    """KVM_REINJECT_CONTROL: whether ticks that could not be delivered wait, or are lost. NotReady without a PIT."""
    return Call("set_pit_reinject", pb.SetPitReinjectRequest(reinject=reinject), _nothing)


@_checked_access
def msr_read(vcpu: int, msr: int) -> Call[MsrAccess]:
    """A vCPU's RDMSR. NotReady where it has no local APIC."""
    return RecordCall("msr_read", (0, vcpu, _word(msr), 0), _msr_read, _msr, _msr_record)


@_checked
def msr_write(vcpu: int, msr: int, data: int) -> Call[MsrAccess]:
    """A vCPU's WRMSR. NotReady where it has no local APIC."""
    return RecordCall("msr_write", (0, vcpu, _word(msr), data), _msr_write, _msr_written, _msr_record)


@_checked
def host_msr_read(vcpu: int, msr: int) -> Call[MsrAccess]:
    """KVM_GET_MSRS of one: not the vCPU's, and no entry into its guest. NotReady where it has no local APIC."""
    return Call("msr_read", pb.MsrReadRequest(vcpu=vcpu, msr=msr, host_initiated=True), _msr)


@_checked
def host_msr_write(vcpu: int, msr: int, data: int) -> Call[MsrAccess]:
    """KVM_SET_MSRS of one: IA32_APIC_BASE goes from any mode to any other, and IA32_TSC leaves IA32_TSC_ADJUST.

    NotReady where the vCPU has no local APIC.
    """
    request = pb.MsrWriteRequest(vcpu=vcpu, msr=msr, data=data, host_initiated=True)
    return Call("msr_write", request, _msr_written)


@_checked
def set_cpuid(
    vcpu: int,
    *,
    x2apic: bool = True,
    tsc_deadline: bool = True,
    tsc_adjust: bool = True,
    physical_address_bits: int = 52,
) -> Call[None]:
    """KVM_SET_CPUID2: what the guest's CPUID has, as far as the local APIC goes by it. At first it has everything.

    InvalidArgument for less than 32 or more than 52 bits; NotReady where the vCPU has no local APIC.
    """
    request = pb.SetCpuidRequest(
        vcpu=vcpu,
        x2apic=x2apic,
        tsc_deadline=tsc_deadline,
        tsc_adjust=tsc_adjust,
        physical_address_bits=physical_address_bits,
    )
    return Call("set_cpuid", request, _nothing)


@_checked
def cr8_read(vcpu: int) -> Call[int]:
    """A vCPU's MOV from CR8: TPR's upper half. NotReady where it has no local APIC."""
    return Call("cr8_read", pb.Cr8ReadRequest(vcpu=vcpu), lambda response: int(response.value))


@_checked
def cr8_write(vcpu: int, value: int) -> Call[None]:
    """A vCPU's MOV to CR8, which sets TPR also while the local APIC is disabled. InvalidArgument above 15; NotReady."""
    return Call("cr8_write", pb.Cr8WriteRequest(vcpu=vcpu, value=value), _nothing)


@_checked
def get_vcpu_events(vcpu: int) -> Call[VcpuEvents]:
    """KVM_GET_VCPU_EVENTS, of what is irqchipd's. NotReady where the vCPU has no local APIC."""
    request = pb.GetVcpuEventsRequest(vcpu=vcpu)
    return Call("get_vcpu_events", request, lambda response: VcpuEvents.from_proto(response.events))


@_checked
def set_vcpu_events(vcpu: int, events: VcpuEvents) -> Call[None]:
    """KVM_SET_VCPU_EVENTS: what is None stays. InvalidArgument for a number above 255; NotReady."""
    if not isinstance(events, VcpuEvents):
        raise TypeError("events is no VcpuEvents")
    return Call("set_vcpu_events", pb.SetVcpuEventsRequest(vcpu=vcpu, events=events.to_proto()), _nothing)


@_checked
def interrupt(vcpu: int, vector: int) -> Call[None]:
    """KVM_INTERRUPT: with a split irqchip, an external interrupt of the VMM's own PIC.

    AlreadyExists while the vCPU has not taken the last one; NotReady where irqchipd has the PIC, or the vCPU has no
    local APIC.
    """
    return Call("interrupt", pb.InterruptRequest(vcpu=vcpu, vector=vector), _nothing)


@_checked
def nmi(vcpu: int) -> Call[None]:
    """KVM_NMI. NotReady where the vCPU has no local APIC."""
    return Call("nmi", pb.NmiRequest(vcpu=vcpu), _nothing)


@_checked
def get_mp_state(vcpu: int) -> Call[MpState]:
    """KVM_GET_MP_STATE."""
    return Call("get_mp_state", pb.GetMpStateRequest(vcpu=vcpu), lambda response: MpState.from_proto(response.state))


@_checked
def set_mp_state(vcpu: int, state: MpState) -> Call[None]:
    """KVM_SET_MP_STATE. InvalidArgument for any but RUNNABLE where the vCPU has no local APIC."""
    request = pb.SetMpStateRequest(vcpu=vcpu, state=MpState(state).to_proto())
    return Call("set_mp_state", request, _nothing)


@_checked
def take_signal(vcpu: int) -> Call[Signal | None]:
    """Takes what waits for a vCPU beside interrupts: INIT, then SIPI, SMI, NMI. None where nothing does.

    While the vCPU waits for INIT or SIPI, an SMI or NMI stays, to be taken once it has started; an INIT loses it.
    NotReady where it has no local APIC.
    """
    return Call("take_signal", pb.TakeSignalRequest(vcpu=vcpu), _signal)


@_checked
def halt(vcpu: int, *, interrupts_masked: bool = False, timeout: float | None = None) -> Call[Wake]:
    """A vCPU's HLT: it is answered when the vCPU has something to take, which it then has taken.

    It is the last operation of its batch, and batches after that do not wait for it. TimedOut where there was nothing
    within `timeout` seconds; Busy while the vCPU halts already; NotReady where it has no local APIC.
    """
    timeout_ns = 0  # Never.
    if timeout is not None:
        timeout_ns = max(1, round(_seconds(timeout) * 1e9))

    def wake(response: pb.HaltResponse) -> Wake:
        match response.WhichOneof("reason"):
            case "interrupt":
                return _interrupt_from(response.interrupt)
            case "signal":
                return _signal_from(response.signal)
            case "timeout":
                raise nothing_came()
        raise protocol_error("no reason for a Halt to end")

    def wake_record(reason: int, status: int, value: int) -> Wake:
        if reason == INTERRUPT:
            return Interrupt(value, _SOURCES[status])
        if reason == SIGNAL:
            return Signal(SignalKind(status), value)
        if reason == TIMEOUT:
            raise nothing_came()
        raise protocol_error("no reason for a Halt to end")

    def nothing_came() -> TimedOut:
        when = "in time" if timeout is None else f"within {timeout:g} s"
        return TimedOut(errno.ETIMEDOUT, f"nothing for vCPU {vcpu} to take came {when}")

    fields = (interrupts_masked, vcpu, 0, timeout_ns)
    return RecordCall("halt", fields, _halt, wake, wake_record, waits=timeout)


# The requests of records, in the order of their fields: size, vCPU or GSI, address, value.


def _word(value: int) -> int:
    """It, if it has 32 bits; ValueError."""
    if not 0 <= value <= 0xFFFF_FFFF:
        raise ValueError(f"{value} is out of range: 0 to {0xFFFF_FFFF:#x}")
    return value


def _irq_line(size: int, gsi: int, address: int, level: int) -> Message:  # noqa: ARG001
    return pb.IrqLineRequest(gsi=gsi, level=bool(level), without_status=bool(size & WITHOUT_STATUS))


def _signal_msi(size: int, flags: int, address: int, data: int) -> Message:  # noqa: ARG001
    return pb.SignalMsiRequest(address=address, data=data, flags=flags)


def _pio_read(size: int, vcpu: int, port: int, data: int) -> Message:  # noqa: ARG001
    return pb.PioReadRequest(vcpu=vcpu, port=port, size=size)


def _pio_write(size: int, vcpu: int, port: int, data: int) -> Message:
    return pb.PioWriteRequest(vcpu=vcpu, port=port, data=data, size=size)


def _mmio_read(size: int, vcpu: int, address: int, data: int) -> Message:  # noqa: ARG001
    return pb.MmioReadRequest(vcpu=vcpu, address=address, size=size)


def _mmio_write(size: int, vcpu: int, address: int, data: int) -> Message:
    return pb.MmioWriteRequest(vcpu=vcpu, address=address, data=data, size=size)


def _ack_interrupt(source: int, vcpu: int, address: int, data: int) -> Message:  # noqa: ARG001
    # The generated type of an enum's field is the enum, of whose values these are the numbers.
    return pb.AckInterruptRequest(vcpu=vcpu, source=pb.InterruptSource.ValueType(source))


def _msr_read(size: int, vcpu: int, msr: int, data: int) -> Message:  # noqa: ARG001
    return pb.MsrReadRequest(vcpu=vcpu, msr=msr)


def _msr_write(size: int, vcpu: int, msr: int, data: int) -> Message:  # noqa: ARG001
    return pb.MsrWriteRequest(vcpu=vcpu, msr=msr, data=data)


def _halt(interrupts_masked: int, vcpu: int, address: int, timeout_ns: int) -> Message:  # noqa: ARG001
    return pb.HaltRequest(vcpu=vcpu, interrupts_masked=bool(interrupts_masked), timeout_ns=timeout_ns)


def _space(space: int) -> pb.AddressSpace.ValueType:
    return pb.AddressSpace.ValueType(space)


def _register_region(
    space: int, doorbell: bool, address: int, length: int, datamatch: int | None
) -> pb.RegisterRegionRequest:
    return pb.RegisterRegionRequest(
        space=_space(space), address=address, length=length, doorbell=doorbell, datamatch=datamatch
    )


def _register_region_record(space: int, index: int, address: int, length: int) -> Message:  # noqa: ARG001
    return _register_region(space & ~IS_DOORBELL, bool(space & IS_DOORBELL), address, length, None)


def _complete_access(unanswered: int, index: int, access: int, data: int) -> Message:  # noqa: ARG001
    return pb.CompleteAccessRequest(access=access, data=data, unanswered=bool(unanswered))


# Results: of a message, and of a record.

_SOURCES = {source.value: source for source in InterruptSource}
_CLAIMS = {claim.value: claim for claim in Claim}


def _made_vm(response: pb.CreateVmResponse | pb.RestoreVmResponse) -> str:
    return response.vm


def _status(response: pb.IrqLineResponse | pb.SignalMsiResponse) -> int:
    return response.status


def _access(response: pb.PioReadResponse | pb.MmioReadResponse) -> Access:
    return Access(response.claimed, response.data, response.unanswered)


def _claimed(response: pb.PioWriteResponse | pb.MmioWriteResponse) -> Claim:
    return Claim(response.claimed * CLAIMED | response.unanswered * UNANSWERED)


def _interrupt(response: pb.AckInterruptResponse) -> Interrupt | None:
    return _interrupt_from(response.interrupt) if response.HasField("interrupt") else None


def _interrupt_from(message: pb.Interrupt) -> Interrupt:
    return Interrupt(message.vector, InterruptSource(message.source))


def _signal(response: pb.TakeSignalResponse) -> Signal | None:
    return _signal_from(response.signal) if response.HasField("signal") else None


def _signal_from(message: pb.Signal) -> Signal:
    return Signal(SignalKind(message.kind), message.vector)


def _msr(response: pb.MsrReadResponse) -> MsrAccess:
    return MsrAccess(response.claimed, response.fault, response.data)


def _msr_written(response: pb.MsrWriteResponse) -> MsrAccess:
    return MsrAccess(response.claimed, response.fault)


def _status_record(_became: int, status: int, _value: int) -> int:
    return status


def _access_record(became: int, _status: int, value: int) -> Access:
    return Access(became != 0, value, became > CLAIMED)


def _claimed_record(became: int, _status: int, _value: int) -> Claim:
    return _CLAIMS[became]


def _completed(response: pb.CompleteAccessResponse) -> bool:
    return response.completed


def _completed_record(became: int, _status: int, _value: int) -> bool:
    return became == CLAIMED


def _nothing_record(_became: int, _status: int, _value: int) -> None:
    return None


def _interrupt_record(became: int, source: int, vector: int) -> Interrupt | None:
    return Interrupt(vector, _SOURCES[source]) if became else None


def _msr_record(became: int, _status: int, value: int) -> MsrAccess:
    return MsrAccess(became & CLAIMED != 0, became & FAULT != 0, value)
