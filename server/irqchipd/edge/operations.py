"""The operations on a VM: each is a function on plain values, and a row of a table that defines its forms.

Every operation has a message in the contract, and some also have a record (irqchip/records.py). A new operation
is a function and a row here, and an RPC in the contract.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final, TypeVar

from irqchip.records import CLAIMED, FAULT, FIELDS, IS_DOORBELL, UNANSWERED, WITHOUT_STATUS
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.fault import FAULT as FAULTED
from irqchipd.edge import convert, s390
from irqchipd.edge.convert import CONTROLLERS as CONTROLLERS
from irqchipd.edge.convert import Target
from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.events import EventQueue
from irqchipd.fields import fields
from irqchipd.limits import Room
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Slices
from irqchipd.vm.regions import Access, Region, Space
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.sources import LineSource
from irqchipd.vm.turns import Advance
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET, Signal
from irqchipd.vm.x86.machine import X86Vm

log = logging.getLogger("irqchipd.edge.session")

MAX_CHANGES: Final = 4096  # of an irq_lines
MAX_CAP_ARGS: Final = 4  # of struct kvm_enable_cap

# The result of an operation that has a record: flags, a status and a value.
Result = tuple[int, int, int]

NOTHING: Final[Result] = (0, 0, 0)
TAKEN: Final[Result] = (CLAIMED, 0, 0)
_PIC: Final = int(pb.INTERRUPT_SOURCE_PIC)
_LAPIC: Final = int(pb.INTERRUPT_SOURCE_LAPIC)
MAX_ATTR_BYTES: Final = 1 << 20


class Caller:
    """A unary call has no line source: it drives the shared one."""

    __slots__ = ("source", "vm")

    def __init__(self, vm: Vm, source: LineSource | None = None) -> None:
        self.vm = vm
        self.source = source


class SessionCaller(Caller):
    """A Session has a line source, events, and perhaps eventfds."""

    __slots__ = ("eventfds", "events", "own_source")

    def __init__(self, vm: Vm, source: LineSource, events: EventQueue, eventfds: Eventfds) -> None:
        super().__init__(vm, source)
        self.own_source = source  # as `source`, but never None
        self.events = events
        self.eventfds = eventfds

    def log(self, level: int, message: str, **values: object) -> None:
        """Log something for the operator; to be called without the VM's lock."""
        if log.isEnabledFor(level):
            about = fields(vm=self.vm.name, source=self.own_source.number, client=self.own_source.client, **values)
            log.log(level, message, extra=about, stacklevel=2)  # the log limits the records of each line of code


_K = TypeVar("_K", bound=Vm)


def vm_of(on: Caller, kind: type[_K], operation: str) -> _K:
    """The VM, if its architecture has the operation."""
    vm = on.vm
    if not isinstance(vm, kind):
        raise vm.unsupported(operation)
    return vm


# Operations that have a record. Their arguments are in the record's order; `_` is an unused field.


def irq_line(on: Caller, without_status: int, gsi: int, _: int, level: int) -> Result:
    return 0, on.vm.irq_line(gsi, level != 0, on.source, line_status=not without_status & WITHOUT_STATUS), 0


def signal_msi(on: Caller, _: int, flags: int, address: int, data: int) -> Result:
    return 0, on.vm.signal_msi(address, data, flags), 0


def pio_read(on: Caller, size: int, vcpu: int, port: int, _: int) -> Result | Access:
    value = on.vm.pio_read(vcpu, port, size, on.source)
    if isinstance(value, Access):
        return value
    return NOTHING if value is None else (CLAIMED, 0, value)


def pio_write(on: Caller, size: int, vcpu: int, port: int, data: int) -> Result | Access:
    claimed = on.vm.pio_write(vcpu, port, size, data, on.source)
    if isinstance(claimed, Access):
        return claimed
    return TAKEN if claimed else NOTHING


