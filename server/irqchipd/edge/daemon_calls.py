"""The unary calls that are not operations on a VM: a function on messages for each, and a table by RPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.creation import create_vm, gic_from
from irqchipd.edge.pages import get_vm, list_vms
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.vm.architectures import check_extension
from irqchipd.vm.registry import Registry

# Fills in a response.
DaemonCall = Callable[[Registry, Any, Any], None]


def _create_vm(registry: Registry, request: pb.CreateVmRequest, response: pb.CreateVmResponse) -> None:
    response.vm = create_vm(registry, request).name


def _delete_vm(registry: Registry, request: pb.DeleteVmRequest, _: pb.DeleteVmResponse) -> None:
    registry.delete(request.vm)


def _save_vm(registry: Registry, request: pb.SaveVmRequest, response: pb.SaveVmResponse) -> None:
    response.snapshot.CopyFrom(snapshot_to(registry.get(request.vm).save()))


def _restore_vm(registry: Registry, request: pb.RestoreVmRequest, response: pb.RestoreVmResponse) -> None:
    response.vm = registry.restore(request.vm, snapshot_from(request.snapshot)).name


def _check_extension(
    registry: Registry, request: pb.CheckExtensionRequest, response: pb.CheckExtensionResponse
) -> None:
    if request.vm:
        response.value = registry.get(request.vm).check_extension(request.capability)
    else:
        response.value = check_extension(request.architecture, gic_from(request.gic), request.capability)


DAEMON_CALLS: Final[dict[str, DaemonCall]] = {
    "CreateVm": _create_vm,
    "DeleteVm": _delete_vm,
    "GetVm": get_vm,
    "CheckExtension": _check_extension,
}
# These take long without holding a VM's lock for long.
LONG_CALLS: Final[dict[str, DaemonCall]] = {"ListVms": list_vms, "SaveVm": _save_vm, "RestoreVm": _restore_vm}


def wrap_daemon_calls(wrap: Callable[[str, DaemonCall, bool], DaemonCall]) -> None:
    """As wrap_operations, for these calls."""
    for calls in (DAEMON_CALLS, LONG_CALLS):
        for name, call in calls.items():
            calls[name] = wrap("".join(f"_{c.lower()}" if c.isupper() else c for c in name)[1:], call, False)
