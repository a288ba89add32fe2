"""Operations on a VM, as the contract names them: what an edge executes, alone or in a Session's batch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Mapping
from time import perf_counter_ns
from typing import Any, TypeVar

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.lapic import FAULT
from irqchipd.edge import convert, errors
from irqchipd.limits import LEAST_RESULT, Limits
from irqchipd.vm.errors import VmError, invalid, quoted
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Pending
from irqchipd.vm.regions import Access
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET

_T = TypeVar("_T")

MAX_CHANGES = 4096  # of an IrqLines: it holds the VM's lock

# How many accesses to one and the same address, those of a string instruction say, are forwarded to a region's owner
# before the first of them is answered, unless many others wait, too. Any other operation waits until they all are.
MAX_WAITING = 256

SLICE_NS = 30_000  # after which another client has its turn, when an operation is done


def check_changes(count: int) -> None:
    """Of an IrqLines."""
    if count > MAX_CHANGES:
        raise VmError(errno.E2BIG, f"{count} changes; at most {MAX_CHANGES} are allowed")


# Executes an operation that only a Session has: takes the request and the response to fill in.
Own = Callable[[Any, Any], None]
# What is yielded between two slices: None, or what must be answered before the next.
Awaited = Pending | None
# Work that is done in slices.
Slices = Generator[Awaited, None, _T]
# An operation fills in its response; a long one returns what is to be done in slices, and one that a region's owner has
# to answer the access. source is the Session's line source, or None for the shared one.
Operation = Callable[[Vm, Any, Any, LineSource | None], Slices[None] | Access | None]
_OPERATIONS: dict[str, Operation] = {}


def _operation(function: Operation) -> Operation:
    """Enter a function into the table under its name, which is that of its field in pb.Operation."""
    _OPERATIONS[function.__name__] = function
    return function


@_operation
def create_vcpu(
    vm: Vm, request: pb.CreateVcpuRequest, response: pb.CreateVcpuResponse, source: LineSource | None
) -> None:
    vm.create_vcpu(request.vcpu)


@_operation
def irq_line(vm: Vm, request: pb.IrqLineRequest, response: pb.IrqLineResponse, source: LineSource | None) -> None:
    response.status = vm.irq_line(request.gsi, request.level, source, line_status=not request.without_status)


@_operation
def irq_lines(
    vm: Vm, request: pb.IrqLinesRequest, response: pb.IrqLinesResponse, source: LineSource | None
) -> Slices[None]:
    check_changes(len(request.changes))
    response.statuses.extend((yield from vm.driving(request.changes, source)))


@_operation
def signal_msi(vm: Vm, request: pb.SignalMsiRequest, response: pb.SignalMsiResponse, source: LineSource | None) -> None:
    response.status = vm.signal_msi(request.address, request.data, request.flags)


@_operation
def set_gsi_routing(
    vm: Vm, request: pb.SetGsiRoutingRequest, response: pb.SetGsiRoutingResponse, source: LineSource | None
) -> None:
    vm.set_routing(convert.routes_from(request.entries))


@_operation
def get_gsi_routing(
    vm: Vm, request: pb.GetGsiRoutingRequest, response: pb.GetGsiRoutingResponse, source: LineSource | None
) -> None:
    response.entries.extend(convert.routes_to(vm.routing()))


@_operation
def pio_read(
    vm: Vm, request: pb.PioReadRequest, response: pb.PioReadResponse, source: LineSource | None
) -> Access | None:
    value = vm.pio_read(request.vcpu, request.port, request.size, source)
    if isinstance(value, Access):
        return value
    if value is not None:
        response.claimed = True
        response.data = value
    return None


@_operation
def pio_write(
    vm: Vm, request: pb.PioWriteRequest, response: pb.PioWriteResponse, source: LineSource | None
) -> Access | None:
    written = vm.pio_write(request.vcpu, request.port, request.size, request.data, source)
    if isinstance(written, Access):
        return written
    response.claimed = written
    return None


@_operation
def mmio_read(
    vm: Vm, request: pb.MmioReadRequest, response: pb.MmioReadResponse, source: LineSource | None
) -> Access | None:
    value = vm.mmio_read(request.vcpu, request.address, request.size, source)
    if isinstance(value, Access):
        return value
    if value is not None:
        response.claimed = True
        response.data = value
    return None


@_operation
def mmio_write(
    vm: Vm, request: pb.MmioWriteRequest, response: pb.MmioWriteResponse, source: LineSource | None
) -> Access | None:
    written = vm.mmio_write(request.vcpu, request.address, request.size, request.data, source)
    if isinstance(written, Access):
        return written
    response.claimed = written
    return None


@_operation
def ack_interrupt(
    vm: Vm, request: pb.AckInterruptRequest, response: pb.AckInterruptResponse, source: LineSource | None
) -> None:
    pic, lapic = interrupt_sources(request.source)
    taken = vm.ack_interrupt(request.vcpu, pic=pic, lapic=lapic)
    if taken is not None:
        response.interrupt.CopyFrom(convert.interrupt_to(taken))


@_operation
def get_irqchip(
    vm: Vm, request: pb.GetIrqchipRequest, response: pb.GetIrqchipResponse, source: LineSource | None
) -> None:
    convert.irqchip_to(vm.get_irqchip(request.chip_id), response)


@_operation
def set_irqchip(
    vm: Vm, request: pb.SetIrqchipRequest, response: pb.SetIrqchipResponse, source: LineSource | None
) -> None:
    vm.set_irqchip(request.chip_id, convert.irqchip_from(request))


@_operation
def get_lapic(vm: Vm, request: pb.GetLapicRequest, response: pb.GetLapicResponse, source: LineSource | None) -> None:
    convert.lapic_to(vm.get_lapic(request.vcpu), response)


@_operation
def set_lapic(vm: Vm, request: pb.SetLapicRequest, response: pb.SetLapicResponse, source: LineSource | None) -> None:
    vm.set_lapic(request.vcpu, convert.lapic_from(request))


@_operation
def advance_clock(
    vm: Vm, request: pb.AdvanceClockRequest, response: pb.AdvanceClockResponse, source: LineSource | None
) -> Slices[None]:
    advance = yield from vm.advancing(request.nanoseconds)
    response.now_ns = advance.now
    response.remaining_ns = advance.remaining
    if advance.next_timer is not None:
        response.next_timer_ns = advance.next_timer


@_operation
def get_pit(vm: Vm, request: pb.GetPitRequest, response: pb.GetPitResponse, source: LineSource | None) -> None:
    convert.pit_to(vm.get_pit(), response)


@_operation
def set_pit(vm: Vm, request: pb.SetPitRequest, response: pb.SetPitResponse, source: LineSource | None) -> None:
    vm.set_pit(convert.pit_from(request))


@_operation
def set_pit_reinject(
    vm: Vm, request: pb.SetPitReinjectRequest, response: pb.SetPitReinjectResponse, source: LineSource | None
) -> None:
    vm.set_pit_reinject(request.reinject)


@_operation
def msr_read(vm: Vm, request: pb.MsrReadRequest, response: pb.MsrReadResponse, source: LineSource | None) -> None:
    value = vm.msr_read(request.vcpu, request.msr, host=request.host_initiated)
    if value is not None:
        response.claimed = True
        response.fault = value == FAULT
        response.data = 0 if response.fault else value


@_operation
def msr_write(vm: Vm, request: pb.MsrWriteRequest, response: pb.MsrWriteResponse, source: LineSource | None) -> None:
    result = vm.msr_write(request.vcpu, request.msr, request.data, host=request.host_initiated)
    response.claimed = result is not None
    response.fault = result == FAULT


@_operation
def set_cpuid(vm: Vm, request: pb.SetCpuidRequest, response: pb.SetCpuidResponse, source: LineSource | None) -> None:
    vm.set_cpuid(request.vcpu, convert.features_from(request))


@_operation
def cr8_read(vm: Vm, request: pb.Cr8ReadRequest, response: pb.Cr8ReadResponse, source: LineSource | None) -> None:
    response.value = vm.cr8_read(request.vcpu)


@_operation
def cr8_write(vm: Vm, request: pb.Cr8WriteRequest, response: pb.Cr8WriteResponse, source: LineSource | None) -> None:
    vm.cr8_write(request.vcpu, request.value)


@_operation
def get_vcpu_events(
    vm: Vm, request: pb.GetVcpuEventsRequest, response: pb.GetVcpuEventsResponse, source: LineSource | None
) -> None:
    response.events.CopyFrom(convert.vcpu_events_to(vm.get_events(request.vcpu)))


@_operation
def set_vcpu_events(
    vm: Vm, request: pb.SetVcpuEventsRequest, response: pb.SetVcpuEventsResponse, source: LineSource | None
) -> None:
    vm.set_events(request.vcpu, convert.vcpu_events_from(request.events))


@_operation
def interrupt(vm: Vm, request: pb.InterruptRequest, response: pb.InterruptResponse, source: LineSource | None) -> None:
    vm.interrupt(request.vcpu, request.vector)


@_operation
def nmi(vm: Vm, request: pb.NmiRequest, response: pb.NmiResponse, source: LineSource | None) -> None:
    vm.nmi(request.vcpu)


@_operation
def get_mp_state(
    vm: Vm, request: pb.GetMpStateRequest, response: pb.GetMpStateResponse, source: LineSource | None
) -> None:
    response.state = pb.MpState.ValueType(vm.get_mp_state(request.vcpu) + MP_STATE_OFFSET)


@_operation
def set_mp_state(
    vm: Vm, request: pb.SetMpStateRequest, response: pb.SetMpStateResponse, source: LineSource | None
) -> None:
    if request.state == pb.MP_STATE_UNSPECIFIED or request.state not in pb.MpState.values():
        states = ", ".join(str(number) for number in pb.MpState.values() if number)
        raise invalid(f"run state {request.state} is invalid; there are {states}")
    vm.set_mp_state(request.vcpu, request.state - MP_STATE_OFFSET)


@_operation
def take_signal(
    vm: Vm, request: pb.TakeSignalRequest, response: pb.TakeSignalResponse, source: LineSource | None
) -> None:
    taken = vm.take_signal(request.vcpu)
    if taken is not None:
        response.signal.CopyFrom(convert.signal_to(taken))


@_operation
def reset_vm(vm: Vm, request: pb.ResetVmRequest, response: pb.ResetVmResponse, source: LineSource | None) -> None:
    vm.reset(convert.reset_reason_from(request))


def interrupt_sources(asked: int) -> tuple[bool, bool]:
    """Whether an acknowledgement is the PIC's to answer, and whether the local APIC's."""
    if asked not in (pb.INTERRUPT_SOURCE_UNSPECIFIED, pb.INTERRUPT_SOURCE_PIC, pb.INTERRUPT_SOURCE_LAPIC):
        raise invalid(f"interrupt source {asked} is invalid; 0 is any, 1 the PIC, 2 the local APIC")
    return asked != pb.INTERRUPT_SOURCE_LAPIC, asked != pb.INTERRUPT_SOURCE_PIC


def execute(
    name: str, vm: Vm, request: Any, response: Any, source: LineSource | None = None
) -> Slices[None] | Access | None:
    """Execute one operation, or return what is to be done in slices, or what its owner has to answer."""
    return _OPERATIONS[name](vm, request, response, source)


def execute_unary(name: str, vm: Vm, request: Any, response: Any) -> Slices[None]:
    """Execute one operation to its end."""
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
    left = execute(name, vm, request, response)
    if isinstance(left, Access):
        yield from answered(left)
        convert.answer_to(left, response)
    elif left is not None:
        yield from left
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)


def caught_up(vm: Vm) -> Slices[None]:
    """Wait until all has been told that earlier operations left to tell."""
    while (backlog := vm.agenda.backlog) is not None:
        yield backlog


# Operations whose results can be large, and which change nothing, so that their results can be dropped.
_LARGE = frozenset({"get_gsi_routing", "get_irqchip", "get_lapic", "get_pit"})
# Bytes that a result may take beside LEAST_RESULT: AdvanceClock's, and each status of IrqLines.
_ADVANCE_BYTES = 20
_STATUS_BYTES = 10


def check_count(count: int, limits: Limits) -> None:
    """Of a batch's operations."""
    if count > limits.operations:
        raise VmError(errno.E2BIG, f"a batch of {count} operations; at most {limits.operations} are allowed")