def mmio_read(on: Caller, size: int, vcpu: int, address: int, _: int) -> Result | Access:
    value = on.vm.mmio_read(vcpu, address, size, on.source)
    if isinstance(value, Access):
        return value
    return NOTHING if value is None else (CLAIMED, 0, value)


def mmio_write(on: Caller, size: int, vcpu: int, address: int, data: int) -> Result | Access:
    claimed = on.vm.mmio_write(vcpu, address, size, data, on.source)
    if isinstance(claimed, Access):
        return claimed
    return TAKEN if claimed else NOTHING


def access_result(access: Access) -> Result:
    """The result of an access that its owner has answered, or failed to answer in time."""
    value, answered = access.result()
    return CLAIMED if answered else CLAIMED | UNANSWERED, 0, value


def ack_interrupt(on: Caller, controller: int, vcpu: int, _address: int, _data: int) -> Result:
    if controller not in (pb.INTERRUPT_SOURCE_UNSPECIFIED, _PIC, _LAPIC):
        raise invalid(f"interrupt source {controller} is invalid; 0 is any, 1 the PIC, 2 the local APIC")
    taken = vm_of(on, X86Vm, "ack_interrupt").ack_interrupt(vcpu, pic=controller != _LAPIC, lapic=controller != _PIC)
    return NOTHING if taken is None else (CLAIMED, CONTROLLERS[taken[1]], taken[0])


def _register_read(value: int | None) -> Result:
    if value is None:
        return NOTHING
    return (CLAIMED | FAULT, 0, 0) if value == FAULTED else (CLAIMED, 0, value)


def _register_written(fault: int | None) -> Result:
    if fault is None:
        return NOTHING
    return (CLAIMED | FAULT, 0, 0) if fault == FAULTED else TAKEN


def msr_read(on: Caller, _size: int, vcpu: int, msr: int, _data: int, host: bool = False) -> Result:
    value = vm_of(on, X86Vm, "msr_read").msr_read(vcpu, msr, host=host)
    return _register_read(value)


def msr_write(on: Caller, _: int, vcpu: int, msr: int, data: int, host: bool = False) -> Result:
    fault = vm_of(on, X86Vm, "msr_write").msr_write(vcpu, msr, data, host=host)
    return _register_written(fault)


def sysreg_read(on: Caller, _size: int, vcpu: int, sysreg: int, _data: int) -> Result:
    value = vm_of(on, Arm64Vm, "sysreg_read").sysreg_read(vcpu, sysreg)
    return _register_read(value)


def sysreg_write(on: Caller, _: int, vcpu: int, sysreg: int, data: int) -> Result:
    fault = vm_of(on, Arm64Vm, "sysreg_write").sysreg_write(vcpu, sysreg, data)
    return _register_written(fault)


def halt(on: Caller, interrupts_masked: int, vcpu: int, _: int, timeout_ns: int) -> Result:
    # The batch itself begins a halt at its end: that ends later.
    raise invalid("a halt is the last operation of its batch")


# Operations that have only a message.


def irq_lines(on: Caller, changes: Sequence[int]) -> Slices[list[int]]:
    if len(changes) > MAX_CHANGES:
        raise VmError(errno.E2BIG, f"{len(changes)} changes; at most {MAX_CHANGES} are allowed")
    return on.vm.driving(changes, on.source)


def get_mp_state(on: Caller, vcpu: int) -> int:
    return on.vm.get_mp_state(vcpu) + MP_STATE_OFFSET


def set_mp_state(on: Caller, vcpu: int, state: int) -> None:
    if state == pb.MP_STATE_UNSPECIFIED or state not in pb.MpState.values():
        states = ", ".join(str(number) for number in pb.MpState.values() if number)
        raise invalid(f"run state {state} is invalid; there are {states}")
    on.vm.set_mp_state(vcpu, state - MP_STATE_OFFSET)


