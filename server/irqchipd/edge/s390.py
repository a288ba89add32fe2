"""Between the contract's messages about s390 and plain values."""

from __future__ import annotations

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.s390.irq import Irq, pack
from irqchipd.chips.s390.local import MAX_STATE
from irqchipd.chips.s390.pending import Masks
from irqchipd.vm.routing import S390Route


def route_from(entry: pb.RoutingEntry) -> S390Route:
    """The route of an entry that leads to an adapter."""
    adapter = entry.s390_adapter
    return S390Route(
        entry.gsi,
        adapter.ind_addr,
        adapter.summary_addr,
        adapter.ind_offset,
        adapter.summary_offset,
        adapter.adapter_id,
        entry.flags,
    )


def route_to(route: S390Route) -> pb.RoutingEntry:
    """The entry of a route."""
    adapter = pb.S390Adapter(
        ind_addr=route.indicator_address,
        summary_addr=route.summary_address,
        ind_offset=route.indicator_offset,
        summary_offset=route.summary_offset,
        adapter_id=route.adapter,
    )
    return pb.RoutingEntry(gsi=route.gsi, s390_adapter=adapter, flags=route.flags)


def interrupt_from(request: pb.S390InterruptRequest) -> tuple[int, int, int, int | None]:
    """An interrupt's type, its parameters, and the vCPU that gets it, if any."""
    vcpu = request.vcpu if request.HasField("vcpu") else None
    return request.type, request.parm, request.parm64, vcpu


def irq_state_from(request: pb.GetIrqStateRequest) -> tuple[int, int]:
    """A vCPU, and the most bytes of its interrupts."""
    return request.vcpu, request.length or MAX_STATE


def masks_from(request: pb.SetInterruptMasksRequest) -> tuple[int, Masks]:
    """A vCPU and its masks."""
    masks = request.masks
    return request.vcpu, Masks(masks.psw_mask, masks.cr0, masks.cr6, masks.cr14)


def masks_to(masks: Masks, response: pb.GetInterruptMasksResponse) -> None:
    """The message of a vCPU's masks."""
    response.masks.CopyFrom(pb.InterruptMasks(psw_mask=masks.psw, cr0=masks.cr0, cr6=masks.cr6, cr14=masks.cr14))


def irq_to(irq: Irq | None, response: pb.TakeIrqResponse) -> None:
    """The message of an interrupt that a vCPU has taken."""
    if irq is not None:
        response.irq = pack(irq)
