"""Bad input gets a status, an errno and a helpful message, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import Chip, Client, MsiRoute, Vm
from irqchip_client._daemon import Daemon

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["IrqchipService"].methods]
STREAMS = {"Session", "Watch"}


@pytest.fixture
def channel(irqchip_server: Daemon) -> Iterator[grpc.Channel]:
    """A channel without the SDK, which would refuse to send bad input."""
    with grpc.insecure_channel(irqchip_server.target) as channel:
        yield channel


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with an irqchip, a PIT and vCPU 0; other VMs lack one of these."""
    vm = irqchip_client.create_vm("good")
    vm.create_irqchip()
    vm.create_pit()
    vm.create_vcpu(0)
    irqchip_client.create_vm("bare").create_vcpu(0)
    irqchip_client.create_vm("empty")
    split = irqchip_client.create_vm("split")
    split.enable_split_irqchip()
    split.create_vcpu(0)
    irqchip_client.create_vm("virtual", virtual_clock=True)
    return vm


def failure(call: Any) -> tuple[str, str, str]:
    """The status code, errno and message with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    assert status is not None, "the status has no details"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "irqchipd"
    return caught.value.code().name, info.reason, str(caught.value.details())


def state(vm: Vm) -> list[object]:
    """Everything that a rejected call must not change."""
    chips = [vm.get_irqchip(chip).kvm_struct for chip in Chip]
    cpu = vm.vcpu(0)
    return [*chips, cpu.lapic().kvm_struct, cpu.mp_state(), cpu.take_signal(), vm.pit(), vm.routing(), vm.info()]


PIN = pb.IrqchipPin(chip_id=2, pin=1)
MSI = pb.Msi(address=0xFEE0_0000, data=0x41)
ROUTE = pb.RoutingEntry


def routing(*entries: pb.RoutingEntry) -> pb.SetGsiRoutingRequest:
    """A request for a whole table."""
    return pb.SetGsiRoutingRequest(vm="good", entries=entries)


RUNNABLE, HALTED = pb.MP_STATE_RUNNABLE, pb.MP_STATE_HALTED


def pit(**fields: int) -> pb.SetPitRequest:
    """A SetPit request whose last channel has these fields."""
    channels = [pb.PitChannel(count=1), pb.PitChannel(count=1), pb.PitChannel(count=1, **fields)]
    return pb.SetPitRequest(vm="good", pit=pb.PitState(channels=channels))


def snapshot(vm: str = "", **fields: Any) -> pb.RestoreVmRequest:
    """A RestoreVm request for a VM without chips, with these fields."""
    values = {"version": 2, "clock": 1, "irqchip_mode": 1, "tsc_khz": 1, **fields}
    return pb.RestoreVmRequest(vm=vm, snapshot=pb.VmSnapshot(**values))


CASES: list[tuple[str, Message, str, str, str]] = [
    # VMs and vCPUs.
    ("GetVm", pb.GetVmRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("DeleteVm", pb.DeleteVmRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("IrqLine", pb.IrqLineRequest(vm="nobody", gsi=1), "NOT_FOUND", "ENOENT", "nobody"),
    ("IrqLine", pb.IrqLineRequest(gsi=1), "NOT_FOUND", "ENOENT", "''"),
    ("PioRead", pb.PioReadRequest(vm="good", vcpu=7, port=0x20, size=1), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("GetLapic", pb.GetLapicRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("AckInterrupt", pb.AckInterruptRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("CreateVm", pb.CreateVmRequest(vm="good"), "ALREADY_EXISTS", "EEXIST", "good"),
    ("CreateVm", pb.CreateVmRequest(vm="a/b"), "INVALID_ARGUMENT", "EINVAL", "A-Z a-z 0-9"),
    ("CreateVm", pb.CreateVmRequest(vm="x" * 65), "INVALID_ARGUMENT", "EINVAL", "1 to 64"),
    ("CreateVm", pb.CreateVmRequest(vm="good\n"), "INVALID_ARGUMENT", "EINVAL", "1 to 64"),
    ("CreateVcpu", pb.CreateVcpuRequest(vm="good", vcpu=0), "ALREADY_EXISTS", "EEXIST", "vCPU 0"),
    ("CreateVcpu", pb.CreateVcpuRequest(vm="good", vcpu=4096), "INVALID_ARGUMENT", "EINVAL", "0 to 4095"),
    ("CreateIrqchip", pb.CreateIrqchipRequest(vm="good"), "ALREADY_EXISTS", "EEXIST", "has an irqchip"),
    ("CreateIrqchip", pb.CreateIrqchipRequest(vm="bare"), "INVALID_ARGUMENT", "EINVAL", "before"),
    # Before the irqchip exists: KVM-BEHAVIOUR 1.
    ("IrqLine", pb.IrqLineRequest(vm="empty", gsi=1), "FAILED_PRECONDITION", "ENXIO", "create it first"),
    ("GetIrqchip", pb.GetIrqchipRequest(vm="empty"), "FAILED_PRECONDITION", "ENXIO", "create it first"),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="empty", kvm_struct=bytes(16)), "FAILED_PRECONDITION", "ENXIO", "create"),
    ("GetGsiRouting", pb.GetGsiRoutingRequest(vm="empty"), "FAILED_PRECONDITION", "ENXIO", "create it first"),
    ("SetGsiRouting", pb.SetGsiRoutingRequest(vm="empty"), "INVALID_ARGUMENT", "EINVAL", "no irqchip"),
    ("SignalMsi", pb.SignalMsiRequest(vm="empty", address=0xFEE0_0000), "INVALID_ARGUMENT", "EINVAL", "no irqchip"),
    ("GetLapic", pb.GetLapicRequest(vm="bare"), "INVALID_ARGUMENT", "EINVAL", "no local APIC"),
    ("SetLapic", pb.SetLapicRequest(vm="bare", kvm_struct=bytes(1024)), "INVALID_ARGUMENT", "EINVAL", "local APIC"),
    ("AckInterrupt", pb.AckInterruptRequest(vm="bare"), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    # Accesses.
    ("PioRead", pb.PioReadRequest(vm="good", port=0x20, size=3), "INVALID_ARGUMENT", "EINVAL", "1, 2, 4"),
    ("PioRead", pb.PioReadRequest(vm="good", port=0x20, size=8), "INVALID_ARGUMENT", "EINVAL", "1, 2, 4"),
    ("PioRead", pb.PioReadRequest(vm="good", port=0x20), "INVALID_ARGUMENT", "EINVAL", "1, 2, 4"),
    ("PioRead", pb.PioReadRequest(vm="good", port=0x10000, size=1), "INVALID_ARGUMENT", "EINVAL", "0xffff"),
    ("PioWrite", pb.PioWriteRequest(vm="good", port=0x21, size=1, data=256), "INVALID_ARGUMENT", "EINVAL", "0x100"),
    ("MmioRead", pb.MmioReadRequest(vm="good", address=0xFEC0_0000, size=16), "INVALID_ARGUMENT", "EINVAL", "8"),
    (
        "MmioWrite",
        pb.MmioWriteRequest(vm="good", address=0xFEC0_0000, size=4, data=1 << 32),
        "INVALID_ARGUMENT",
        "EINVAL",
        "4 bytes",
    ),
    ("AckInterrupt", pb.AckInterruptRequest(vm="good", source=9), "INVALID_ARGUMENT", "EINVAL", "1 the PIC"),  # type: ignore[arg-type]
    ("SignalMsi", pb.SignalMsiRequest(vm="good", flags=2), "INVALID_ARGUMENT", "EINVAL", "0 or 1"),
    # Chip states.
    ("GetIrqchip", pb.GetIrqchipRequest(vm="good", chip_id=3), "INVALID_ARGUMENT", "EINVAL", "2 the IOAPIC"),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="good", chip_id=3, kvm_struct=bytes(16)), "INVALID_ARGUMENT", "EINVAL", "3"),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="good"), "INVALID_ARGUMENT", "EINVAL", "kvm_struct"),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="good", kvm_struct=bytes(15)), "INVALID_ARGUMENT", "EINVAL", "16"),
    (
        "SetIrqchip",
        pb.SetIrqchipRequest(vm="good", chip_id=2, kvm_struct=bytes(16)),
        "INVALID_ARGUMENT",
        "EINVAL",
        "216",
    ),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="good", pic=pb.PicState(irr=256)), "INVALID_ARGUMENT", "EINVAL", "8 bits"),
    ("SetIrqchip", pb.SetIrqchipRequest(vm="good", ioapic=pb.IoapicState()), "INVALID_ARGUMENT", "EINVAL", "24"),
    (
        "SetIrqchip",
        pb.SetIrqchipRequest(vm="good", ioapic=pb.IoapicState(redirection_entries=[0] * 24)),
        "INVALID_ARGUMENT",
        "EINVAL",
        "another kind",
    ),
    ("SetLapic", pb.SetLapicRequest(vm="good"), "INVALID_ARGUMENT", "EINVAL", "kvm_struct"),
    ("SetLapic", pb.SetLapicRequest(vm="good", kvm_struct=bytes(1023)), "INVALID_ARGUMENT", "EINVAL", "1024"),
    ("SetLapic", pb.SetLapicRequest(vm="good", lapic=pb.LapicState(irr=[256])), "INVALID_ARGUMENT", "EINVAL", "255"),
    # Routing: KVM-BEHAVIOUR 29.
    ("SetGsiRouting", routing(ROUTE(gsi=4096, irqchip=PIN)), "INVALID_ARGUMENT", "EINVAL", "4095"),
    ("SetGsiRouting", routing(*[ROUTE(gsi=0, msi=MSI)] * 4097), "INVALID_ARGUMENT", "EINVAL", "4096"),
    ("SetGsiRouting", routing(ROUTE(gsi=1)), "INVALID_ARGUMENT", "EINVAL", "no destination"),
    ("SetGsiRouting", routing(ROUTE(gsi=1, irqchip=PIN, flags=1)), "INVALID_ARGUMENT", "EINVAL", "flags"),
    ("SetGsiRouting", routing(ROUTE(gsi=1, msi=MSI, flags=2)), "INVALID_ARGUMENT", "EINVAL", "flags"),
    (
        "SetGsiRouting",
        routing(ROUTE(gsi=1, irqchip=pb.IrqchipPin(chip_id=0, pin=8))),
        "INVALID_ARGUMENT",
        "EINVAL",
        "0 to 7",
    ),
    (
        "SetGsiRouting",
        routing(ROUTE(gsi=1, irqchip=pb.IrqchipPin(chip_id=2, pin=24))),
        "INVALID_ARGUMENT",
        "EINVAL",
        "0 to 23",
    ),
    ("SetGsiRouting", routing(ROUTE(gsi=1, irqchip=pb.IrqchipPin(chip_id=3))), "INVALID_ARGUMENT", "EINVAL", "chip 3"),
    ("SetGsiRouting", routing(*[ROUTE(gsi=1, irqchip=PIN)] * 2), "INVALID_ARGUMENT", "EINVAL", "twice"),
    ("SetGsiRouting", routing(*[ROUTE(gsi=1, msi=MSI)] * 2), "INVALID_ARGUMENT", "EINVAL", "the only entry"),
    (
        "SetGsiRouting",
        routing(ROUTE(gsi=1, irqchip=PIN), ROUTE(gsi=1, msi=MSI)),
        "INVALID_ARGUMENT",
        "EINVAL",
        "the only entry",
    ),
    # Time.
    ("CreateVm", pb.CreateVmRequest(clock=3), "INVALID_ARGUMENT", "EINVAL", "1 is real, 2 is virtual"),  # type: ignore[arg-type]
    ("CreateVm", pb.CreateVmRequest(tsc_khz=100_000_001), "INVALID_ARGUMENT", "EINVAL", "100000000"),
    ("AdvanceClock", pb.AdvanceClockRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("AdvanceClock", pb.AdvanceClockRequest(vm="good", nanoseconds=1), "INVALID_ARGUMENT", "EINVAL", "real"),
    (
        "AdvanceClock",
        pb.AdvanceClockRequest(vm="virtual", nanoseconds=(1 << 62) + 1),
        "INVALID_ARGUMENT",
        "EINVAL",
        "2^62",
    ),
    # Split irqchips: KVM-BEHAVIOUR 1.
    ("EnableCap", pb.EnableCapRequest(vm="nobody", capability=121), "NOT_FOUND", "ENOENT", "nobody"),
    ("EnableCap", pb.EnableCapRequest(vm="empty", capability=120), "INVALID_ARGUMENT", "EINVAL", "121"),
    ("EnableCap", pb.EnableCapRequest(vm="empty", capability=121, flags=1), "INVALID_ARGUMENT", "EINVAL", "flag"),
    ("EnableCap", pb.EnableCapRequest(vm="empty", capability=121, args=[4097]), "INVALID_ARGUMENT", "EINVAL", "4096"),
    ("EnableCap", pb.EnableCapRequest(vm="empty", capability=121, args=[0] * 5), "INVALID_ARGUMENT", "EINVAL", "4"),
    ("EnableCap", pb.EnableCapRequest(vm="good", capability=121), "ALREADY_EXISTS", "EEXIST", "irqchip"),
    ("EnableCap", pb.EnableCapRequest(vm="bare", capability=121), "ALREADY_EXISTS", "EEXIST", "vCPU"),
    ("EnableCap", pb.EnableCapRequest(vm="split", capability=121), "ALREADY_EXISTS", "EEXIST", "irqchip"),
    ("CreateIrqchip", pb.CreateIrqchipRequest(vm="split"), "ALREADY_EXISTS", "EEXIST", "irqchip"),
    ("CreatePit", pb.CreatePitRequest(vm="split"), "NOT_FOUND", "ENOENT", "PIC"),
    ("GetIrqchip", pb.GetIrqchipRequest(vm="split"), "FAILED_PRECONDITION", "ENXIO", "irqchip"),
    (
        "SetGsiRouting",
        pb.SetGsiRoutingRequest(vm="split", entries=[ROUTE(gsi=1, irqchip=PIN)]),
        "INVALID_ARGUMENT",
        "EINVAL",
        "MSI",
    ),
    ("Interrupt", pb.InterruptRequest(vm="split", vector=256), "INVALID_ARGUMENT", "EINVAL", "0 to 255"),
    ("Interrupt", pb.InterruptRequest(vm="split", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("Interrupt", pb.InterruptRequest(vm="good", vector=0x31), "FAILED_PRECONDITION", "ENXIO", "PIC"),
    ("Interrupt", pb.InterruptRequest(vm="bare", vector=0x31), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    # The PIT.
    ("CreatePit", pb.CreatePitRequest(vm="empty"), "NOT_FOUND", "ENOENT", "PIC"),
    ("CreatePit", pb.CreatePitRequest(vm="good"), "ALREADY_EXISTS", "EEXIST", "PIT"),
    ("GetPit", pb.GetPitRequest(vm="empty"), "FAILED_PRECONDITION", "ENXIO", "create it first"),
    ("GetPit", pb.GetPitRequest(vm="split"), "FAILED_PRECONDITION", "ENXIO", "are the VMM's"),
    ("CreatePit", pb.CreatePitRequest(vm="split"), "NOT_FOUND", "ENOENT", "are the VMM's"),
    ("GetIrqchip", pb.GetIrqchipRequest(vm="split"), "FAILED_PRECONDITION", "ENXIO", "are the VMM's"),
    ("GetIrqchip", pb.GetIrqchipRequest(vm="bare"), "FAILED_PRECONDITION", "ENXIO", "make a new VM"),
    ("CreatePit", pb.CreatePitRequest(vm="bare"), "NOT_FOUND", "ENOENT", "make a new VM"),
    ("SetPit", pb.SetPitRequest(vm="empty", kvm_struct=bytes(112)), "FAILED_PRECONDITION", "ENXIO", "create"),
    ("SetPit", pb.SetPitRequest(vm="good"), "INVALID_ARGUMENT", "EINVAL", "kvm_struct"),
    ("SetPit", pb.SetPitRequest(vm="good", kvm_struct=bytes(111)), "INVALID_ARGUMENT", "EINVAL", "112"),
    ("SetPit", pb.SetPitRequest(vm="good", pit=pb.PitState()), "INVALID_ARGUMENT", "EINVAL", "3"),
    ("SetPit", pit(mode=256), "INVALID_ARGUMENT", "EINVAL", "mode is 0x100; it has only 8 bits"),
    ("SetPit", pit(latched_count=1 << 16), "INVALID_ARGUMENT", "EINVAL", "it has only 16 bits"),
    ("SetPitReinject", pb.SetPitReinjectRequest(vm="empty"), "FAILED_PRECONDITION", "ENXIO", "create it first"),
    # vCPUs' registers and run states.
    ("MsrRead", pb.MsrReadRequest(vm="good", vcpu=7, msr=0x1B), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("MsrRead", pb.MsrReadRequest(vm="bare", msr=0x1B), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    ("MsrWrite", pb.MsrWriteRequest(vm="good", vcpu=7, msr=0x1B), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("MsrWrite", pb.MsrWriteRequest(vm="bare", msr=0x1B), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    ("Nmi", pb.NmiRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("Nmi", pb.NmiRequest(vm="bare"), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    ("TakeSignal", pb.TakeSignalRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("TakeSignal", pb.TakeSignalRequest(vm="bare"), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    ("Halt", pb.HaltRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("Halt", pb.HaltRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("Halt", pb.HaltRequest(vm="bare"), "FAILED_PRECONDITION", "ENXIO", "no local APIC"),
    ("GetMpState", pb.GetMpStateRequest(vm="good", vcpu=7), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("SetMpState", pb.SetMpStateRequest(vm="good", vcpu=7, state=RUNNABLE), "NOT_FOUND", "ENOENT", "vCPU 7"),
    ("SetMpState", pb.SetMpStateRequest(vm="good"), "INVALID_ARGUMENT", "EINVAL", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
    ("SetMpState", pb.SetMpStateRequest(vm="good", state=12), "INVALID_ARGUMENT", "EINVAL", "there are 1, 2"),  # type: ignore[arg-type]
    ("SetMpState", pb.SetMpStateRequest(vm="good", state=6), "INVALID_ARGUMENT", "EINVAL", "there are 0 RUNNABLE"),  # type: ignore[arg-type]
    ("SetMpState", pb.SetMpStateRequest(vm="bare", state=HALTED), "INVALID_ARGUMENT", "EINVAL", "local APIC"),
    # Reset and snapshots.
    ("ResetVm", pb.ResetVmRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("SaveVm", pb.SaveVmRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("RestoreVm", pb.RestoreVmRequest(), "INVALID_ARGUMENT", "EINVAL", "version 0"),
    ("RestoreVm", snapshot(version=3), "INVALID_ARGUMENT", "EINVAL", "version 2"),
    ("RestoreVm", snapshot(clock=0), "INVALID_ARGUMENT", "EINVAL", "ClockKind 0"),
    ("RestoreVm", snapshot(irqchip_mode=4), "INVALID_ARGUMENT", "EINVAL", "IrqchipMode 4"),
    ("RestoreVm", snapshot(tsc_khz=0), "INVALID_ARGUMENT", "EINVAL", "kHz"),
    ("RestoreVm", snapshot(vm="good"), "ALREADY_EXISTS", "EEXIST", "good"),
    ("RestoreVm", snapshot(vm="a/b"), "INVALID_ARGUMENT", "EINVAL", "A-Z a-z 0-9"),
    # Streams.
    ("Watch", pb.WatchRequest(vm="nobody"), "NOT_FOUND", "ENOENT", "nobody"),
    ("Watch", pb.WatchRequest(vm="good", tracepoints=["kvm_exit"]), "INVALID_ARGUMENT", "EINVAL", "kvm_pic_set_irq"),
]


@pytest.mark.parametrize(("method", "request_message", "code", "reason", "hint"), CASES)
def test_a_bad_request_is_refused_and_changes_nothing(
    channel: grpc.Channel, vm: Vm, method: str, request_message: Message, code: str, reason: str, hint: str
) -> None:
    before = state(vm)
    rpc = getattr(IrqchipServiceStub(channel), method)
    call = (lambda: list(rpc(request_message))) if method in STREAMS else (lambda: rpc(request_message))
    assert failure(call)[:2] == (code, reason)
    assert hint in failure(call)[2]
    assert state(vm) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"not a message"])
def test_malformed_messages_are_refused(channel: grpc.Channel, method: str, garbage: bytes) -> None:
    path = f"/irqchip.v1.IrqchipService/{method}"
    raw: Any = channel
    calls = {
        "Session": lambda: list(raw.stream_stream(path)(iter([garbage]))),
        "Watch": lambda: list(raw.unary_stream(path)(garbage)),
    }
    assert failure(calls.get(method, lambda: raw.unary_unary(path)(garbage)))[:2] == ("INVALID_ARGUMENT", "EBADMSG")


def test_a_message_larger_than_the_limit_is_refused(channel: grpc.Channel, vm: Vm) -> None:
    stub = IrqchipServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateVm(pb.CreateVmRequest(vm="x" * (2 << 20)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert vm.info().name == "good"


OPEN = pb.SessionRequest(open=pb.SessionOpen(vm="good", client="test"))


@pytest.mark.parametrize(
    ("messages", "code", "reason"),
    [
        ([pb.SessionRequest()], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(batch=pb.Batch())], "INVALID_ARGUMENT", "EINVAL"),
        ([OPEN, OPEN], "INVALID_ARGUMENT", "EINVAL"),
        ([OPEN, pb.SessionRequest()], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="nobody"))], "NOT_FOUND", "ENOENT"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", client="x" * 65))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", client="\x1b[2J"))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", vcpus=[4096]))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", gsis=[4096]))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", resampled_gsis=[4096]))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="empty", resampled_gsis=[4]))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="split", resampled_gsis=[4]))], "INVALID_ARGUMENT", "EINVAL"),
        ([pb.SessionRequest(open=pb.SessionOpen(vm="good", client="late", resume=True))], "NOT_FOUND", "ENOENT"),
    ],
)
@pytest.mark.usefixtures("vm")
def test_a_session_that_breaks_the_rules_ends_with_a_status(
    channel: grpc.Channel, messages: list[pb.SessionRequest], code: str, reason: str
) -> None:
    assert failure(lambda: list(IrqchipServiceStub(channel).Session(iter(messages))))[:2] == (code, reason)
    stub = IrqchipServiceStub(channel)
    assert [list(vm.sessions) for vm in stub.ListVms(pb.ListVmsRequest()).vms] == [[]] * 5


def results(channel: grpc.Channel, batch: pb.Batch) -> pb.BatchResult:
    """A Session's results for one batch."""
    answers = list(IrqchipServiceStub(channel).Session(iter([OPEN, pb.SessionRequest(batch=batch)])))
    assert answers[-1].batch_result.serial == batch.serial
    return answers[-1].batch_result