def enable_cap(on: Caller, capability: int, flags: int, args: Sequence[int]) -> None:
    if len(args) > MAX_CAP_ARGS:
        raise invalid(f"there are {len(args)} args; at most {MAX_CAP_ARGS} are allowed")
    on.vm.enable_cap(capability, flags, (*args, *[0] * (MAX_CAP_ARGS - len(args))))


def reset_vm(on: Caller, reason: int) -> None:
    if reason not in pb.ResetReason.values():
        raise invalid(f"reset reason {reason} is invalid: 0 to {max(pb.ResetReason.values())}")
    on.vm.reset(reason)


def set_device_attr(on: Caller, target: Target, group: int, attr: int, data: bytes) -> None:
    on.vm.set_device_attr(*target, group, attr, _checked(data))


def get_device_attr(on: Caller, target: Target, group: int, attr: int, data: bytes) -> bytes:
    return on.vm.get_device_attr(*target, group, attr, _checked(data))


def has_device_attr(on: Caller, target: Target, group: int, attr: int) -> None:
    on.vm.has_device_attr(*target, group, attr)


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_ATTR_BYTES:
        raise VmError(errno.E2BIG, f"an attribute's data has {len(data)} bytes; at most {MAX_ATTR_BYTES} are allowed")
    return data


# Operations that only a Session has.


def irqfd(on: SessionCaller, flags: int, gsi: int) -> None:
    on.eventfds.irqfd(on.vm, on.own_source, flags, gsi)


def share_lapic(on: SessionCaller, vcpu: int) -> None:
    on.eventfds.share_lapic(vm_of(on, X86Vm, "share_lapic"), vcpu)


def register_region(
    on: SessionCaller,
    space: int,
    address: int,
    length: int,
    doorbell: bool,
    datamatch: int | None,
    eventfd: bool,
    memfd: bool = False,
    offset: int = 0,
    as_records: bool = False,
) -> None:
    if memfd and (space != Space.MEMORY or eventfd or doorbell):
        raise invalid(f"memfd is for the guest's memory, space {int(Space.MEMORY)}, without doorbell")
    if offset and not memfd:
        raise invalid(f"offset {offset:#x} is for a memfd: set memfd, or leave offset out")
    bell = on.eventfds.bell() if eventfd else None
    lent = on.eventfds.guest_memory(offset, length, is_mapped=on.vm.has_indicators) if memfd else None
    as_records = as_records and space != Space.MEMORY  # a record is for a vCPU's access
    listener = partial(on.events.put_access, as_record=as_records) if bell is None else bell.ring
    removed = bell.close if bell is not None else None if lent is None else lent.close
    try:
        if bell is not None and not doorbell:
            raise invalid("eventfd is for doorbells: set doorbell, or leave eventfd out")
        on.vm.register_region(
            on.own_source,
            space,
            address,
            length,
            listener,
            doorbell=doorbell,
            datamatch=datamatch,
            removed=removed,
            shared=lent,
        )
    except BaseException:
        if removed is not None:
            removed()
        raise
    what, level = ("doorbell claimed", logging.DEBUG) if doorbell else ("region claimed", logging.INFO)
    on.log(level, what, space=Space(space).name, address=hex(address), length=length)


def register_region_by_record(on: SessionCaller, space: int, _: int, address: int, length: int) -> Result:
    doorbell = space & IS_DOORBELL != 0
    register_region(on, space & ~IS_DOORBELL, address, length, doorbell, None, False, as_records=True)
    return NOTHING


def unregister_region(on: SessionCaller, space: int, address: int, datamatch: int | None) -> None:
    on.vm.unregister_region(on.own_source, space, address, datamatch)
    on.log(logging.DEBUG, "region given up", space=Space(space).name, address=hex(address))


def get_memory(on: SessionCaller, address: int) -> Region:
    region = on.vm.find_memory(address)
    assert region.shared is not None
    on.eventfds.send_memory(region.shared)
    on.log(logging.INFO, "memory handed over", address=hex(region.start), length=region.length)
    return region


