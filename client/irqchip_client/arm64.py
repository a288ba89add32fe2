"""Numbers for arm64 VMs: those of interrupts, of devices' attributes, and of system registers.

    vm = client.create_vm("guest", architecture=Architecture.ARM64, gic=GicHost(version=3))
    cpu = vm.create_vcpu(0)
    cpu.init()
    vm.create_gic(version=3)
    vm.line(spi(4)).pulse()

The numbers are those of <linux/kvm.h> and <asm/kvm.h>.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final

FIRST_SPI: Final = 32
_CPU, _SPI, _PPI = 0, 1, 2  # KVM_ARM_IRQ_TYPE_*


def spi(number: int) -> int:
    """The line of a shared peripheral interrupt, counted from 0: its INTID is 32 more."""
    return _SPI << 24 | number + FIRST_SPI


def ppi(vcpu: int, intid: int) -> int:
    """The line of a private peripheral interrupt of a vCPU, by its INTID, 16 to 31."""
    return (vcpu >> 8) << 28 | _PPI << 24 | (vcpu & 0xFF) << 16 | intid


def irq(vcpu: int) -> int:
    """The line of a vCPU's IRQ, which a client can drive without a GIC; the number of its FIQ is one more."""
    return (vcpu >> 8) << 28 | _CPU << 24 | (vcpu & 0xFF) << 16


def line_name(line: int) -> str:
    """A line's name: "spi:4", "ppi:0:27" of vCPU 0, "irq:0" or "fiq:0"."""
    kind, vcpu, number = line >> 24 & 0xF, (line >> 16 & 0xFF) + 256 * (line >> 28), line & 0xFFFF
    if kind == _SPI:
        return f"spi:{number - FIRST_SPI}"
    return f"ppi:{vcpu}:{number}" if kind == _PPI else f"{'fiq' if number else 'irq'}:{vcpu}"


def gsi_or_line(number: int) -> str:
    """The name of a number of Vm.line(): "GSI 4", or "spi:4" of an arm64 VM.

    The numbers of vCPU 0's IRQ and FIQ are also GSIs, and have the GSIs' names.
    """
    return f"GSI {number}" if number < irq(1) else line_name(number)


class Group(IntEnum):
    """KVM_DEV_ARM_VGIC_GRP_*."""

    ADDR = 0
    DIST_REGS = 1
    CPU_REGS = 2
    NR_IRQS = 3
    CTRL = 4
    REDIST_REGS = 5
    CPU_SYSREGS = 6
    LEVEL_INFO = 7
    ITS_REGS = 8


class Address(IntEnum):
    """KVM_VGIC_V2_ADDR_TYPE_* and KVM_VGIC_V3_ADDR_TYPE_*: attributes of Group.ADDR."""

    V2_DIST = 0
    V2_CPU = 1
    V3_DIST = 2
    V3_REDIST = 3
    ITS = 4
    V3_REDIST_REGION = 5


class VcpuGroup(IntEnum):
    """KVM_ARM_VCPU_*_CTRL: groups of a vCPU's attributes."""

    PMU = 0
    TIMER = 1
    PVTIME = 2


class Control(IntEnum):
    """KVM_DEV_ARM_VGIC_*: attributes of Group.CTRL."""

    INIT = 0
    SAVE_PENDING_TABLES = 3


# The addresses of a GIC's frames on QEMU's virt board.
DISTRIBUTOR: Final = 0x0800_0000
CPU_INTERFACE: Final = 0x0801_0000  # GICv2
REDISTRIBUTORS: Final = 0x080A_0000  # GICv3; 128 KiB a vCPU, in the order of creation


def gic_attributes(version: int, interrupts: int) -> list[tuple[Group, int, int]]:
    """The attributes that place and initialise a GIC, in their order."""
    if version not in (2, 3):
        from ._errors import InvalidArgument  # This loads gRPC, which the numbers here do not need.

        raise InvalidArgument(errno.EINVAL, f"version is {version!r:.200}; a GIC's version is 2 or 3")
    frames = {
        2: [(Address.V2_DIST, DISTRIBUTOR), (Address.V2_CPU, CPU_INTERFACE)],
        3: [(Address.V3_DIST, DISTRIBUTOR), (Address.V3_REDIST, REDISTRIBUTORS)],
    }
    placed = [(Group.ADDR, int(attr), address) for attr, address in frames[version]]
    return [(Group.NR_IRQS, 0, interrupts), *placed, (Group.CTRL, int(Control.INIT), 0)]


