"""A record's fields can be wider than the message's: a record with a value that the message cannot hold is refused."""

from __future__ import annotations

import errno

import pytest

from irqchip.records import ERROR, HEADER, NUMBERS, RESULT, SINGLE
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.batch import execute
from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.messages import execute_unary
from irqchipd.edge.operations import OPERATIONS
from irqchipd.edge.records import RecordBatch
from irqchipd.edge.session import Session
from irqchipd.limits import Limits
from irqchipd.observe.observer import Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.registry import Registry
from irqchipd.vm.turns import finish
from irqchipd.vm.x86.machine import X86Vm

U32, U64 = (1 << 32) - 1, (1 << 64) - 1


@pytest.fixture
def session() -> Session:
    registry = Registry(1)
    vm = registry.create("test")
    vm.create_irqchip()
    vm.create_vcpu(0)
    return Session(registry, Limits(), pb.SessionOpen(vm="test"), lambda: None, lambda _: None, Eventfds())


@pytest.fixture
def vm(session: Session) -> X86Vm:
    assert isinstance(session.vm, X86Vm)
    return session.vm


def by_record(session: Session, name: str, size: int, index: int, address: int, value: int) -> int:
    """The errno of a record, or 0; the same alone and in a batch."""
    packet = SINGLE.pack(0, 7, NUMBERS[name], size, index, address, value)
    alone = session.receive(packet)
    assert isinstance(alone, bytes)
    batched = finish(execute(session.caller, RecordBatch(packet, Limits()), 1, session._halts.begin))
    assert batched is not None
    (number, _, status, _), again = (RESULT.unpack_from(answer, HEADER.size) for answer in (alone, batched))
    assert (again[0], again[2]) == (number, status)
    return status if number == ERROR else 0


def by_message(vm: Vm, name: str, fields: dict[str, int]) -> int | None:
    """The errno of a message, or 0; None where the message cannot hold a value."""
    operation, result = pb.Operation(), pb.OperationResult()
    try:
        request = getattr(operation, name)
        for field, value in fields.items():
            setattr(request, field, value)
    except ValueError:
        return None
    try:
        finish(execute_unary(OPERATIONS[name], vm, request, getattr(result, name)))
    except VmError as error:
        return error.number
    return 0


# Per operation the message's fields, in the order of a record's: size, index, address, value.
FIELDS = {
    "irq_line": (None, "gsi", None, None),
    "signal_msi": (None, "flags", "address", "data"),
    "pio_read": ("size", "vcpu", "port", None),
    "pio_write": ("size", "vcpu", "port", "data"),
    "mmio_read": ("size", "vcpu", "address", None),
    "mmio_write": ("size", "vcpu", "address", "data"),
    "ack_interrupt": ("source", "vcpu", None, None),
    "msr_read": (None, "vcpu", "msr", None),
    "msr_write": (None, "vcpu", "msr", "data"),
}
GOOD = {
    "irq_line": (0, 20, 0, 1),
    "signal_msi": (0, 0, 0xFEE0_0000, 0x31),
    "pio_read": (1, 0, 0x21, 0),
    "pio_write": (1, 0, 0x21, 0xFF),
    "mmio_read": (4, 0, 0xFEE0_0030, 0),
    "mmio_write": (4, 0, 0xFEE0_0080, 0),
    "ack_interrupt": (0, 0, 0, 0),
    "msr_read": (0, 0, 0x1B, 0),
    "msr_write": (0, 0, 0x10, 0),
}
VALUES = (2, 3, 0x7F, 0xFF, 0x100, 0xFFFF, 0x1_0000, 1 << 31, U32, 1 << 32, 1 << 63, U64)


@pytest.mark.parametrize("name", FIELDS)
def test_records_and_messages_refuse_the_same_and_records_also_wider_values(session: Session, name: str) -> None:
    for place, field in enumerate(FIELDS[name]):
        width = (8, 32, 64, 64)[place]
        for value in VALUES if field is not None else ():
            if value >> width:
                continue
            record = list(GOOD[name])
            record[place] = value
            said = {known: record[at] for at, known in enumerate(FIELDS[name]) if known is not None}
            expected = by_message(session.vm, name, said)
            if expected is None:
                expected = errno.EINVAL
            assert by_record(session, name, *record) == expected, (field, value)


def test_the_data_of_an_msi_has_32_bits(vm: X86Vm, session: Session) -> None:
    class Trace(Observer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def kvm_msi_set_irq(self, address: int, data: int) -> None:
            self.seen += [address, data]

    trace = Trace()
    vm.attach(trace)
    assert by_record(session, "signal_msi", 0, 0, 0xFEE0_0000, 1 << 32) == errno.EINVAL
    with pytest.raises(VmError, match="32 bits"):
        vm.signal_msi(0xFEE0_0000, U64)
    assert trace.seen == []
    assert vm.ack_interrupt(0) is None


@pytest.mark.parametrize("timeout", [1, 1 << 63, U64])
def test_a_halt_may_have_any_timeout(session: Session, timeout: int) -> None:
    assert session.receive(SINGLE.pack(0, 1, NUMBERS["halt"], 0, 0, 0, timeout)) is None
    assert session.vm._cpus[0].halt is not None
    session.close()
