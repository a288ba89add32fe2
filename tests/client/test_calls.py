from collections.abc import Callable
from typing import Any

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import (
    Access,
    Chip,
    Interrupt,
    InterruptSource,
    InvalidArgument,
    MsiRoute,
    PicState,
    PinRoute,
    Route,
    ops,
)
from irqchip_client._calls import check_extension, create_irqchip, create_vm, delete_vm, get_vm, list_vms
from irqchip_client.ops import Call

LAPIC = bytes(1024)

# One of every operation.
OPERATIONS: list[Call[Any]] = [
    ops.create_vcpu(1),
    ops.irq_line(4, True),
    ops.signal_msi(0xFEE00000, 0x31),
    ops.set_gsi_routing([PinRoute(4, Chip.IOAPIC, 4)]),
    ops.get_gsi_routing(),
    ops.pio_read(0, 0x20),
    ops.pio_write(0, 0x21, 0xFB),
    ops.mmio_read(0, 0xFEC00000),
    ops.mmio_write(0, 0xFEC00000, 1),
    ops.ack_interrupt(0),
    ops.get_irqchip(Chip.IOAPIC),
    ops.set_irqchip(Chip.PIC_PRIMARY, PicState()),
    ops.get_lapic(0),
    ops.set_lapic(0, LAPIC),
]
OTHERS: list[Call[Any]] = [create_vm("a"), delete_vm(), list_vms(), get_vm(), check_extension(0), create_irqchip()]


def test_the_contracts_calls_are_all_here() -> None:
    operations = [field.name for field in pb.Operation.DESCRIPTOR.fields]
    assert [call.operation for call in OPERATIONS] == operations
    unary = [method.name for method in pb.DESCRIPTOR.services_by_name["IrqchipService"].methods][:-2]
    assert sorted(call.method for call in OTHERS + OPERATIONS) == sorted(unary)


@pytest.mark.parametrize("call", OPERATIONS, ids=lambda call: call.operation)
def test_a_call_is_the_same_alone_and_in_a_batch(call: Call[Any]) -> None:
    operation = call.as_operation()
    assert operation.WhichOneof("operation") == call.operation
    assert getattr(operation, call.operation) == call.request
    alone: Any = call.request_for("demo")
    assert alone.vm == "demo"
    alone.vm = ""
    assert alone == call.request


@pytest.mark.parametrize("call", OTHERS, ids=lambda call: call.operation)
def test_a_call_that_no_session_takes_is_refused(call: Call[Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"{call.operation} is no operation"):
        call.as_operation()


def test_requests_hold_the_arguments() -> None:
    assert ops.irq_line(4, True).request == pb.IrqLineRequest(gsi=4, level=True)
    assert ops.pio_write(1, 0x20, 0x11, 2).request == pb.PioWriteRequest(vcpu=1, port=0x20, size=2, data=0x11)
    assert ops.mmio_read(1, 0xFEC00010).request == pb.MmioReadRequest(vcpu=1, address=0xFEC00010, size=4)
    assert ops.ack_interrupt(1, InterruptSource.LAPIC).request == pb.AckInterruptRequest(
        vcpu=1, source=pb.INTERRUPT_SOURCE_LAPIC
    )
    assert ops.set_irqchip(Chip.IOAPIC, b"x").request == pb.SetIrqchipRequest(chip_id=2, kvm_struct=b"x")
    assert ops.set_irqchip(Chip.PIC_PRIMARY, PicState(imr=1)).request == pb.SetIrqchipRequest(
        kvm_struct=PicState(imr=1).kvm_struct
    )


def test_responses_become_results() -> None:
    assert ops.irq_line(4, True).parse(pb.IrqLineResponse(status=-1)) == -1
    assert ops.pio_read(0, 0x20).parse(pb.PioReadResponse(claimed=True, data=7)) == Access(True, 7)
    assert ops.mmio_write(0, 0, 0).parse(pb.MmioWriteResponse(claimed=True)) is True
    assert ops.ack_interrupt(0).parse(pb.AckInterruptResponse()) is None
    taken = pb.AckInterruptResponse(vector=0, source=pb.INTERRUPT_SOURCE_PIC)
    assert ops.ack_interrupt(0).parse(taken) == Interrupt(0, InterruptSource.PIC)
    assert ops.create_vcpu(0).parse(pb.CreateVcpuResponse()) is None


def test_routes_survive() -> None:
    routes: list[Route] = [
        PinRoute(4, Chip.PIC_PRIMARY, 4),
        PinRoute(4, Chip.IOAPIC, 4),
        MsiRoute(24, 0xFEE00000, 0x31, flags=1),
    ]
    table = pb.GetGsiRoutingResponse(entries=[route.to_proto() for route in routes])
    assert ops.get_gsi_routing().parse(table) == routes


@pytest.mark.parametrize(
    "make",
    [
        lambda: ops.irq_line(-1, True),
        lambda: ops.irq_line(1 << 32, True),
        lambda: ops.pio_write(0, 0x20, -1),
        lambda: ops.signal_msi(1 << 64, 0),
        lambda: ops.set_gsi_routing([MsiRoute(0, -1, 0)]),
        lambda: create_vm("\ud800"),
    ],
)
def test_a_number_that_no_field_holds_is_an_error_of_ours(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


NONE: Any = None


@pytest.mark.parametrize("make", [lambda: ops.irq_line(NONE, True), lambda: ops.create_vcpu(vcpu=NONE)])
def test_none_does_not_mean_zero(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match=r"\((gsi|vcpu)=None.*None is not allowed"):
        make()


def test_an_error_names_the_argument() -> None:
    with pytest.raises(InvalidArgument, match=r"irq_line\(gsi=-1, level=True\): .*-1"):
        ops.irq_line(-1, True)
