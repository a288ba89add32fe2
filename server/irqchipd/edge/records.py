"""Batches and answers in the port's short form; irqchip/records.py says what that is."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from time import perf_counter_ns

from irqchip.records import (
    ACCESS,
    CLAIMED,
    DOORBELL,
    ERROR,
    EVENT,
    FAULT,
    HEADER,
    INTERRUPT,
    NUMBERS,
    OPERATION,
    RESULT,
    SIGNAL,
    SINGLE,
    SINGLE_RESULT,
    TIMEOUT,
    UNANSWERED,
    WITHOUT_STATUS,
)
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips import lapic
from irqchipd.edge import convert, errors
from irqchipd.edge.executor import (
    MAX_WAITING,
    SLICE_NS,
    Slices,
    answered,
    caught_up,
    check_count,
    interrupt_sources,
    misplaced_halt,
)
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import Doorbell, RegionAccess
from irqchipd.vm.machine import Vm
from irqchipd.vm.regions import Access, Space
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import Outcome, Signal

HALT, REGISTER_REGION = NUMBERS["halt"], NUMBERS["register_region"]
Fields = tuple[int, int, int]  # of a result: what became of it, status, value

_NOTHING: Fields = (0, 0, 0)
_TAKEN: Fields = (CLAIMED, 0, 0)
_READS: dict[int, int] = {Space.PIO: NUMBERS["pio_read"], Space.MMIO: NUMBERS["mmio_read"]}
_WRITES: dict[int, int] = {Space.PIO: NUMBERS["pio_write"], Space.MMIO: NUMBERS["mmio_write"]}
_SOURCES = (int(pb.INTERRUPT_SOURCE_LAPIC), int(pb.INTERRUPT_SOURCE_PIC))  # by whether the PIC gave it

# Of the VM and the source: size, index, address, value. See irqchip/records.py.
Operation = Callable[[Vm, LineSource, int, int, int, int], Fields | Access]


def _read(value: Access | int | None) -> Fields | Access:
    if isinstance(value, Access):
        return value
    return _NOTHING if value is None else (CLAIMED, 0, value)


def _written(claimed: Access | bool) -> Fields | Access:
    if isinstance(claimed, Access):
        return claimed
    return _TAKEN if claimed else _NOTHING


def _irq_line(vm: Vm, source: LineSource, size: int, gsi: int, address: int, level: int) -> Fields:
    return 0, vm.irq_line(gsi, level != 0, source, line_status=not size & WITHOUT_STATUS), 0


def _signal_msi(vm: Vm, source: LineSource, size: int, flags: int, address: int, data: int) -> Fields:
    return 0, vm.signal_msi(address, data, flags), 0


def _pio_read(vm: Vm, source: LineSource, size: int, vcpu: int, port: int, data: int) -> Fields | Access:
    return _read(vm.pio_read(vcpu, port, size, source))


def _pio_write(vm: Vm, source: LineSource, size: int, vcpu: int, port: int, data: int) -> Fields | Access:
    return _written(vm.pio_write(vcpu, port, size, data, source))


def _mmio_read(vm: Vm, source: LineSource, size: int, vcpu: int, address: int, data: int) -> Fields | Access:
    return _read(vm.mmio_read(vcpu, address, size, source))


def _mmio_write(vm: Vm, source: LineSource, size: int, vcpu: int, address: int, data: int) -> Fields | Access:
    return _written(vm.mmio_write(vcpu, address, size, data, source))


def _ack_interrupt(vm: Vm, source: LineSource, asked: int, vcpu: int, address: int, data: int) -> Fields:
    pic, from_lapic = interrupt_sources(asked)
    taken = vm.ack_interrupt(vcpu, pic=pic, lapic=from_lapic)
    return _NOTHING if taken is None else (CLAIMED, _SOURCES[taken[1]], taken[0])


def _msr_read(vm: Vm, source: LineSource, size: int, vcpu: int, msr: int, data: int) -> Fields:
    value = vm.msr_read(vcpu, msr)
    if value is None:
        return _NOTHING
    return (CLAIMED | FAULT, 0, 0) if value == lapic.FAULT else (CLAIMED, 0, value)


def _msr_write(vm: Vm, source: LineSource, size: int, vcpu: int, msr: int, data: int) -> Fields:
    result = vm.msr_write(vcpu, msr, data)
    if result is None:
        return _NOTHING
    return (CLAIMED | FAULT, 0, 0) if result == lapic.FAULT else _TAKEN


def _complete_access(vm: Vm, source: LineSource, unanswered: int, index: int, access: int, data: int) -> Fields:
    if unanswered > 1:
        raise invalid(f"an access is answered, 0, or unanswered, 1, and not {unanswered}")
    return _TAKEN if vm.complete_access(source, access, data, unanswered=bool(unanswered)) else _NOTHING


def _halt(vm: Vm, source: LineSource, masked: int, vcpu: int, address: int, timeout: int) -> Fields:
    raise misplaced_halt()


_OPERATIONS: dict[int, Operation] = {
    NUMBERS["irq_line"]: _irq_line,
    NUMBERS["signal_msi"]: _signal_msi,
    NUMBERS["pio_read"]: _pio_read,
    NUMBERS["pio_write"]: _pio_write,
    NUMBERS["mmio_read"]: _mmio_read,
    NUMBERS["mmio_write"]: _mmio_write,
    NUMBERS["ack_interrupt"]: _ack_interrupt,
    NUMBERS["msr_read"]: _msr_read,
    NUMBERS["msr_write"]: _msr_write,
    NUMBERS["complete_access"]: _complete_access,
    HALT: _halt,
}
# What is executed at once, where it is alone in its packet.
SINGLES = frozenset(_OPERATIONS) - {HALT}

# An operation that only a Session has: of size, index, address, value.
Own = Callable[[int, int, int, int], Fields]


def _no_record(number: int) -> VmError:
    return invalid(f"operation {number} has no record; send it in a Batch")


def execute_single(vm: Vm, source: LineSource, packet: bytes) -> bytes | Access:
    """Execute a batch of one record, of SINGLES; the answer, or the access of which finish_single makes the answer."""
    _, serial, number, size, index, address, value = SINGLE.unpack(packet)
    try:
        fields = _OPERATIONS[number](vm, source, size, index, address, value)
    except Exception as error:
        answer = RecordsAnswer(serial)
        answer.refuse(error)
        return answer.message()
    return fields if isinstance(fields, Access) else SINGLE_RESULT.pack(0, serial, number, *fields)


def finish_single(packet: bytes, access: Access) -> Slices[bytes]:
    """What execute_single would have returned, had the access not had to wait."""
    _, serial, number, *_ = SINGLE.unpack(packet)
    answer = RecordsAnswer(serial)
    yield from answer.add_accesses([(number, access)])
    return answer.message()


def event_record(event: RegionAccess | Doorbell, count: int) -> bytes:
    """What a Session is told of a region that was registered in the short form."""
    if isinstance(event, Doorbell):
        number = _WRITES[event.space]
        return EVENT.pack(0, DOORBELL, count, number, event.size, 0, event.address, event.value)
    number = (_WRITES if event.write else _READS)[event.space]
    return EVENT.pack(0, ACCESS, event.access, number, event.size, event.vcpu, event.address, event.value)


class RecordsAnswer:
    """The answer to a batch in the short form. A halt's result, the last, comes later."""

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.halt: pb.HaltRequest | None = None
        self._results: list[bytes] = []
        self._texts: list[bytes] = []

    @property
    def size(self) -> int:
        """In bytes."""
        return HEADER.size + RESULT.size * (len(self._results) + 1) + sum(map(len, self._texts))

    def add(self, *fields: int) -> None:
        """Another result."""
        self._results.append(RESULT.pack(*fields))

    def add_accesses(self, waiting: list[tuple[int, Access]]) -> Slices[None]:
        """The results of accesses that were forwarded, by an operation each: when they are answered. None is left."""
        for number, access in waiting:
            yield from answered(access)
            try:
                value, in_time = access.result()
            except VmError as error:
                self.refuse(error)
            else:
                self.add(number, CLAIMED if in_time else CLAIMED | UNANSWERED, 0, value)
        waiting.clear()

    def refuse(self, error: Exception, room: int | None = None) -> int:
        """Another result, an error, with what it says where that is not longer than room; how many bytes it took."""
        refusal = errors.refusal(error)
        text = refusal.message.encode()
        if room is not None and len(text) > room:
            text = b""
        self.add(ERROR, 0, refusal.number, len(text))
        self._texts.append(text)
        return len(text)

    def message(self) -> bytes:
        """What to send."""
        return b"".join((HEADER.pack(0, self.serial), *self._results, *self._texts))

    def ended(self, outcome: Outcome) -> bytes:
        """What to send, now that the halt has ended."""
        if isinstance(outcome, VmError):
            self.refuse(outcome)
        elif outcome is None:
            self.add(HALT, TIMEOUT, 0, 0)
        elif isinstance(outcome, Signal):
            signal = convert.signal_to(outcome)
            self.add(HALT, SIGNAL, signal.kind, signal.vector)
        else:
            vector, from_pic = outcome
            self.add(HALT, INTERRUPT, _SOURCES[from_pic], vector)
        return self.message()


