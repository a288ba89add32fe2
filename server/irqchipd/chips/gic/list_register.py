"""The data between the distributor and the virtual CPU interface: list registers, VMCR and active priorities.

Arm IHI 0048B (GICv2), 5.3: GICH_LR, GICH_VMCR, GICH_APR. IHI 0069 (GICv3), 12.4: ICH_LR<n>_EL2, ICH_VMCR_EL2,
ICH_AP0R<n>_EL2, ICH_AP1R<n>_EL2. One form serves both: the distributor fills it before a vCPU enters the guest and
folds it back afterwards (KVM: struct vgic_v2_cpu_if, struct vgic_v3_cpu_if).
"""

from __future__ import annotations

from typing import Final

LIST_REGISTERS: Final = 4  # of a CPU, by default
PRIORITY_BITS: Final = 5
IDLE_PRIORITY: Final = 0xFF  # the running priority of a CPU with no active interrupt
ACTIVE_PRIORITY_REGISTERS: Final = 4  # ICH_AP0R0 to ICH_AP0R3; five priority bits use the first only


class ListRegister:
    """One virtual interrupt: GICH_LR or ICH_LR<n>_EL2."""

    __slots__ = ("active", "eoi", "group", "hardware", "intid", "pending", "physical", "priority")

    def __init__(self, intid: int, priority: int, group: int) -> None:
        self.intid = intid
        # 8 bits, of which the low ones are 0. GICH_LR holds the upper five.
        self.priority = priority
        # 0 or 1.
        self.group = group
        self.pending = False
        self.active = False
        # Whether to report the end of this interrupt: the maintenance interrupt of an LR with HW clear.
        self.eoi = False
        # Whether ending this interrupt deactivates a physical one (HW).
        self.hardware = False
        # The physical interrupt of an LR with HW set; otherwise the source CPU of a GICv2 SGI.
        self.physical = 0

    @property
    def ended(self) -> bool:
        """Whether the guest has ended this interrupt and the distributor asked to know (ICH_EISR_EL2).

        KVM: vgic-v3.c lr_signals_eoi_mi.
        """
        return self.eoi and not (self.pending or self.active or self.hardware)


class Vmcr:
    """The guest's control of its CPU interface: GICH_VMCR or ICH_VMCR_EL2; the names are KVM's struct vgic_vmcr."""

    __slots__ = ("abpr", "ackctl", "bpr", "cbpr", "eoim", "fiqen", "grpen0", "grpen1", "pmr")

    def __init__(self) -> None:
        self.grpen0 = 0
        self.grpen1 = 0
        # GICv2 only; a GICv3 CPU interface with SRE has ackctl 0 and fiqen 1.
        self.ackctl = 0
        self.fiqen = 0
        # Common binary point register: group 1 uses bpr, too.
        self.cbpr = 0
        # EOI mode: 1 splits priority drop from deactivation.
        self.eoim = 0
        # The binary points of group 0 and group 1 as written; the CPU interface raises them to its minimum.
        self.bpr = 0
        self.abpr = 0
        # 8 bits. GICH_VMCR holds the upper five.
        self.pmr = 0


class CpuInterfaceState:
    """The state of a vCPU's virtual CPU interface, which the kernel loads before the guest runs, and saves after."""

    __slots__ = ("ap0r", "ap1r", "list_registers", "vmcr")

    def __init__(self) -> None:
        # The list registers in use, in order. The others are empty.
        self.list_registers: list[ListRegister] = []
        self.vmcr = Vmcr()
        # Active priorities by group, 32 priorities a register. GICH_APR, which has both groups, is ap0r[0].
        self.ap0r: list[int] = [0] * ACTIVE_PRIORITY_REGISTERS
        self.ap1r: list[int] = [0] * ACTIVE_PRIORITY_REGISTERS
