"""Bad input to an s390 VM, and s390's calls on another: a status, an errno, a helpful message, and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import Architecture, Client, DeviceType, InterruptMasks, S390Irq, S390IrqType, Vm
from irqchip_client._daemon import Daemon
from tests.service.test_bad_input import failure

EMERGENCY = S390Irq.make(S390IrqType.EMERGENCY, code=0).kvm_struct
MASKS = InterruptMasks.all().to_proto()
# Calls that s390 alone has, of a vCPU.
CALLS: list[tuple[str, Any, dict[str, Any]]] = [
    ("S390Interrupt", pb.S390InterruptRequest, {"type": S390IrqType.RESTART}),
    ("S390Irq", pb.S390IrqRequest, {"irq": EMERGENCY}),
    ("GetIrqState", pb.GetIrqStateRequest, {}),
    ("SetIrqState", pb.SetIrqStateRequest, {"irqs": EMERGENCY}),
    ("SetInterruptMasks", pb.SetInterruptMasksRequest, {"masks": MASKS}),
    ("GetInterruptMasks", pb.GetInterruptMasksRequest, {}),
    ("TakeIrq", pb.TakeIrqRequest, {}),
    ("ResetVcpu", pb.ResetVcpuRequest, {"reset": pb.VCPU_RESET_CLEAR}),
]
FLIC = pb.AttrTarget(device=0)
BAD, NOT_READY, NOT_FOUND = "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"


def attribute(group: int, attr: int, data: bytes, target: pb.AttrTarget = FLIC) -> pb.SetDeviceAttrRequest:
    return pb.SetDeviceAttrRequest(vm="s390", target=target, group=group, attr=attr, data=data)


def adapter(address: int, offset: int) -> pb.SetGsiRoutingRequest:
    route = pb.S390Adapter(ind_addr=address, summary_addr=0x1000, ind_offset=offset)
    return pb.SetGsiRoutingRequest(vm="s390", entries=[pb.RoutingEntry(gsi=5, s390_adapter=route)])


def irq(kind: int) -> bytes:
    return kind.to_bytes(8, "big").ljust(72, b"\0")


CASES: list[tuple[str, Message, str, str, str]] = [
    *((method, make(vm="x86", vcpu=0, **more), BAD, "ENOTTY", "other architectures") for method, make, more in CALLS),
    *((method, make(vm="s390", vcpu=7, **more), NOT_FOUND, "ENOENT", "vCPU 7") for method, make, more in CALLS),
    ("CreateIrqchip", pb.CreateIrqchipRequest(vm="bare"), BAD, "EINVAL", "KVM_CAP_S390_IRQCHIP"),
    ("EnableCap", pb.EnableCapRequest(vm="s390", capability=121), BAD, "EINVAL", "use 99"),
    ("EnableCap", pb.EnableCapRequest(vm="s390", capability=99, flags=1), BAD, "EINVAL", "no flag"),
    ("EnableCap", pb.EnableCapRequest(vm="s390", capability=141), NOT_READY, "EBUSY", "before them"),
    ("CreateDevice", pb.CreateDeviceRequest(vm="s390", type=5), NOT_READY, "ENODEV", "6, the FLIC"),
    ("CreateDevice", pb.CreateDeviceRequest(vm="s390", type=6), BAD, "EINVAL", "already"),
    ("CreateVcpu", pb.CreateVcpuRequest(vm="s390", vcpu=255), BAD, "EINVAL", "0 to 254"),
    ("CreatePit", pb.CreatePitRequest(vm="s390"), BAD, "ENOTTY", "other architectures"),
    ("SignalMsi", pb.SignalMsiRequest(vm="s390"), BAD, "ENOTTY", "other architectures"),
    ("Nmi", pb.NmiRequest(vm="s390"), BAD, "ENOTTY", "other architectures"),
    ("S390Interrupt", pb.S390InterruptRequest(vm="s390", type=S390IrqType.RESTART), BAD, "EINVAL", "restart"),
    (
        "S390Interrupt",
        pb.S390InterruptRequest(vm="s390", type=S390IrqType.EMERGENCY, parm=1 << 16, vcpu=0),
        BAD,
        "EINVAL",
        "0 to 0xffff",
    ),
    ("S390Irq", pb.S390IrqRequest(vm="s390", irq=b"x"), BAD, "EINVAL", "72"),
    ("S390Irq", pb.S390IrqRequest(vm="s390", irq=irq(S390IrqType.VIRTIO)), BAD, "EINVAL", "virtio"),
    ("S390Irq", pb.S390IrqRequest(vm="s390", irq=irq(0xFFFF_FFFF)), BAD, "EINVAL", "type"),
    ("SetIrqState", pb.SetIrqStateRequest(vm="s390", irqs=b"x"), BAD, "EINVAL", "multiple of 72"),
    ("SetIrqState", pb.SetIrqStateRequest(vm="s390", irqs=EMERGENCY), NOT_READY, "EBUSY", "reset it first"),
    ("GetIrqState", pb.GetIrqStateRequest(vm="s390", length=71), NOT_READY, "ENOBUFS", "larger"),
    ("ResetVcpu", pb.ResetVcpuRequest(vm="s390"), BAD, "EINVAL", "1 is normal"),
    ("SetMpState", pb.SetMpStateRequest(vm="s390", state=pb.MP_STATE_RUNNABLE), NOT_READY, "ENXIO", "5, stopped"),
    ("SetGsiRouting", adapter(0x1000, 0), BAD, "EFAULT", "outside memory"),
    ("SetGsiRouting", adapter(0x1000, 4096 * 8), BAD, "EINVAL", "outside of its page"),
    ("SetDeviceAttr", attribute(12, 0, b""), BAD, "EINVAL", "ENQUEUE"),
    ("SetDeviceAttr", attribute(2, 71, bytes(71)), BAD, "EINVAL", "multiple of 72"),
    ("SetDeviceAttr", attribute(2, 72, b""), BAD, "EFAULT", "72 are needed"),
    ("SetDeviceAttr", attribute(2, 144, bytes(72) + irq(S390IrqType.RESTART)), BAD, "EINVAL", "restart"),
    ("SetDeviceAttr", attribute(6, 0, bytes(8)), BAD, "EINVAL", "already registered"),
    ("SetDeviceAttr", attribute(9, 0, bytes(4)), NOT_READY, "EOPNOTSUPP", "KVM_CAP_S390_AIS"),
    ("SetDeviceAttr", attribute(10, 5, b""), BAD, "EINVAL", "register it first"),
    ("SetDeviceAttr", attribute(2, 0, b"", pb.AttrTarget(device=1)), BAD, "EBADF", "device 1"),
    ("SetDeviceAttr", attribute(2, 0, b"", pb.AttrTarget(vcpu=0)), BAD, "ENOTTY", "no attributes"),
]


@pytest.fixture
def channel(irqchip_server: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(irqchip_server.target) as channel:
        yield channel


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """An s390 VM that has everything, and others that have nothing, or are of x86."""
    irqchip_client.create_vm("bare", architecture=Architecture.S390)
    x86 = irqchip_client.create_vm("x86")
    x86.create_vcpu(0)
    vm = irqchip_client.create_vm("s390", architecture=Architecture.S390, virtual_clock=True)
    vm.enable_cap(99)
    vm.create_irqchip()
    flic = vm.create_device(DeviceType.FLIC)
    flic.set(6, 0, bytes(8))
    flic.set(2, 72, S390Irq.adapter(3).kvm_struct)
    vcpu = vm.create_vcpu(0)
    vcpu.set_interrupt_masks(InterruptMasks.all())
    vcpu.s390_irq(EMERGENCY)
    return vm


@pytest.mark.parametrize(("method", "request_message", "code", "reason", "hint"), CASES)
def test_a_bad_request_is_refused_and_changes_nothing(
    channel: grpc.Channel, vm: Vm, method: str, request_message: Message, code: str, reason: str, hint: str
) -> None:
    def state() -> bytes:
        return vm.snapshot().to_bytes()

    before = state()
    rpc = getattr(IrqchipServiceStub(channel), method)
    assert failure(lambda: rpc(request_message))[:2] == (code, reason)
    assert hint in failure(lambda: rpc(request_message))[2]
    assert state() == before


def test_other_properties_are_refused(channel: grpc.Channel) -> None:
    rpc = IrqchipServiceStub(channel).CreateVm
    s390 = pb.ARCHITECTURE_S390
    for request in (
        pb.CreateVmRequest(architecture=s390, tsc_khz=1),
        pb.CreateVmRequest(architecture=s390, gic=pb.GicProperties(version=2)),
    ):
        assert failure(lambda request=request: rpc(request))[:2] == (BAD, "EINVAL")