def complete_access(on: SessionCaller, unanswered: int, _: int, access: int, data: int) -> Result:
    if unanswered > 1:
        raise invalid(f"unanswered is {unanswered}: use 0 or 1")
    return TAKEN if on.vm.complete_access(on.own_source, access, data, unanswered=unanswered != 0) else NOTHING


# The table.


Request = Sequence[str | None] | Callable[[Any], Sequence[Any]]
Response = str | Callable[[Any, Any], None] | None


class Operation:
    """An operation with its forms.

    request   the message's fields that are the arguments, or a function that makes the arguments of a request
    response  the message's field that is the result, or a function that fills in a response
    large     whether the result can be large. The operation changes nothing, so that the result can be dropped.
    reserve   reserves room for the result. The function of such an operation returns Slices.
    is_long   whether the operation has a reserve, or is a halt
    """

    __slots__ = ("arguments", "call", "fill", "has_vm", "is_long", "large", "name", "number", "reserve")

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        request: Request,
        response: Response = None,
        *,
        large: bool = False,
        reserve: Callable[..., None] | None = None,
    ) -> None:
        field = pb.Operation.DESCRIPTOR.fields_by_name.get(name)
        message = None if field is None else field.message_type
        self.name = name
        self.number = 0 if field is None else field.number  # in a record
        self.has_vm = message is not None and "vm" in message.fields_by_name
        self.call = call
        self.is_long = reserve is not None or call is halt
        self.large = large
        self.reserve = reserve
        # The arguments of a request; and a result put into a response.
        self.arguments: Callable[[Any], Sequence[Any]] = request if callable(request) else _getter(request)
        self.fill: Callable[[Any, Any], None] = response if callable(response) else _setter(response)


def _getter(fields: Sequence[str | None]) -> Callable[[Any], Sequence[Any]]:
    """A function that gets some fields of a message. For None it gets an unused value."""
    names = [name for name in fields if name is not None]
    if len(names) < 2:
        return lambda request: [0 if name is None else getattr(request, name) for name in fields]
    return attrgetter(*(name or names[0] for name in fields))


def _setter(field: str | None) -> Callable[[Any, Any], None]:
    """A function that puts a result into a field of a message, if a field is given."""
    return lambda result, response: setattr(response, field, result) if field is not None else None


def _refuse(on: Caller, error: Exception) -> Result:
    raise error


def _of_vm(name: str, method: Callable[..., Any], request: Request, response: Response = None, **how: Any) -> Operation:
    """The row of an operation that is a method of Vm, in any architecture."""
    called = method.__name__
    return Operation(name, lambda on, *arguments: getattr(on.vm, called)(*arguments), request, response, **how)


def _of_kind(
    kind: type[Vm], name: str, method: Callable[..., Any], request: Request, response: Response = None, **how: Any
) -> Operation:
    """The row of an operation that is a method of one architecture's Vm."""
    return Operation(name, lambda on, *arguments: method(vm_of(on, kind, name), *arguments), request, response, **how)


def _with_record(
    call: Callable[..., Any], claimed: str | None, status: str | None, value: str | None, *more: str
) -> Operation:
    """The row of an operation with a record; the arguments are fields of its messages.

    claimed, status and value are the response's fields for the parts of its Result; more are fields of the request that
    the record lacks.
    """

    def fill(result: Result, response: Any) -> None:
        flags, number, data = result
        if flags and claimed is not None:
            setattr(response, claimed, True)
            if flags != CLAIMED:
                if flags & FAULT:
                    response.fault = True
                if flags & UNANSWERED:
                    response.unanswered = True
        if status is not None:
            setattr(response, status, number)
        if value is not None:
            setattr(response, value, data)

    return Operation(call.__name__, call, (*FIELDS[call.__name__], *more), fill)


def _statuses_to(statuses: list[int], response: pb.IrqLinesResponse) -> None:
    response.statuses.extend(statuses)


