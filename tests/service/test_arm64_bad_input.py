"""Bad input to an arm64 VM, and arm64's calls on another: a status, an errno, a message, and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import Architecture, Client, DeviceType, GicHost, Vm
from irqchip_client._daemon import Daemon
from irqchip_client.arm64 import SYSREGS, Address, Control, Group, VcpuGroup, attr_of, irq, ppi, spi
from tests.service.test_bad_input import failure

BAD, NOT_READY, NOT_FOUND, EXISTS, LIMIT = (
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "RESOURCE_EXHAUSTED",
)
GIC, VCPU = pb.AttrTarget(device=0), pb.AttrTarget(vcpu=0)
ICC_CTLR = attr_of(3, 0, SYSREGS["ICC_CTLR_EL1"])
CTLR_RESET = 0x8C00


def setting(
    group: int, attr: int, value: int | bytes = 0, *, vm: str = "v3", target: pb.AttrTarget = GIC
) -> tuple[str, Message]:
    data = value if isinstance(value, bytes) else value.to_bytes(8, "little")
    return "SetDeviceAttr", pb.SetDeviceAttrRequest(vm=vm, target=target, group=group, attr=attr, data=data)


def getting(
    group: int, attr: int, data: bytes = bytes(8), *, vm: str = "v3", target: pb.AttrTarget = GIC
) -> tuple[str, Message]:
    return "GetDeviceAttr", pb.GetDeviceAttrRequest(vm=vm, target=target, group=group, attr=attr, data=data)


def has(group: int, attr: int, *, vm: str = "v3", target: pb.AttrTarget = GIC) -> tuple[str, Message]:
    return "HasDeviceAttr", pb.HasDeviceAttrRequest(vm=vm, target=target, group=group, attr=attr)


def line(gsi: int, vm: str = "v3") -> tuple[str, Message]:
    return "IrqLine", pb.IrqLineRequest(vm=vm, gsi=gsi, level=True)


def made(**gic: int) -> tuple[str, Message]:
    return "CreateVm", pb.CreateVmRequest(architecture=pb.ARCHITECTURE_ARM64, gic=pb.GicProperties(**gic))


def device(vm: str, kind: int) -> tuple[str, Message]:
    return "CreateDevice", pb.CreateDeviceRequest(vm=vm, type=kind)


def route(gsi: int, chip: int, pin: int) -> tuple[str, Message]:
    entry = pb.RoutingEntry(gsi=gsi, irqchip=pb.IrqchipPin(chip_id=chip, pin=pin))
    return "SetGsiRouting", pb.SetGsiRoutingRequest(vm="v3", entries=[entry])


def sysreg(name: str, vm: str = "v3", vcpu: int = 0) -> tuple[str, Message]:
    return "SysregRead", pb.SysregReadRequest(vm=vm, vcpu=vcpu, sysreg=SYSREGS[name])


CASES: list[tuple[tuple[str, Message], str, str, str]] = [
    # Creation.
    (made(version=4), BAD, "EINVAL", "2, 3, or 0"),
    (made(list_registers=1), BAD, "EINVAL", "2 to 16"),
    (made(list_registers=17), BAD, "EINVAL", "2 to 16"),
    (made(priority_bits=4), BAD, "EINVAL", "5 to 7"),
    (made(priority_bits=8), BAD, "EINVAL", "5 to 7"),
    (("CreateVm", pb.CreateVmRequest(architecture=9)), BAD, "EINVAL", "2 arm64"),  # type: ignore[arg-type]
    (("CreateVm", pb.CreateVmRequest(gic=pb.GicProperties(version=3))), BAD, "EINVAL", "leave gic out"),
    (("CreateVm", pb.CreateVmRequest(architecture=pb.ARCHITECTURE_ARM64, tsc_khz=1)), BAD, "EINVAL", "tsc_khz"),
    (device("v3", 5), NOT_READY, "ENODEV", "there are 4, 7, 8"),
    (device("v3", 7), EXISTS, "EEXIST", "has a GIC already"),
    (device("x86", 7), NOT_READY, "ENODEV", "type 7"),
    (device("nobody", 7), NOT_FOUND, "ENOENT", "nobody"),
    (("CreateIrqchip", pb.CreateIrqchipRequest(vm="v3")), NOT_READY, "ENODEV", "only a GICv3"),
    (("CreateIrqchip", pb.CreateIrqchipRequest(vm="v2")), EXISTS, "EEXIST", "has a GIC already"),
    (("CreateVcpu", pb.CreateVcpuRequest(vm="v3", vcpu=1)), NOT_READY, "EBUSY", "create vCPUs before that"),
    (("CreateVcpu", pb.CreateVcpuRequest(vm="early", vcpu=512)), BAD, "EINVAL", "0 to 511"),
    (("CreateVcpu", pb.CreateVcpuRequest(vm="early", vcpu=0)), EXISTS, "EEXIST", "vCPU 0"),
    (("EnableCap", pb.EnableCapRequest(vm="v3", capability=121)), BAD, "EINVAL", "use one of 177"),
    (("SetDeviceAddr", pb.SetDeviceAddrRequest(vm="v3", id=0)), NOT_READY, "ENODEV", "a GICv2"),
    (("SetDeviceAddr", pb.SetDeviceAddrRequest(vm="v2", id=2)), NOT_READY, "ENODEV", "use 0 or 1"),
    (("SetDeviceAddr", pb.SetDeviceAddrRequest(vm="v2", id=0, address=0x1000)), EXISTS, "EEXIST", ""),
    (("SetDeviceAddr", pb.SetDeviceAddrRequest(vm="x86")), BAD, "ENOTTY", "other architectures"),
    (("VcpuInit", pb.VcpuInitRequest(vm="v3", vcpu=7)), NOT_FOUND, "ENOENT", "vCPU 7"),
    (("VcpuInit", pb.VcpuInitRequest(vm="v3", target=9)), BAD, "EINVAL", "use 2 or 5"),
    (("VcpuInit", pb.VcpuInitRequest(vm="v3", features=1 << 31)), NOT_FOUND, "ENOENT", "features 0x80000000"),
    (("VcpuInit", pb.VcpuInitRequest(vm="v3", features=1 << 4)), BAD, "EINVAL", "features 0x10"),
    (("VcpuInit", pb.VcpuInitRequest(vm="v3", features=0)), BAD, "EINVAL", "use those"),
    (("VcpuInit", pb.VcpuInitRequest(vm="x86")), BAD, "ENOTTY", "other architectures"),
    # Attributes.
    (setting(0, 0, target=pb.AttrTarget(device=1)), BAD, "EBADF", "no device 1; create it first"),
    (setting(0, 0, target=pb.AttrTarget(vcpu=7)), NOT_FOUND, "ENOENT", "vCPU 7"),
    (setting(0, 0, target=pb.AttrTarget()), BAD, "EINVAL", "target"),
    (setting(99, 0), NOT_READY, "ENXIO", "no attribute 0x0 of group 99"),
    (getting(99, 0), NOT_READY, "ENXIO", "no attribute 0x0 of group 99"),
    (has(99, 0), NOT_READY, "ENXIO", "no attribute 0x0 of group 99"),
    (setting(99, 0, vm="nobody"), NOT_FOUND, "ENOENT", "nobody"),
    (setting(Group.ADDR, Address.V3_DIST, b"1234567"), BAD, "EFAULT", "give 8 or more"),
    (getting(Group.ADDR, Address.V3_DIST, b""), BAD, "EFAULT", "give 8 or more"),
    (setting(Group.ADDR, Address.V2_DIST, 0), NOT_READY, "ENXIO", "no attribute"),
    (setting(Group.ADDR, Address.V3_DIST, 0x1_0000), EXISTS, "EEXIST", ""),
    (setting(Group.ADDR, Address.V3_DIST, 0x1000, vm="early"), BAD, "EINVAL", "0x1000"),
    (setting(Group.ADDR, Address.V3_DIST, 1 << 40, vm="early"), LIMIT, "E2BIG", ""),
    (setting(Group.ADDR, Address.V3_REDIST_REGION, 0x1_0000, vm="early"), BAD, "EINVAL", "use 1 or more"),
    (getting(Group.ADDR, Address.V3_REDIST_REGION, b"\7" + bytes(7)), NOT_FOUND, "ENOENT", "no region 7"),
    (setting(Group.NR_IRQS, 0, 1024), BAD, "EINVAL", "from 64 to 992"),
    (setting(Group.NR_IRQS, 0, 128), NOT_READY, "EBUSY", "only once"),
    (setting(Group.CTRL, 9), NOT_READY, "ENXIO", "no attribute 0x9"),
    (setting(Group.CTRL, Control.SAVE_PENDING_TABLES, vm="v2"), NOT_READY, "ENXIO", "no attribute"),
    (getting(Group.DIST_REGS, 0, vm="early"), NOT_READY, "EBUSY", "CTRL_INIT first"),
    (setting(Group.DIST_REGS, 0, b"123"), BAD, "EFAULT", "give 4 or more"),
    (setting(Group.DIST_REGS, 8, 0x1234), BAD, "EINVAL", "0x4b00343b is allowed"),
    (setting(Group.REDIST_REGS, 9 << 32), BAD, "EINVAL", "a vCPU that does not exist"),
    (setting(Group.CPU_REGS, 9 << 32, vm="v2"), BAD, "EINVAL", "names vCPU 9"),
    (setting(Group.CPU_SYSREGS, ICC_CTLR, CTLR_RESET | 7 << 8), BAD, "EINVAL", "at most 5 are allowed"),
    (getting(Group.CPU_SYSREGS, SYSREGS["ICC_AP1R3_EL1"]), BAD, "EINVAL", "registers 0 to 0"),
    (getting(Group.CPU_SYSREGS, SYSREGS["ICC_IAR1_EL1"]), NOT_FOUND, "ENOENT", "no register"),
    (getting(Group.LEVEL_INFO, 33), BAD, "EINVAL", "multiple of 32"),
    (getting(Group.LEVEL_INFO, 1 << 10), BAD, "EINVAL", "level of lines"),
    (setting(VcpuGroup.TIMER, 0, 5, target=VCPU), BAD, "EINVAL", "use 16 to 31"),
    (setting(VcpuGroup.PMU, 1, target=VCPU), NOT_READY, "ENODEV", "no PMU"),
    (setting(VcpuGroup.PVTIME, 0, 1, target=VCPU), BAD, "EINVAL", "multiple of 64"),
    (getting(9, 0, target=VCPU), NOT_READY, "ENXIO", "no attribute"),
    (setting(0, 0, vm="x86"), BAD, "EBADF", "no device 0; create it first"),
    # Lines, messages and routes.
    (line(irq(0)), NOT_READY, "ENXIO", "which drives"),
    (line(spi(32)), BAD, "EINVAL", "32 to 63 are allowed"),
    (line(spi(4) - 16), BAD, "EINVAL", "32 or more"),
    (line(ppi(1, 20)), BAD, "EINVAL", "vCPU 1 does not exist"),
    (line(ppi(0, 5)), BAD, "EINVAL", "16 or more"),
    (line(3 << 24), BAD, "EINVAL", "type 3"),
    (line(spi(4), "early"), NOT_READY, "EBUSY", "CTRL_INIT first"),
    (line(spi(4), "bare"), NOT_READY, "ENXIO", "create it first"),
    (("SignalMsi", pb.SignalMsiRequest(vm="v3")), NOT_READY, "ENODEV", "translation service"),
    (("SignalMsi", pb.SignalMsiRequest(vm="bare")), BAD, "EINVAL", "needs a GIC"),
    (route(4, 0, 988), BAD, "EINVAL", "0 to 987"),
    (route(4, 2, 4), BAD, "EINVAL", "chip 2"),
    (route(4096, 0, 4), BAD, "EINVAL", "4095"),
    # vCPUs.
    (sysreg("ICC_PMR_EL1", vcpu=7), NOT_FOUND, "ENOENT", "vCPU 7"),
    (sysreg("ICC_PMR_EL1", "bare"), NOT_READY, "ENOEXEC", "call VcpuInit first"),
    (sysreg("ICC_PMR_EL1", "x86"), BAD, "ENOTTY", "other architectures"),
    (("SysregWrite", pb.SysregWriteRequest(vm="v3", vcpu=7)), NOT_FOUND, "ENOENT", "vCPU 7"),
    (("SysregWrite", pb.SysregWriteRequest(vm="x86")), BAD, "ENOTTY", "other architectures"),
    (("Halt", pb.HaltRequest(vm="bare")), NOT_READY, "ENOEXEC", "call VcpuInit first"),
    (("SetMpState", pb.SetMpStateRequest(vm="v3", state=pb.MP_STATE_HALTED)), BAD, "EINVAL", "5 STOPPED"),
    (("GetLapic", pb.GetLapicRequest(vm="v3")), BAD, "EINVAL", "other architectures"),
    (("AckInterrupt", pb.AckInterruptRequest(vm="v3")), BAD, "EINVAL", "other architectures"),
    # CheckExtension.
    (("CheckExtension", pb.CheckExtensionRequest(architecture=9)), BAD, "EINVAL", "2 arm64"),  # type: ignore[arg-type]
    (
        ("CheckExtension", pb.CheckExtensionRequest(architecture=2, gic=pb.GicProperties(version=4))),  # type: ignore[arg-type]
        BAD,
        "EINVAL",
        "2, 3, or 0",
    ),
]


@pytest.fixture
def channel(irqchip_server: Daemon) -> Iterator[grpc.Channel]:
    """A channel without the SDK, which would refuse to send bad input."""
    with grpc.insecure_channel(irqchip_server.target) as channel:
        yield channel


@pytest.fixture
def vms(irqchip_client: Client) -> list[Vm]:
    """A VM with each GIC and vCPU 0; one whose GICv3 is yet to be initialised; one without; and an x86 VM."""

    def make(name: str, version: int) -> Vm:
        vm = irqchip_client.create_vm(name, architecture=Architecture.ARM64, gic=GicHost(version), virtual_clock=True)
        vm.create_vcpu(0)
        return vm

    made = [make("v2", 2), make("v3", 3), make("early", 3), make("bare", 0)]
    for vm, version in zip(made, (2, 3), strict=False):
        vm.vcpu(0).init()
        vm.create_gic(version, 64)
    made[2].create_device(DeviceType.ARM_VGIC_V3)
    x86 = irqchip_client.create_vm("x86", virtual_clock=True)
    x86.create_vcpu(0)
    return [*made, x86]


def state(vms: list[Vm]) -> list[bytes]:
    return [vm.snapshot().to_bytes() for vm in vms]


@pytest.mark.parametrize(
    ("call", "code", "reason", "words"), CASES, ids=lambda value: value[0][:20] if isinstance(value, tuple) else ""
)
def test_bad_input_is_refused(
    channel: grpc.Channel,
    irqchip_client: Client,
    vms: list[Vm],
    call: tuple[str, Message],
    code: str,
    reason: str,
    words: str,
) -> None:
    method, request = call
    before = state(vms)
    stub: Any = IrqchipServiceStub(channel)
    found = failure(lambda: getattr(stub, method)(request))
    assert found[:2] == (code, reason)
    assert words in found[2]
    assert state(vms) == before
    assert len(irqchip_client.vms()) == len(vms)


def test_every_message_of_arm64_is_here() -> None:
    messages = {
        message.name.removesuffix("Request") for message in pb.DESCRIPTOR.services_by_name["IrqchipService"].methods
    }
    own = {"CreateDevice", "SetDeviceAttr", "GetDeviceAttr", "HasDeviceAttr", "SetDeviceAddr", "VcpuInit"}
    own |= {"SysregRead", "SysregWrite"}
    assert own <= messages
    assert own <= {case[0][0] for case in CASES}


def test_a_vm_that_is_dead_is_eio(channel: grpc.Channel, irqchip_client: Client, vms: list[Vm]) -> None:
    early = vms[2]
    early.vcpu(0).init()
    stub = IrqchipServiceStub(channel)
    read = pb.SysregReadRequest(vm="early", sysreg=SYSREGS["ICC_PMR_EL1"])
    assert failure(lambda: stub.SysregRead(read))[1] == "ENXIO"
    for call in (
        lambda: stub.SysregRead(read),
        lambda: stub.CreateVcpu(pb.CreateVcpuRequest(vm="early", vcpu=1)),
        lambda: stub.GetMpState(pb.GetMpStateRequest(vm="early")),
    ):
        code, reason, message = failure(call)
        assert (code, reason) == ("INTERNAL", "EIO")
        assert "dead" in message
    irqchip_client.delete_vm("early")
    assert [vm.name for vm in irqchip_client.vms()] == ["bare", "v2", "v3", "x86"]
