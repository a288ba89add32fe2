"""s390's part of the catalogue of operations in `ops`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb

from ._call import Call
from ._checked import checked

if TYPE_CHECKING:
    from .s390 import InterruptMasks, S390Irq, VcpuReset

__all__ = [
    "get_interrupt_masks",
    "get_irq_state",
    "reset_vcpu",
    "s390_interrupt",
    "s390_irq",
    "set_interrupt_masks",
    "set_irq_state",
    "take_irq",
]


def _nothing(_response: Message) -> None:
    return None


@checked
def s390_interrupt(type: int, parm: int = 0, parm64: int = 0, *, vcpu: int | None = None) -> Call[None]:  # noqa: A002
    """KVM_S390_INTERRUPT: a floating interrupt of the VM or, with vcpu, an interrupt of a vCPU.

    Busy if a list of floating interrupts is full, or if an interrupt that the vCPU can have once is pending already.
    """
    request = pb.S390InterruptRequest(type=type, parm=parm, parm64=parm64, vcpu=vcpu)
    return Call("s390_interrupt", request, _nothing)


@checked
def s390_irq(vcpu: int, irq: S390Irq | bytes) -> Call[None]:
    """KVM_S390_IRQ: a vCPU's own interrupt."""
    data = irq if isinstance(irq, bytes) else irq.kvm_struct
    return Call("s390_irq", pb.S390IrqRequest(vcpu=vcpu, irq=data), _nothing)


@checked
def get_irq_state(vcpu: int) -> Call[list[S390Irq]]:
    """KVM_S390_GET_IRQ_STATE: a vCPU's own interrupts that are pending."""
    from .s390 import irqs_of

    return Call("get_irq_state", pb.GetIrqStateRequest(vcpu=vcpu), lambda response: irqs_of(response.irqs))


@checked
def set_irq_state(vcpu: int, irqs: Iterable[S390Irq]) -> Call[None]:
    """KVM_S390_SET_IRQ_STATE: adds interrupts to a vCPU that has none. Busy if it has some."""
    data = b"".join(irq.kvm_struct for irq in irqs)
    return Call("set_irq_state", pb.SetIrqStateRequest(vcpu=vcpu, irqs=data), _nothing)


@checked
def set_interrupt_masks(vcpu: int, masks: InterruptMasks) -> Call[None]:
    """Reports the masks that an s390 guest has written to its PSW and control registers."""
    request = pb.SetInterruptMasksRequest(vcpu=vcpu, masks=masks.to_proto())
    return Call("set_interrupt_masks", request, _nothing)


@checked
def get_interrupt_masks(vcpu: int) -> Call[InterruptMasks]:
    """The masks of an s390 vCPU that are set."""
    from .s390 import InterruptMasks

    request = pb.GetInterruptMasksRequest(vcpu=vcpu)
    return Call("get_interrupt_masks", request, lambda response: InterruptMasks.from_proto(response.masks))


@checked
def take_irq(vcpu: int) -> Call[S390Irq | None]:
    """Takes the interrupt that an s390 vCPU's masks allow and that has the highest priority, or None.

    The vCPU's process then exchanges the PSW, and reports the new masks.
    """
    from .s390 import S390Irq

    def taken(response: pb.TakeIrqResponse) -> S390Irq | None:
        return S390Irq(response.irq) if response.HasField("irq") else None

    return Call("take_irq", pb.TakeIrqRequest(vcpu=vcpu), taken)


@checked
def reset_vcpu(vcpu: int, reset: VcpuReset) -> Call[None]:
    """KVM_S390_NORMAL_RESET, KVM_S390_INITIAL_RESET or KVM_S390_CLEAR_RESET."""
    request = pb.ResetVcpuRequest(vcpu=vcpu, reset=pb.VcpuReset.ValueType(reset))
    return Call("reset_vcpu", request, _nothing)