def _interrupt_to(result: Result, response: pb.AckInterruptResponse) -> None:
    flags, controller, vector = result
    if flags:
        response.interrupt.vector = vector
        response.interrupt.source = pb.InterruptSource.ValueType(controller)


def _signal_to(signal: Signal | None, response: pb.TakeSignalResponse) -> None:
    if signal is not None:
        response.signal.CopyFrom(convert.signal_to(signal))


def _advance_to(advance: Advance, response: pb.AdvanceClockResponse) -> None:
    response.now_ns = advance.now
    response.remaining_ns = advance.remaining
    if advance.next_timer is not None:
        response.next_timer_ns = advance.next_timer


OPERATIONS: Final[dict[str, Operation]] = {
    operation.name: operation
    for operation in (
        _with_record(irq_line, None, "status", None),
        _with_record(signal_msi, None, "status", None),
        _with_record(pio_read, "claimed", None, "data"),
        _with_record(pio_write, "claimed", None, None),
        _with_record(mmio_read, "claimed", None, "data"),
        _with_record(mmio_write, "claimed", None, None),
        _with_record(msr_read, "claimed", None, "data", "host_initiated"),
        _with_record(msr_write, "claimed", None, None, "host_initiated"),
        _with_record(sysreg_read, "claimed", None, "data"),
        _with_record(sysreg_write, "claimed", None, None),
        _of_kind(Arm64Vm, "vcpu_init", Arm64Vm.vcpu_init, convert.vcpu_init_from),
        _of_kind(Arm64Vm, "set_device_addr", Arm64Vm.set_device_addr, ("id", "address")),
        _with_record(complete_access, "completed", None, None),
        Operation("ack_interrupt", ack_interrupt, FIELDS["ack_interrupt"], _interrupt_to),
        Operation("halt", halt, FIELDS["halt"]),
        Operation("register_region", register_region, convert.region_from),
        Operation("unregister_region", unregister_region, convert.unregistered_from),
        Operation("irqfd", irqfd, ("flags", "gsi")),
        Operation("share_lapic", share_lapic, ("vcpu",)),
        Operation("get_memory", get_memory, ("address",), convert.memory_to),
        Operation("irq_lines", irq_lines, ("changes",), _statuses_to, reserve=Room.take_changes),
        Operation("get_mp_state", get_mp_state, ("vcpu",), "state"),
        Operation("set_mp_state", set_mp_state, ("vcpu", "state")),
        Operation("set_device_attr", set_device_attr, convert.attr_with_data_from),
        Operation("get_device_attr", get_device_attr, convert.attr_with_data_from, "data", large=True),
        Operation("has_device_attr", has_device_attr, convert.attr_from),
        _of_vm("create_device", Vm.create_device, ("type", "flags"), "device"),
        Operation("reset_vm", reset_vm, ("reason",)),
        Operation("enable_cap", enable_cap, ("capability", "flags", "args")),
        _of_vm("create_irqchip", Vm.create_irqchip, ()),
        _of_kind(X86Vm, "create_pit", X86Vm.create_pit, ("flags",)),
        _of_kind(X86Vm, "set_boot_cpu_id", X86Vm.set_boot_vcpu, ("vcpu",)),
        _of_vm("create_vcpu", Vm.create_vcpu, ("vcpu",)),
        _of_vm("set_gsi_routing", Vm.set_routing, lambda request: (convert.routes_from(request.entries),)),
        _of_vm("get_gsi_routing", Vm.routing, (), convert.routing_to, large=True),
        _of_vm("get_interrupts", Vm.interrupts, (), convert.interrupts_to, large=True),
        _of_kind(X86Vm, "get_irqchip", X86Vm.get_irqchip, ("chip_id",), convert.irqchip_to, large=True),
        _of_kind(X86Vm, "set_irqchip", X86Vm.set_irqchip, convert.set_irqchip_from),
        _of_kind(X86Vm, "get_lapic", X86Vm.get_lapic, ("vcpu",), convert.lapic_to, large=True),
        _of_kind(X86Vm, "set_lapic", X86Vm.set_lapic, lambda request: (request.vcpu, convert.lapic_from(request))),
        _of_kind(X86Vm, "get_pit", X86Vm.get_pit, (), convert.pit_to, large=True),
        _of_kind(X86Vm, "set_pit", X86Vm.set_pit, lambda request: (convert.pit_from(request),)),
        _of_kind(X86Vm, "set_pit_reinject", X86Vm.set_pit_reinject, ("reinject",)),
        _of_vm("advance_clock", Vm.advancing, ("nanoseconds",), _advance_to, reserve=Room.take_advance),
        _of_kind(X86Vm, "set_cpuid", X86Vm.set_cpuid, lambda request: (request.vcpu, convert.features_from(request))),
        _of_kind(X86Vm, "cr8_read", X86Vm.cr8_read, ("vcpu",), "value"),
        _of_kind(X86Vm, "cr8_write", X86Vm.cr8_write, ("vcpu", "value")),
        _of_kind(X86Vm, "get_vcpu_events", X86Vm.get_events, ("vcpu",), convert.vcpu_events_to),
        _of_kind(X86Vm, "set_vcpu_events", X86Vm.set_events, convert.set_vcpu_events_from),
        _of_kind(X86Vm, "interrupt", X86Vm.interrupt, ("vcpu", "vector")),
        _of_kind(X86Vm, "nmi", X86Vm.nmi, ("vcpu",)),
        _of_kind(X86Vm, "take_signal", X86Vm.take_signal, ("vcpu",), _signal_to),
        _of_kind(S390Vm, "s390_interrupt", S390Vm.s390_interrupt, s390.interrupt_from),
        _of_kind(S390Vm, "s390_irq", S390Vm.s390_irq, ("vcpu", "irq")),
        _of_kind(S390Vm, "get_irq_state", S390Vm.get_irq_state, s390.irq_state_from, "irqs", large=True),
        _of_kind(S390Vm, "set_irq_state", S390Vm.set_irq_state, ("vcpu", "irqs")),
        _of_kind(S390Vm, "set_interrupt_masks", S390Vm.set_masks, s390.masks_from),
        _of_kind(S390Vm, "get_interrupt_masks", S390Vm.get_masks, ("vcpu",), s390.masks_to),
        _of_kind(S390Vm, "take_irq", S390Vm.take_irq, ("vcpu",), s390.irq_to),
        _of_kind(S390Vm, "reset_vcpu", S390Vm.reset_vcpu, ("vcpu", "reset")),
    )
}
HALT: Final = OPERATIONS["halt"]
REFUSED: Final = Operation("refused", _refuse, ())
# Operations with a record, by its number; and functions for packets of one record that is done at once.
RECORDS: Final[dict[int, Operation]] = {OPERATIONS[name].number: OPERATIONS[name] for name in FIELDS} | {
    OPERATIONS["register_region"].number: Operation("register_region", register_region_by_record, ())
}
RECORDS_ALONE: Final[dict[int, Callable[..., Result | Access]]] = {
    number: operation.call for number, operation in RECORDS.items() if operation is not HALT
}


def wrap_operations(wrap: Callable[[str, Callable[..., Any], bool], Callable[..., Any]]) -> None:
    """Put a function around each operation's, for the rest of the process.

    wrap gets an operation's name, its function, and whether the function returns Slices. Only HALT's function is never
    called.
    """
    for operation in RECORDS.values():
        if OPERATIONS[operation.name] is not operation:  # a record's own form
            operation.call = wrap(operation.name, operation.call, False)
    for operation in OPERATIONS.values():
        if operation is not HALT:
            operation.call = wrap(operation.name, operation.call, operation.reserve is not None)
    for number in RECORDS_ALONE:
        RECORDS_ALONE[number] = RECORDS[number].call
