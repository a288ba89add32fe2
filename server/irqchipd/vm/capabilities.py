"""What KVM_CHECK_EXTENSION answers: capabilities by their numbers in <linux/kvm.h>, and KVM's values."""

from __future__ import annotations

from irqchipd.vm.machine import MAX_VCPU_ID, MAX_VCPUS
from irqchipd.vm.routing import MAX_GSIS

CAPABILITIES = {
    0: 1,  # KVM_CAP_IRQCHIP
    9: MAX_VCPUS,  # KVM_CAP_NR_VCPUS
    25: MAX_GSIS,  # KVM_CAP_IRQ_ROUTING
    26: 1,  # KVM_CAP_IRQ_INJECT_STATUS
    66: MAX_VCPUS,  # KVM_CAP_MAX_VCPUS
    77: 1,  # KVM_CAP_SIGNAL_MSI
    128: MAX_VCPU_ID + 1,  # KVM_CAP_MAX_VCPU_ID, one more than the highest
}


def check_extension(capability: int) -> int:
    """KVM's value of a capability, or 0."""
    return CAPABILITIES.get(capability, 0)