def execute_records(
    vm: Vm, packet: bytes, source: LineSource, limits: Limits, own: Mapping[int, Own]
) -> Slices[RecordsAnswer]:
    """Execute a batch in the short form, as execute_batch does. Its answer has a halt where it ends in one."""
    count, rest = divmod(len(packet) - HEADER.size, OPERATION.size)
    if count < 1 or rest:
        raise VmError(errno.EBADMSG, "a batch in the short form has a header of 16 bytes and records of 24")
    answer = RecordsAnswer(HEADER.unpack_from(packet)[1])
    check_count(count, limits)
    room = limits.message_bytes - HEADER.size - RESULT.size * count
    waiting: list[tuple[int, Access]] = []  # see MAX_WAITING
    where: tuple[int, int, int, int] | None = None
    slice_ends = perf_counter_ns() + SLICE_NS
    for position, (number, size, index, address, value) in enumerate(
        OPERATION.iter_unpack(memoryview(packet)[HEADER.size :]), 1
    ):
        if waiting and (
            len(waiting) == MAX_WAITING or waiting[0][1].crowded or (number, size, index, address) != where
        ):
            yield from answer.add_accesses(waiting)
        if vm.agenda.backlog is not None:
            yield from caught_up(vm)
        try:
            if number == HALT and position == count:
                answer.halt = pb.HaltRequest(vcpu=index, interrupts_masked=bool(size), timeout_ns=value)
                break
            fields: Fields | Access
            if number in own:
                fields = own[number](size, index, address, value)
            elif number not in _OPERATIONS:
                raise _no_record(number)
            else:
                fields = _OPERATIONS[number](vm, source, size, index, address, value)
            if isinstance(fields, Access):
                waiting.append((number, fields))
                where = number, size, index, address
            else:
                yield from answer.add_accesses(waiting)
                answer.add(number, *fields)
        except Exception as error:
            yield from answer.add_accesses(waiting)
            room -= answer.refuse(error, room)
        if position < count and perf_counter_ns() >= slice_ends:
            yield None
            slice_ends = perf_counter_ns() + SLICE_NS
    if waiting:
        yield from answer.add_accesses(waiting)
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
    return answer
