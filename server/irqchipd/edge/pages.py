"""ListVms and GetVm, a page at a time. A page is bounded in bytes and in work.

A page token is the name of the VM, or the serial number of the line source, before the page. So a token stays valid
while VMs and line sources come and go.
"""

from __future__ import annotations

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import vm_to
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.registry import Registry, is_name

PAGE_BYTES = 256 << 10
PAGE_VMS = 256
PAGE_VCPUS = 1024  # per page: a description reads the timer of every vCPU
LISTED_BYTES = 32 << 10  # per VM in a list, for its Sessions
_FIELD_BYTES = 4  # before a message within another
_SERIAL_DIGITS = 20


def list_vms(registry: Registry, request: pb.ListVmsRequest, response: pb.ListVmsResponse) -> None:
    """A page of all VMs."""
    after = request.page_token
    if after and not is_name(after):
        raise _no_token()
    most = min(request.page_size or PAGE_VMS, PAGE_VMS)
    vms = registry.after(after, most + 1)
    size = vcpus = 0
    for position, vm in enumerate(vms):
        if position == most:
            break
        try:
            info = vm_to(vm.describe(room=LISTED_BYTES))
        except VmError:  # the VM has just been deleted
            continue
        size += info.ByteSize() + _FIELD_BYTES
        vcpus += len(info.vcpus)
        if response.vms and (size > PAGE_BYTES or vcpus > PAGE_VCPUS):
            break
        response.vms.append(info)
    else:
        return
    response.next_page_token = vms[position - 1].name


def get_vm(registry: Registry, request: pb.GetVmRequest, response: pb.GetVmResponse) -> None:
    """A VM, with a page of its Sessions."""
    vm = registry.get(request.vm)
    after = _serial(request.page_token) if request.page_token else 0
    description = vm.describe(after, PAGE_BYTES, one_at_least=True)
    response.vm.CopyFrom(vm_to(description))
    if description.next_source is not None:
        response.next_page_token = str(description.next_source)


def _serial(token: str) -> int:
    # int also accepts other digits and blanks, and is slow for a long number.
    if not (len(token) < _SERIAL_DIGITS and token.isascii() and token.isdecimal()):
        raise _no_token()
    return int(token)


def _no_token() -> VmError:
    return invalid("page_token is invalid: use the next_page_token of the page before")
