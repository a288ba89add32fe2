"""Every call of irqchip.v1 that is not a stream, described once and without I/O."""

import errno
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb

from ._errors import InvalidArgument
from ._model import Access, Interrupt, InterruptSource, Route, VmInfo, route_from_proto
from ._state import Chip, IoapicState, LapicState, PicState

T = TypeVar("T", covariant=True)  # So that a list of calls of several kinds is one of Call[object].
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call, and how to read its response. The same one is made by an RPC of its own or in a Session's batch."""

    operation: str  # As in the proto's Operation: "irq_line".
    request: Message  # Without the VM, which the caller knows.
    parse: Callable[[Any], T]  # Takes the response message.

    @property
    def method(self) -> str:
        """The RPC's name: "IrqLine"."""
        return self.operation.title().replace("_", "")

    def request_for(self, vm: str) -> Message:
        """The RPC's request."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        if vm:
            try:
                setattr(request, "vm", vm)  # noqa: B010 - Message has no such attribute; these requests do.
            except ValueError:
                raise InvalidArgument(errno.EINVAL, f"{vm!r} is no VM's name") from None
        return request

    def as_operation(self) -> pb.Operation:
        """The same in a Session's batch. Raises InvalidArgument for a call that is not made there."""
        if self.operation not in pb.Operation.DESCRIPTOR.fields_by_name:
            raise InvalidArgument(errno.EINVAL, f"{self.operation} is no operation of a Session; call it on the VM")
        operation = pb.Operation()
        getattr(operation, self.operation).CopyFrom(self.request)
        return operation


