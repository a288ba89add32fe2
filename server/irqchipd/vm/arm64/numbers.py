"""KVM's numbers for arm64: devices, attributes, interrupts, features. <linux/kvm.h>, arch/arm64's <asm/kvm.h>."""

from __future__ import annotations

from typing import Final

from irqchipd.vm.vcpu_state import MpState


class DeviceType:
    """KVM_DEV_TYPE_*."""

    VFIO: Final = 4
    GICV2: Final = 5
    GICV3: Final = 7
    ITS: Final = 8


CREATE_DEVICE_TEST: Final = 1


class Group:
    """KVM_DEV_ARM_VGIC_GRP_*."""

    ADDR: Final = 0
    DIST_REGS: Final = 1
    CPU_REGS: Final = 2
    NR_IRQS: Final = 3
    CTRL: Final = 4
    REDIST_REGS: Final = 5
    CPU_SYSREGS: Final = 6
    LEVEL_INFO: Final = 7
    ITS_REGS: Final = 8


class Address:
    """KVM_VGIC_V2_ADDR_TYPE_* and KVM_VGIC_V3_ADDR_TYPE_*, the attributes of Group.ADDR."""

    V2_DIST: Final = 0
    V2_CPU: Final = 1
    V3_DIST: Final = 2
    V3_REDIST: Final = 3
    ITS: Final = 4
    V3_REDIST_REGION: Final = 5


class Control:
    """Attributes of Group.CTRL."""

    INIT: Final = 0
    ITS_SAVE_TABLES: Final = 1
    ITS_RESTORE_TABLES: Final = 2
    SAVE_PENDING_TABLES: Final = 3
    ITS_RESET: Final = 4


class VcpuGroup:
    """KVM_ARM_VCPU_*_CTRL: groups of a vCPU's attributes."""

    PMU: Final = 0
    TIMER: Final = 1
    PVTIME: Final = 2


class Owner:
    """The timer or PMU of a vCPU that an interrupt belongs to; irqchipd's own numbers."""

    VIRTUAL_TIMER: Final = 1
    PHYSICAL_TIMER: Final = 2
    PMU: Final = 3


class LineType:
    """KVM_ARM_IRQ_TYPE_*."""

    CPU: Final = 0
    SPI: Final = 1
    PPI: Final = 2


class Feature:
    """Bits of KVM_ARM_VCPU_INIT's features."""

    POWER_OFF: Final = 1 << 0
    EL1_32BIT: Final = 1 << 1
    PSCI_0_2: Final = 1 << 2
    PMU_V3: Final = 1 << 3


KNOWN_FEATURES: Final = (1 << 7) - 1
HOST_FEATURES: Final = Feature.POWER_OFF | Feature.EL1_32BIT | Feature.PSCI_0_2 | Feature.PMU_V3
TARGETS: Final = (2, 5)  # KVM_ARM_TARGET_CORTEX_A57, which is the preferred one, and _GENERIC_V8

MP_STATES: Final = (MpState.RUNNABLE, MpState.STOPPED, MpState.SUSPENDED)

MAX_DEVICES: Final = 64  # of a VM; in KVM each is a file descriptor

MAX_VCPUS_V2: Final = 8
MAX_VCPUS_V3: Final = 512
IPA_SIZE: Final = 1 << 40  # guest physical addresses of a VM of type 0
USUAL_INTERRUPTS: Final = 256  # VGIC_NR_IRQS_LEGACY
MAX_INTERRUPTS: Final = 1019  # VGIC_MAX_RESERVED - 1, and so 992
PINS: Final = 988  # KVM_IRQCHIP_NUM_PINS