def misplaced_halt() -> VmError:
    """Of a halt that is not at the end."""
    return invalid("a halt is the last operation of its batch")


def execute_batch(
    vm: Vm, batch: pb.Batch, source: LineSource, limits: Limits, own: Mapping[str, Own]
) -> Slices[pb.BatchResult]:
    """Execute a batch in order; every operation has its result or its error, and one too long is refused whole.

    It is done in slices, between which others have their turn; where something is yielded, go on when it is answered. A
    halt takes its time, so it is left to the caller: see ending_halt. own has the operations that are the Session's.
    """
    answer = pb.BatchResult(serial=batch.serial)
    count = len(batch.operations)
    try:
        check_count(count, limits)
    except VmError as refusal:
        answer.error.CopyFrom(errors.message(refusal))
        return answer
    # For what can be large: states, and the words of errors. LEAST_RESULT of each operation is kept.
    room, changes = limits.message_bytes - LEAST_RESULT * count, limits.batch_operations
    slice_ends = perf_counter_ns() + SLICE_NS
    waiting: list[tuple[Access, pb.OperationResult]] = []
    where: object = None
    for position, operation in enumerate(batch.operations, 1):
        if waiting and (len(waiting) == MAX_WAITING or waiting[0][0].crowded or _where(operation) != where):
            yield from _fill_in(waiting)
        if vm.agenda.backlog is not None:
            yield from caught_up(vm)
        result = answer.results.add()
        try:
            name = operation.WhichOneof("operation")
            if name is None:
                raise invalid("the operation is empty, or one that this daemon does not know")
            request = getattr(operation, name)
            if name not in own and request.vm and request.vm != vm.name:
                raise invalid(f"the Session is VM {vm.name!r}'s; leave vm empty, and not {quoted(request.vm)}")
            if name == "halt":
                if position < count:
                    raise misplaced_halt()
                continue
            response = getattr(result, name)
            response.SetInParent()
            if name == "irq_lines":
                if (changes := changes - len(request.changes)) < 0:
                    raise VmError(errno.E2BIG, f"a batch has {limits.batch_operations} changes at the most; split it")
                room = _take_room(room, _STATUS_BYTES * len(request.changes), limits)
            elif name == "advance_clock":
                room = _take_room(room, _ADVANCE_BYTES, limits)
            if name in own:
                own[name](request, response)
            else:
                left = execute(name, vm, request, response, source)
                if isinstance(left, Access):
                    waiting.append((left, result))
                    where = _where(operation)
                elif left is not None:
                    yield from left
                if name in _LARGE:  # which change nothing, so that their results can be dropped
                    room = _take_room(room, response.ByteSize(), limits)
        except Exception as error:
            result.error.CopyFrom(errors.message(errors.refusal(error)))
            if len(result.error.message) <= room:
                room -= len(result.error.message)
            else:
                result.error.message = ""
        if position < count and perf_counter_ns() >= slice_ends:
            yield None
            slice_ends = perf_counter_ns() + SLICE_NS
    yield from _fill_in(waiting)
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
    return answer


