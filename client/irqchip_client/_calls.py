"""The calls that irqchip_client.ops does not contain: those of a Client and a Vm, and those that carry descriptors."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb

from ._call import Call, check_name
from ._checked import checked
from ._errors import InvalidArgument
from ._model import USUAL_GIC, Architecture, DeviceType, GicHost, InterruptCounts, ResetReason, Space, VmSnapshot
from .ops import region_request

KVM_CAP_SPLIT_IRQCHIP = 121  # <linux/kvm.h>
KVM_PIT_SPEAKER_DUMMY = 1


def _nothing(_response: Message) -> None:
    return None


# VMs and the daemon: a Session takes none of these. _pages assembles the lists that come in pages.


@checked
def create_vm(
    name: str,
    virtual_clock: bool = False,
    tsc_khz: int = 0,
    architecture: Architecture = Architecture.X86,
    gic: GicHost = USUAL_GIC,
) -> Call[str]:
    check_name("VM", name)
    request = pb.CreateVmRequest(
        vm=name,
        clock=pb.CLOCK_KIND_VIRTUAL if virtual_clock else pb.CLOCK_KIND_REAL,
        tsc_khz=tsc_khz,
        architecture=pb.Architecture.ValueType(Architecture(architecture)),
        gic=gic_properties(gic),
    )
    return Call("create_vm", request, _made_vm)


def gic_properties(gic: GicHost) -> pb.GicProperties | None:
    if gic == USUAL_GIC:
        return None
    return pb.GicProperties(version=gic.version, list_registers=gic.list_registers, priority_bits=gic.priority_bits)


def delete_vm() -> Call[None]:
    return Call("delete_vm", pb.DeleteVmRequest(), _nothing)


def list_vms(page_token: str = "") -> Call[pb.ListVmsResponse]:
    return Call("list_vms", pb.ListVmsRequest(page_token=page_token), lambda page: page)


def get_vm(page_token: str = "") -> Call[pb.GetVmResponse]:
    return Call("get_vm", pb.GetVmRequest(page_token=page_token), lambda page: page)


@checked
def reset_vm(reason: ResetReason) -> Call[None]:
    request = pb.ResetVmRequest(reason=pb.ResetReason.ValueType(ResetReason(reason)))
    return Call("reset_vm", request, _nothing)


def get_interrupts() -> Call[InterruptCounts]:
    return Call("get_interrupts", pb.GetInterruptsRequest(), InterruptCounts.from_proto)


def save_vm() -> Call[VmSnapshot]:
    return Call("save_vm", pb.SaveVmRequest(), lambda response: VmSnapshot.from_proto(response.snapshot))


@checked
def restore_vm(snapshot: VmSnapshot, name: str = "") -> Call[str]:
    if not isinstance(snapshot, VmSnapshot):
        raise TypeError(
            f"it is of type {type(snapshot).__name__}, and no VmSnapshot: use VmSnapshot.from_bytes() for bytes"
        )
    check_name("VM", name)
    return Call("restore_vm", pb.RestoreVmRequest(vm=name, snapshot=snapshot.to_proto()), _made_vm)


@checked
def check_extension(
    capability: int, architecture: Architecture = Architecture.X86, gic: GicHost = USUAL_GIC
) -> Call[int]:
    request = pb.CheckExtensionRequest(
        capability=capability,
        architecture=pb.Architecture.ValueType(Architecture(architecture)),
        gic=gic_properties(gic),
    )
    return Call("check_extension", request, lambda response: int(response.value))


@checked
def check_vm_extension(capability: int) -> Call[int]:
    request = pb.CheckExtensionRequest(capability=capability)
    return Call("check_extension", request, lambda response: int(response.value))


@checked
def enable_cap(capability: int, args: Iterable[int]) -> Call[None]:
    return Call("enable_cap", pb.EnableCapRequest(capability=capability, args=args), _nothing)


@checked
def set_boot_cpu_id(vcpu: int) -> Call[None]:
    return Call("set_boot_cpu_id", pb.SetBootCpuIdRequest(vcpu=vcpu), _nothing)


@checked
def create_device(type: DeviceType, flags: int = 0) -> Call[int]:  # noqa: A002
    request = pb.CreateDeviceRequest(type=type, flags=flags)
    return Call("create_device", request, lambda response: int(response.device))


@checked
def set_device_addr(id: int, address: int) -> Call[None]:  # noqa: A002
    return Call("set_device_addr", pb.SetDeviceAddrRequest(id=id, address=address), _nothing)


def create_irqchip() -> Call[None]:
    return Call("create_irqchip", pb.CreateIrqchipRequest(), _nothing)


@checked
def create_pit(speaker: bool) -> Call[None]:
    return Call("create_pit", pb.CreatePitRequest(flags=KVM_PIT_SPEAKER_DUMMY * speaker), _nothing)


def watch_request(
    vm: str, tracepoints: Iterable[str], gsis: Iterable[int] = (), vcpus: Iterable[int] = (), probes: bool = False
) -> pb.WatchRequest:
    """The request that opens a Watch. Raises InvalidArgument for names that are no text, and for invalid numbers."""
    from ._arguments import what_is_wrong

    check_name("VM", vm)
    arguments: dict[str, Any] = {"tracepoints": tracepoints, "gsis": gsis, "vcpus": vcpus, "probes": probes}
    arguments |= {name: list(value) for name, value in arguments.items() if isinstance(value, Iterator)}
    if wrong := what_is_wrong("watch", arguments, flags=("probes",)):
        raise InvalidArgument(errno.EINVAL, f"watch: {wrong}")
    names = list(arguments["tracepoints"])
    for name in names:
        check_name("tracepoint", name)
    try:
        return pb.WatchRequest(
            vm=vm, tracepoints=names, gsis=arguments["gsis"], vcpus=arguments["vcpus"], probes=probes, batches=True
        )
    except ValueError as error:
        raise InvalidArgument(errno.EINVAL, f"watch: tracepoints: {error!s:.200}") from None


# Calls of a Session that carry descriptors.


@checked
def irqfd(gsi: int, flags: int = 0) -> Call[None]:
    return Call("irqfd", pb.IrqfdRequest(gsi=gsi, flags=flags), _nothing)


@checked
def share_lapic(vcpu: int) -> Call[None]:
    return Call("share_lapic", pb.ShareLapicRequest(vcpu=vcpu), _nothing)


@checked
def register_ioeventfd(space: Space, address: int, length: int, datamatch: int | None = None) -> Call[None]:
    request = region_request(space, address, length, True, datamatch)
    request.eventfd = True
    return Call("register_region", request, _nothing)


@checked
def register_memory(address: int, length: int, offset: int = 0) -> Call[None]:
    request = region_request(Space.MEMORY, address, length, False, None)
    request.memfd, request.offset = True, offset
    return Call("register_region", request, _nothing)


@checked
def get_memory(address: int) -> Call[tuple[int, int, int]]:
    return Call("get_memory", pb.GetMemoryRequest(address=address), _part_of_memory)


def _part_of_memory(response: pb.GetMemoryResponse) -> tuple[int, int, int]:
    return response.address, response.length, response.offset


def _made_vm(response: pb.CreateVmResponse | pb.RestoreVmResponse) -> str:
    return response.vm
