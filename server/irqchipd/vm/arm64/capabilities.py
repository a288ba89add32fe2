"""Capabilities on arm64, by their numbers in <linux/kvm.h>: for KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.

Linux v6.12: arch/arm64/kvm/arm.c kvm_vm_ioctl_check_extension, virt/kvm/kvm_main.c
kvm_vm_ioctl_check_extension_generic. The host is that of the golden traces: a Cortex-A57.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EINVAL
from typing import Final

from irqchipd.vm.arm64.host import check_version, max_vcpus
from irqchipd.vm.routing import MAX_GSIS

NR_VCPUS: Final = 9
MAX_VCPUS: Final = 66
MAX_VCPU_ID: Final = 128
MSI_DEVID: Final = 131
NISV_TO_USER: Final = 177
HALT_POLL: Final = 182
SYSTEM_SUSPEND: Final = 216
# Capabilities that user space can enable; none has an effect in this daemon.
ENABLED: Final = (NISV_TO_USER, HALT_POLL, SYSTEM_SUSPEND)

_CAPABILITIES: Final = {
    0: 1,  # KVM_CAP_IRQCHIP
    3: 1,  # KVM_CAP_USER_MEMORY
    NR_VCPUS: 1,  # the host's CPUs
    10: 32767,  # KVM_CAP_NR_MEMSLOTS
    14: 1,  # KVM_CAP_MP_STATE
    15: 1,  # KVM_CAP_COALESCED_MMIO: a page's number
    16: 1,  # KVM_CAP_SYNC_MMU
    21: 1,  # KVM_CAP_DESTROY_MEMORY_REGION_WORKS
    23: 1,  # KVM_CAP_SET_GUEST_DEBUG
    25: MAX_GSIS,  # KVM_CAP_IRQ_ROUTING
    30: 1,  # KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
    32: 1,  # KVM_CAP_IRQFD: over the port
    36: 1,  # KVM_CAP_IOEVENTFD: doorbells; with eventfds over the port
    40: 1,  # KVM_CAP_INTERNAL_ERROR_DATA
    41: 1,  # KVM_CAP_VCPU_EVENTS
    70: 1,  # KVM_CAP_ONE_REG
    77: 1,  # KVM_CAP_SIGNAL_MSI
    81: 1,  # KVM_CAP_READONLY_MEM
    82: 1,  # KVM_CAP_IRQFD_RESAMPLE: over the port; elsewhere resampled GSIs
    87: 1,  # KVM_CAP_ARM_PSCI
    88: 1,  # KVM_CAP_ARM_SET_DEVICE_ADDR
    89: 1,  # KVM_CAP_DEVICE_CTRL
    93: 1,  # KVM_CAP_ARM_EL1_32BIT
    98: 1,  # KVM_CAP_ENABLE_CAP_VM
    102: 1,  # KVM_CAP_ARM_PSCI_0_2
    105: 1,  # KVM_CAP_CHECK_EXTENSION_VM
    119: 6,  # KVM_CAP_GUEST_DEBUG_HW_BPS
    120: 4,  # KVM_CAP_GUEST_DEBUG_HW_WPS
    122: 1,  # KVM_CAP_IOEVENTFD_ANY_LENGTH
    126: 1,  # KVM_CAP_ARM_PMU_V3
    127: 1,  # KVM_CAP_VCPU_ATTRIBUTES
    136: 1,  # KVM_CAP_IMMEDIATE_EXIT
    144: 1,  # KVM_CAP_ARM_USER_IRQ
    165: 44,  # KVM_CAP_ARM_VM_IPA_SIZE
    168: 3,  # KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
    174: 1,  # KVM_CAP_ARM_IRQ_LINE_LAYOUT_2
    NISV_TO_USER: 1,
    178: 1,  # KVM_CAP_ARM_INJECT_EXT_DABT
    HALT_POLL: 1,
    187: 1,  # KVM_CAP_STEAL_TIME
    195: 0x30003,  # KVM_CAP_SET_GUEST_DEBUG2
    198: 1,  # KVM_CAP_PTP_KVM
    203: 1,  # KVM_CAP_BINARY_STATS_FD
    215: 1,  # KVM_CAP_SYSTEM_EVENT_DATA
    SYSTEM_SUSPEND: 1,
    223: 1 << 20,  # KVM_CAP_DIRTY_LOG_RING_ACQ_REL
    225: 1,  # KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
    227: 1,  # KVM_CAP_COUNTER_OFFSET
    229: 1 << 12 | 1 << 21 | 1 << 30,  # KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES
    230: 1,  # KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES
    231: 1,  # KVM_CAP_USER_MEMORY2
}


def capabilities(version: int) -> Mapping[int, int]:
    """The capabilities of a host with a GIC of a version; 0 is a GICv3 that can also be a GICv2."""
    check_version(version)
    return {**_CAPABILITIES, MAX_VCPUS: max_vcpus(version), MAX_VCPU_ID: max_vcpus(version), MSI_DEVID: -EINVAL}