@pytest.mark.usefixtures("vm")
def test_an_operation_that_fails_does_not_spoil_its_batch(channel: grpc.Channel) -> None:
    good = pb.Operation(irq_line=pb.IrqLineRequest(gsi=20, level=True))
    bad = pb.Operation(pio_read=pb.PioReadRequest(port=0x20, size=3))
    elsewhere = pb.Operation(irq_line=pb.IrqLineRequest(vm="bare", gsi=1, level=True))
    answer = results(channel, pb.Batch(serial=9, operations=[bad, pb.Operation(), elsewhere, good]))
    assert [result.error.reason for result in answer.results] == ["EINVAL", "EINVAL", "EINVAL", ""]
    assert answer.results[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "1, 2, 4" in answer.results[0].error.message
    assert answer.results[3].irq_line.status == -1


@pytest.mark.usefixtures("vm")
def test_a_halt_that_does_not_end_its_batch_is_refused_alone(channel: grpc.Channel) -> None:
    halt = pb.Operation(halt=pb.HaltRequest(timeout_ns=1))
    elsewhere = pb.Operation(halt=pb.HaltRequest(vm="bare"))
    good = pb.Operation(irq_line=pb.IrqLineRequest(gsi=20, level=True))
    answer = results(channel, pb.Batch(serial=1, operations=[halt, good, halt, elsewhere]))
    assert [result.error.reason for result in answer.results] == ["EINVAL", "", "EINVAL", "EINVAL"]
    assert "last operation" in answer.results[0].error.message
    assert answer.results[1].irq_line.status == -1


def test_a_batch_that_is_too_long_is_refused_whole(channel: grpc.Channel, vm: Vm) -> None:
    create = [pb.Operation(create_vcpu=pb.CreateVcpuRequest(vcpu=1))]
    fill = [pb.Operation(irq_line=pb.IrqLineRequest(gsi=1))] * 4096
    answer = results(channel, pb.Batch(serial=3, operations=create + fill))
    assert (answer.error.reason, len(answer.results)) == ("E2BIG", 0)
    assert "4096" in answer.error.message
    assert vm.info().vcpus == (0,)
    assert len(results(channel, pb.Batch(serial=4, operations=fill)).results) == 4096


def test_operations_whose_results_would_be_too_large_are_not_executed(channel: grpc.Channel, vm: Vm) -> None:
    vm.set_routing([MsiRoute(gsi, 0xFEE0_0000, 0x41) for gsi in range(4096)])
    raised = pb.Operation(irq_line=pb.IrqLineRequest(gsi=5, level=True))
    table = pb.Operation(get_gsi_routing=pb.GetGsiRoutingRequest())
    answer = results(channel, pb.Batch(serial=5, operations=[*[table] * 100, raised]))
    assert answer.ByteSize() < 2 << 20
    reasons = [result.error.reason for result in answer.results]
    assert len(answer.results[0].get_gsi_routing.entries) == 4096
    assert set(reasons[-50:-1]) == {"E2BIG"}
    assert reasons[-1] == ""


@pytest.mark.usefixtures("vm")
def test_masked_unrouted_and_unclaimed_are_results_and_not_errors(channel: grpc.Channel) -> None:
    stub = IrqchipServiceStub(channel)
    assert stub.IrqLine(pb.IrqLineRequest(vm="good", gsi=20, level=True)).status == -1
    assert stub.IrqLine(pb.IrqLineRequest(vm="good", gsi=4096, level=True)).status == -1
    assert stub.SignalMsi(pb.SignalMsiRequest(vm="good", address=0xFEE0_5000, data=0x41)).status == 0
    assert not stub.PioRead(pb.PioReadRequest(vm="good", port=0x80, size=1)).claimed
    assert not stub.MmioWrite(pb.MmioWriteRequest(vm="bare", address=0xFEC0_0000, size=4)).claimed


def test_an_error_shortens_long_text_from_the_client(irqchip_server: Daemon) -> None:
    long = "n" * 9000
    with grpc.insecure_channel(irqchip_server.target) as channel:
        stub = IrqchipServiceStub(channel)
        for call, code in (
            (lambda: stub.GetVm(pb.GetVmRequest(vm=long)), grpc.StatusCode.NOT_FOUND),
            (lambda: stub.CreateVm(pb.CreateVmRequest(vm=long)), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: stub.CreateVm(pb.CreateVmRequest(vm="\x1b[31m\n" * 900)), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: stub.CreateVm(pb.CreateVmRequest(vm="\U0001f980" * 9000)), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: next(stub.Watch(pb.WatchRequest(vm=long))), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == code
            text = caught.value.details() or ""
            assert 0 < len(text) < 500
            assert text.isprintable()
            assert rpc_status.from_call(caught.value) is not None