def affinity(vcpu: int) -> int:
    """MPIDR_EL1's Aff2, Aff1 and Aff0, by which a guest names a vCPU. KVM: sys_regs.c reset_mpidr."""
    return vcpu & 0xF | (vcpu >> 4 & 0xFF) << 8 | (vcpu >> 12 & 0xFF) << 16


def attr_of(version: int, vcpu: int, register: int) -> int:
    """The attribute that is a vCPU's register of a GIC: a GICv2 names vCPUs by id, a GICv3 by affinity."""
    return (vcpu if version == 2 else affinity(vcpu)) << 32 | register


# Features of Vcpu.init(): KVM_ARM_VCPU_*.
POWER_OFF: Final = 1 << 0  # The vCPU begins STOPPED.
PSCI_0_2: Final = 1 << 2


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """The number of a system register."""
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


# The system registers that irqchipd has, by their names.
SYSREGS: Final = {
    "ICC_PMR_EL1": sysreg(3, 0, 4, 6, 0),
    "ISR_EL1": sysreg(3, 0, 12, 1, 0),
    "ICC_IAR0_EL1": sysreg(3, 0, 12, 8, 0),
    "ICC_EOIR0_EL1": sysreg(3, 0, 12, 8, 1),
    "ICC_HPPIR0_EL1": sysreg(3, 0, 12, 8, 2),
    "ICC_BPR0_EL1": sysreg(3, 0, 12, 8, 3),
    **{f"ICC_AP0R{n}_EL1": sysreg(3, 0, 12, 8, 4 + n) for n in range(4)},
    **{f"ICC_AP1R{n}_EL1": sysreg(3, 0, 12, 9, n) for n in range(4)},
    "ICC_DIR_EL1": sysreg(3, 0, 12, 11, 1),
    "ICC_RPR_EL1": sysreg(3, 0, 12, 11, 3),
    "ICC_SGI1R_EL1": sysreg(3, 0, 12, 11, 5),
    "ICC_ASGI1R_EL1": sysreg(3, 0, 12, 11, 6),
    "ICC_SGI0R_EL1": sysreg(3, 0, 12, 11, 7),
    "ICC_IAR1_EL1": sysreg(3, 0, 12, 12, 0),
    "ICC_EOIR1_EL1": sysreg(3, 0, 12, 12, 1),
    "ICC_HPPIR1_EL1": sysreg(3, 0, 12, 12, 2),
    "ICC_BPR1_EL1": sysreg(3, 0, 12, 12, 3),
    "ICC_CTLR_EL1": sysreg(3, 0, 12, 12, 4),
    "ICC_SRE_EL1": sysreg(3, 0, 12, 12, 5),
    "ICC_IGRPEN0_EL1": sysreg(3, 0, 12, 12, 6),
    "ICC_IGRPEN1_EL1": sysreg(3, 0, 12, 12, 7),
    "CNTFRQ_EL0": sysreg(3, 3, 14, 0, 0),
    "CNTPCT_EL0": sysreg(3, 3, 14, 0, 1),
    "CNTVCT_EL0": sysreg(3, 3, 14, 0, 2),
    "CNTP_TVAL_EL0": sysreg(3, 3, 14, 2, 0),
    "CNTP_CTL_EL0": sysreg(3, 3, 14, 2, 1),
    "CNTP_CVAL_EL0": sysreg(3, 3, 14, 2, 2),
    "CNTV_TVAL_EL0": sysreg(3, 3, 14, 3, 0),
    "CNTV_CTL_EL0": sysreg(3, 3, 14, 3, 1),
    "CNTV_CVAL_EL0": sysreg(3, 3, 14, 3, 2),
}