def _checked(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Turns protobuf's complaint about an argument that does not fit its field into an error of ours, and None too.

    To protobuf None means a field's default, and a line or a vCPU of 0 is not what was meant.
    """
    signature = inspect.signature(make)

    @wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        try:
            if None in args or None in kwargs.values():
                raise ValueError("None is not allowed")
            return make(*args, **kwargs)
        except (ValueError, TypeError) as error:
            arguments = signature.bind(*args, **kwargs).arguments
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise InvalidArgument(errno.EINVAL, f"{make.__name__}({given:.200}): {error}") from None

    return checked


def _nothing(_response: Message) -> None:
    return None


# VMs and the daemon: not in a Session.


@_checked
def create_vm(name: str) -> Call[str]:
    return Call("create_vm", pb.CreateVmRequest(vm=name), lambda response: str(response.vm))


def delete_vm() -> Call[None]:
    return Call("delete_vm", pb.DeleteVmRequest(), _nothing)


def list_vms() -> Call[list[VmInfo]]:
    return Call("list_vms", pb.ListVmsRequest(), lambda response: [VmInfo.from_proto(vm) for vm in response.vms])


def get_vm() -> Call[VmInfo]:
    return Call("get_vm", pb.GetVmRequest(), lambda response: VmInfo.from_proto(response.vm))


@_checked
def check_extension(capability: int) -> Call[int]:
    return Call(
        "check_extension",
        pb.CheckExtensionRequest(capability=capability),
        lambda response: int(response.value),
    )


def create_irqchip() -> Call[None]:
    return Call("create_irqchip", pb.CreateIrqchipRequest(), _nothing)


# Operations: what irqchip_client.ops shows.


@_checked
def create_vcpu(vcpu: int) -> Call[None]:
    """KVM_CREATE_VCPU. AlreadyExists where the id is taken, InvalidArgument where it is out of range."""
    return Call("create_vcpu", pb.CreateVcpuRequest(vcpu=vcpu), _nothing)


@_checked
def irq_line(gsi: int, level: bool) -> Call[int]:
    """KVM_IRQ_LINE_STATUS: the level that the caller's source drives on a GSI. NotReady without an irqchip.

    The status, summed over the chips the GSI is routed to: -1 masked or ignored, 0 coalesced with one still
    pending, 1 or more delivered to so many. Lowering a line gives 1 a chip.
    """
    return Call("irq_line", pb.IrqLineRequest(gsi=gsi, level=level), _status)


@_checked
def signal_msi(address: int, data: int, flags: int = 0) -> Call[int]:
    """KVM_SIGNAL_MSI. How many local APICs accepted it; -1: nobody was addressed."""
    return Call("signal_msi", pb.SignalMsiRequest(address=address, data=data, flags=flags), _status)


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


@_checked
def pio_read(vcpu: int, port: int, size: int = 1) -> Call[Access]:
    """A vCPU's IN from a port, of 1, 2 or 4 bytes."""
    return Call("pio_read", pb.PioReadRequest(vcpu=vcpu, port=port, size=size), _access)


@_checked
def pio_write(vcpu: int, port: int, data: int, size: int = 1) -> Call[bool]:
    """A vCPU's OUT to a port, of 1, 2 or 4 bytes. Whether a device claims the port."""
    return Call("pio_write", pb.PioWriteRequest(vcpu=vcpu, port=port, data=data, size=size), _claimed)


@_checked
def mmio_read(vcpu: int, address: int, size: int = 4) -> Call[Access]:
    """A vCPU's load from a guest physical address, of 1, 2, 4 or 8 bytes."""
    return Call("mmio_read", pb.MmioReadRequest(vcpu=vcpu, address=address, size=size), _access)


@_checked
def mmio_write(vcpu: int, address: int, data: int, size: int = 4) -> Call[bool]:
    """A vCPU's store to a guest physical address, of 1, 2, 4 or 8 bytes. Whether a device claims the address."""
    return Call("mmio_write", pb.MmioWriteRequest(vcpu=vcpu, address=address, data=data, size=size), _claimed)


@_checked
def ack_interrupt(vcpu: int, source: InterruptSource = InterruptSource.ANY) -> Call[Interrupt | None]:
    """A vCPU's INTA: it accepts the interrupt that it would take now. None where there is none.

    NotReady where the vCPU has no local APIC.
    """
    # The generated type of an enum's field is the enum, of whose values these are the numbers.
    request = pb.AckInterruptRequest(vcpu=vcpu, source=pb.InterruptSource.ValueType(source))
    return Call("ack_interrupt", request, _interrupt)


@overload
def get_irqchip(chip: Literal[Chip.IOAPIC]) -> Call[IoapicState]: ...
@overload
def get_irqchip(chip: Literal[Chip.PIC_PRIMARY, Chip.PIC_SECONDARY]) -> Call[PicState]: ...
@overload
def get_irqchip(chip: Chip) -> Call[PicState | IoapicState]: ...
@_checked
def get_irqchip(chip: Chip) -> Call[Any]:
    """KVM_GET_IRQCHIP. NotReady without an irqchip."""
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
    request = pb.GetLapicRequest(vcpu=vcpu)
    return Call("get_lapic", request, lambda response: LapicState.from_kvm_struct(response.kvm_struct))


@_checked
def set_lapic(vcpu: int, state: LapicState | bytes) -> Call[None]:
    """KVM_SET_LAPIC, from a state or the kernel's struct. InvalidArgument where the vCPU has no local APIC."""
    data = state if isinstance(state, bytes) else state.kvm_struct
    return Call("set_lapic", pb.SetLapicRequest(vcpu=vcpu, kvm_struct=data), _nothing)


def _status(response: pb.IrqLineResponse | pb.SignalMsiResponse) -> int:
    return response.status


def _access(response: pb.PioReadResponse | pb.MmioReadResponse) -> Access:
    return Access(response.claimed, response.data)


def _claimed(response: pb.PioWriteResponse | pb.MmioWriteResponse) -> bool:
    return response.claimed


def _interrupt(response: pb.AckInterruptResponse) -> Interrupt | None:
    if not response.HasField("vector"):
        return None
    return Interrupt(response.vector, InterruptSource(response.source))
