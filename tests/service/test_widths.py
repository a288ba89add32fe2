"""A record's fields can be wider than those of the message it stands for: what the message can't say is refused."""

from __future__ import annotations

import errno

import pytest

from irqchip.records import ERROR, HEADER, NUMBERS, RESULT, SINGLE, SINGLE_RESULT
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import executor
from irqchipd.edge.records import execute_records, execute_single
from irqchipd.limits import Limits
from irqchipd.observe.observer import Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.sources import LineSource

U32, U64 = (1 << 32) - 1, (1 << 64) - 1


@pytest.fixture
def vm() -> Vm:
    vm = Vm("test")
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture
def source(vm: Vm) -> LineSource:
    return vm.open_source("test")


def by_record(vm: Vm, source: LineSource, name: str, size: int, index: int, address: int, value: int) -> int:
    """What becomes of a record: its errno, or 0. Alone, and in a batch, it is the same."""
    packet = SINGLE.pack(0, 7, NUMBERS[name], size, index, address, value)
    single = execute_single(vm, source, packet)
    assert isinstance(single, bytes)
    _, _, number, _, status, _ = SINGLE_RESULT.unpack(single[: SINGLE_RESULT.size])
    batch = execute_records(vm, packet, source, Limits(), {})
    while True:
        try:
            next(batch)
        except StopIteration as done:
            again = RESULT.unpack_from(done.value.message(), HEADER.size)
            break
    assert (again[0], again[2]) == (number, status)
    return status if number == ERROR else 0


def by_message(vm: Vm, source: LineSource, name: str, fields: dict[str, int]) -> int | None:
    """What becomes of a message: its errno, or 0; None where it can't say this."""
    operation, result = pb.Operation(), pb.OperationResult()
    try:
        request = getattr(operation, name)
        for field, value in fields.items():
            setattr(request, field, value)
    except ValueError:
        return None
    try:
        executor.execute(name, vm, request, getattr(result, name), source)
    except VmError as error:
        return error.number
    return 0


# Of each operation the message's fields, in the order of a record's: size, index, address, value.
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
def test_both_forms_refuse_the_same_and_a_record_what_no_message_can_say(vm: Vm, source: LineSource, name: str) -> None:
    for place, field in enumerate(FIELDS[name]):
        width = (8, 32, 64, 64)[place]
        for value in VALUES if field is not None else ():
            if value >> width:
                continue
            record = list(GOOD[name])
            record[place] = value
            said = {known: record[at] for at, known in enumerate(FIELDS[name]) if known is not None}
            expected = by_message(vm, source, name, said)
            if expected is None:
                expected = errno.EINVAL
            assert by_record(vm, source, name, *record) == expected, (field, value)


def test_the_data_of_an_msi_has_32_bits(vm: Vm, source: LineSource) -> None:
    class Trace(Observer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def kvm_msi_set_irq(self, address: int, data: int) -> None:
            self.seen += [address, data]

    trace = Trace()
    vm.attach(trace)
    assert by_record(vm, source, "signal_msi", 0, 0, 0xFEE0_0000, 1 << 32) == errno.EINVAL
    with pytest.raises(VmError, match="32 bits"):
        vm.signal_msi(0xFEE0_0000, U64)
    assert trace.seen == []
    assert vm.ack_interrupt(0) is None


@pytest.mark.parametrize("timeout", [1, 1 << 63, U64])
def test_a_halt_may_have_any_timeout(vm: Vm, source: LineSource, timeout: int) -> None:
    packet = HEADER.pack(0, 1) + SINGLE.pack(0, 1, NUMBERS["halt"], 0, 0, 0, timeout)[HEADER.size :]
    batch = execute_records(vm, packet, source, Limits(), {})
    with pytest.raises(StopIteration) as done:
        next(batch)
    assert done.value.value.halt == pb.HaltRequest(timeout_ns=timeout)
    ended: list[object] = []
    vm.abandon(vm.halt(0, ended.append, timeout_ns=timeout))
