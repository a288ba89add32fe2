"""s390's capabilities, by their numbers in <linux/kvm.h>. KVM: kvm-s390.c kvm_vm_ioctl_check_extension."""

from __future__ import annotations

from typing import Final

from irqchipd.chips.s390.local import MAX_CPUS
from irqchipd.vm.routing import MAX_GSIS


class Cap:
    """The capabilities that can be enabled."""

    S390_IRQCHIP: Final = 99
    S390_AIS: Final = 141


CAPABILITIES: Final = {
    9: MAX_CPUS,  # KVM_CAP_NR_VCPUS
    14: 1,  # KVM_CAP_MP_STATE
    25: MAX_GSIS,  # KVM_CAP_IRQ_ROUTING
    32: 1,  # KVM_CAP_IRQFD: over the port
    36: 1,  # KVM_CAP_IOEVENTFD: doorbells; with eventfds over the port
    66: MAX_CPUS,  # KVM_CAP_MAX_VCPUS; of a machine that does not interpret SIGP
    82: 1,  # KVM_CAP_IRQFD_RESAMPLE: accepted, but no interrupt's end is ever known
    89: 1,  # KVM_CAP_DEVICE_CTRL
    98: 1,  # KVM_CAP_ENABLE_CAP_VM
    Cap.S390_IRQCHIP: 1,
    105: 1,  # KVM_CAP_CHECK_EXTENSION_VM
    113: 1,  # KVM_CAP_S390_INJECT_IRQ
    114: 1,  # KVM_CAP_S390_IRQ_STATE
    122: 1,  # KVM_CAP_IOEVENTFD_ANY_LENGTH
    128: MAX_CPUS,  # KVM_CAP_MAX_VCPU_ID
    Cap.S390_AIS: 1,
    150: 1,  # KVM_CAP_S390_AIS_MIGRATION
    179: 1,  # KVM_CAP_S390_VCPU_RESETS
}
