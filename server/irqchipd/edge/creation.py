"""Creating a VM for a client, by CreateVm or with a Session."""

from __future__ import annotations

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.vm.architectures import Gic, Properties
from irqchipd.vm.errors import invalid
from irqchipd.vm.machine import Vm
from irqchipd.vm.registry import Registry


def create_vm(registry: Registry, request: pb.CreateVmRequest) -> Vm:
    if request.clock not in pb.ClockKind.values():
        raise invalid(
            f"clock {request.clock} is invalid; {pb.CLOCK_KIND_REAL} is real, {pb.CLOCK_KIND_VIRTUAL} is virtual"
        )
    return registry.create(
        request.vm,
        virtual=request.clock == pb.CLOCK_KIND_VIRTUAL,
        properties=Properties(tsc_khz=request.tsc_khz, gic=gic_from(request.gic)),
        architecture=request.architecture,
    )


def gic_from(gic: pb.GicProperties) -> Gic:
    """The GIC of an arm64 VM's host."""
    return Gic(gic.version, gic.list_registers, gic.priority_bits)
