"""What KVM_CHECK_EXTENSION answers: capabilities by their numbers in <linux/kvm.h>, and KVM's values."""

from __future__ import annotations

from irqchipd.vm.machine import MAX_VCPU_ID, MAX_VCPUS
from irqchipd.vm.routing import MAX_GSIS

CAPABILITIES = {
    0: 1,  # KVM_CAP_IRQCHIP
    1: 1,  # KVM_CAP_HLT
    9: MAX_VCPUS,  # KVM_CAP_NR_VCPUS
    11: 1,  # KVM_CAP_PIT
    14: 1,  # KVM_CAP_MP_STATE
    22: 1,  # KVM_CAP_USER_NMI
    24: 1,  # KVM_CAP_REINJECT_CONTROL
    25: MAX_GSIS,  # KVM_CAP_IRQ_ROUTING
    26: 1,  # KVM_CAP_IRQ_INJECT_STATUS
    32: 1,  # KVM_CAP_IRQFD: over the port
    33: 1,  # KVM_CAP_PIT2
    35: 1,  # KVM_CAP_PIT_STATE2
    36: 1,  # KVM_CAP_IOEVENTFD: doorbells; with eventfds over the port
    61: 1,  # KVM_CAP_GET_TSC_KHZ
    66: MAX_VCPUS,  # KVM_CAP_MAX_VCPUS
    72: 1,  # KVM_CAP_TSC_DEADLINE_TIMER
    77: 1,  # KVM_CAP_SIGNAL_MSI
    82: 1,  # KVM_CAP_IRQFD_RESAMPLE: over the port; elsewhere resampled GSIs
    97: 1,  # KVM_CAP_IOAPIC_POLARITY_IGNORED
    98: 1,  # KVM_CAP_ENABLE_CAP_VM
    121: 1,  # KVM_CAP_SPLIT_IRQCHIP
    128: MAX_VCPU_ID + 1,  # KVM_CAP_MAX_VCPU_ID, one more than the highest
}


def check_extension(capability: int) -> int:
    """KVM's value of a capability, or 0."""
    return CAPABILITIES.get(capability, 0)