def _take_room(room: int, size: int, limits: Limits) -> int:
    """What is left of the room for a batch's results: E2BIG where that is less than nothing."""
    if size > room:
        raise VmError(errno.E2BIG, f"the results of this batch have {limits.message_bytes} bytes; split it")
    return room - size


def _where(operation: pb.Operation) -> object:
    """What accesses of one and the same address have in common; no two other operations have it."""
    match operation.WhichOneof("operation"):
        case "pio_read" | "pio_write" as name:
            access: Any = getattr(operation, name)
            return name, access.size, access.vcpu, access.port
        case "mmio_read" | "mmio_write" as name:
            access = getattr(operation, name)
            return name, access.size, access.vcpu, access.address
        case _:
            return None


def _fill_in(waiting: list[tuple[Access, pb.OperationResult]]) -> Slices[None]:
    """Wait for the answers to accesses that were forwarded, in the results. None is left."""
    for access, result in waiting:
        yield from answered(access)
        try:
            convert.answer_to(access, getattr(result, str(result.WhichOneof("result"))))
        except VmError as error:
            result.error.CopyFrom(errors.message(error))
    waiting.clear()


def answered(access: Access) -> Slices[None]:
    """Yields an access until it is answered."""
    while not access.done:
        yield access


def ending_halt(batch: pb.Batch, answer: pb.BatchResult) -> pb.HaltRequest | None:
    """The halt with which a batch ends, if it has not been refused: its result, the last, is still empty."""
    if answer.results and answer.results[-1].WhichOneof("result") is None:
        return batch.operations[-1].halt
    return None
